"""Runs of a linear model on images of 32 px, and their accuracy by hand: what the tests share.

The images are as large as the crop, so that no resize stands between a file and the model: what
Pillow reads is what DALI must give.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import build_model_with_cfg, register_model
from torch import nn

from dali_rsb import evaluate
from dali_rsb.config import Config
from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.run.checkpoint import save_checkpoint, with_judged_weights

SIZE = 32


class _Linear(nn.Module):
    def __init__(self, num_classes=1000, **_):
        super().__init__()
        self.fc = nn.Linear(48, num_classes)

    def forward(self, images):
        assert images.shape[-1] >= 8, "images of 8 px at least"
        return self.fc(F.adaptive_avg_pool2d(images, 4).flatten(1))


@register_model
def linear_of_48(pretrained=False, **options):
    return build_model_with_cfg(_Linear, "linear_of_48", pretrained, **options)


def write_images(root, names):
    """Images of coarse noise, each another; returns their paths."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(root / name, format="PNG")
    return [root / name for name in names]


def tensors_of(num_classes, seed=0):
    """Weights whose first answers are spread over all classes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "fc.weight": torch.randn(num_classes, 48, generator=generator),
        "fc.bias": torch.zeros(num_classes),
    }


def save_run(folder, classes, seed=0, ema_seed=None, data=None, **evaluation):
    """A run folder with a best checkpoint; returns it."""
    folder.mkdir(exist_ok=True)
    config = Config.model_validate(
        {
            "name": "x",
            "data": data or {},
            "model": {"name": "timm:linear_of_48", "num_classes": len(classes)},
            "evaluation": {"size": SIZE, "crop_ratio": 1.0, "batch_per_device": 8} | evaluation,
            "run": {"device": "cpu"},
        }
    )
    state = {
        "model": tensors_of(len(classes), seed),
        "ema": None if ema_seed is None else tensors_of(len(classes), ema_seed),
        "updates_done": 30,
        "updates_per_epoch": 10,
        "best_top1": 62.5,
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
    }
    save_checkpoint(folder / "best.pt", with_judged_weights(state))
    return folder


def logits_by_hand(tensors, paths, flip=False, mean=IMAGENET_MEAN):
    """Plain PyTorch on what Pillow reads: float64 [N, number of classes]."""
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    pixels = torch.from_numpy(np.stack(arrays)).double().permute(0, 3, 1, 2) / 255
    if flip:
        pixels = pixels.flip(3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, IMAGENET_STD))
    pooled = ((pixels - mean) / std).unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(1)
    return pooled @ tensors["fc.weight"].double().T + tensors["fc.bias"].double()


def by_hand(logits, classes, right, among=None):
    """Figures from logits.

    Args:
        right: of each image the names of its right classes; those without any are left out.
        among: names of the classes to choose among.
    """
    rows = [row for row, names in enumerate(right) if names]
    chosen = list(classes if among is None else among)
    place = {name: i for i, name in enumerate(classes)}
    logits = logits[:, [place[name] for name in chosen]]
    likelihood = logits.log_softmax(1)
    hits, top5, losses, of_class = [], [], [], {}
    bins = np.zeros(15)
    for row in rows:
        best = [chosen[i] for i in logits[row].topk(min(5, len(chosen))).indices]
        hits.append(best[0] in right[row])
        confidence = likelihood[row].exp().max().item()
        bins[int(np.ceil(confidence * 15)) - 1] += confidence - hits[-1]
        top5.append(bool(set(best) & set(right[row])))
        if len(right[row]) == 1:
            (name,) = right[row]
            losses.append(-likelihood[row, chosen.index(name)].item())
            of_class.setdefault(name, []).append(hits[-1])
    return {
        "images": len(rows),
        "top1": 100 * np.mean(hits),
        "top5": 100 * np.mean(top5),
        "loss": np.mean(losses) if losses else None,
        "ece": 100 * np.abs(bins).sum() / len(rows),
        "mean_per_class": 100 * np.mean([np.mean(h) for h in of_class.values()] or [0]),
    }


def run_evaluate(monkeypatch, tmp_path, *arguments):
    """The command in this process: the results in its JSON file."""
    output = tmp_path / "evaluated.json"
    monkeypatch.setattr("sys.argv", ["dali-rsb", *map(str, arguments), "--json", str(output)])
    evaluate.main()
    return json.loads(output.read_text())["results"]


def assert_equal(result, expected, keys=None):
    """A result of the command beside one by hand."""
    for key in keys or expected:
        assert abs(result[key] - expected[key]) < 1e-4, (key, result[key], expected[key])

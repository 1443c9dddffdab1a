"""A network that looks for red and for blue, images with both, and runs that hold such networks."""

import numpy as np
import torch
import yaml
from PIL import Image
from timm.models import build_model_with_cfg, register_model
from torch import nn

from dali_rsb.config import Config
from dali_rsb.run.checkpoint import save_checkpoint, with_judged_weights

CLASSES = ("blue", "red")
SIZE, CELL = 32, 8
# Where the patches are planted, in cells of 8 px as (row, column): mirrored they are elsewhere.
RED, BLUE = (1, 2), (3, 0)


class _Planted(nn.Module):
    def __init__(self, num_classes=2, **_):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, CELL, CELL, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(2, num_classes, bias=False)

    def forward(self, images):
        return self.fc(self.act(self.conv(images)).mean((2, 3)))


@register_model
def planted(pretrained=False, **options):
    return build_model_with_cfg(_Planted, "planted", pretrained, **options)


def tensors():
    """Channel 0 answers to blue, channel 1 to red; each class asks for one and minds the other."""
    conv = torch.zeros(2, 3, CELL, CELL)
    for channel, (wants, minds) in enumerate([(2, 0), (0, 2)]):
        conv[channel, wants], conv[channel, minds] = 1 / CELL**2, -1 / CELL**2
    return {"conv.weight": conv, "fc.weight": torch.tensor([[8.0, -4.0], [-4.0, 8.0]])}


def photograph(strengths=(80, 120), extra=None):
    """A grey image with a patch of blue and one of red, so much off the grey; perhaps another."""
    pixels = np.full((SIZE, SIZE, 3), 128, np.uint8)
    for (row, column), channel, strength in (
        (BLUE, 2, strengths[0]),
        (RED, 0, strengths[1]),
        *([extra] if extra else []),
    ):
        part = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        pixels[part] = 128 - strength
        pixels[(*part, channel)] = 128 + strength
    return Image.fromarray(pixels)


def save_run(folder, model="timm:planted", weights=None, ema=None, classes=CLASSES, **sections):
    """A run folder with a best checkpoint; returns it."""
    folder.mkdir(parents=True)
    config = Config.model_validate(
        {
            "name": "x",
            "model": {"name": model, "num_classes": len(classes)},
            "data": {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
            "evaluation": {"size": SIZE, "crop_ratio": 1.0, "batch_per_device": 2},
            "run": {"device": "cpu"},
        }
        | sections
    )
    state = {
        "model": tensors() if weights is None else weights,
        "ema": ema,
        "updates_done": 30,
        "updates_per_epoch": 10,
        "best_top1": 62.5,
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
    }
    save_checkpoint(folder / "best.pt", with_judged_weights(state))
    (folder / "config.yaml").write_text(yaml.safe_dump(state["config"]))
    return folder

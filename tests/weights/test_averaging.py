"""Averages are what arithmetic and plain PyTorch say, and refused where they would mean nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from exporting import CLASSES, SIZE, run_command, state_dict, write_checkpoint
from PIL import Image
from torch import nn

from dali_rsb.dataset import open_index
from dali_rsb.draws.order import epoch_order
from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.weights.averaging import (
    averaged,
    check_alike,
    greedy_soup,
    mean_of,
    norm_layers,
    recompute_norm_statistics,
)
from dali_rsb.weights.sources import open_weights
from dali_rsb.weights.weights import Weights


def test_the_mean_is_summed_in_float64_and_integers_are_the_firsts():
    # In float16 and float32 the ones are lost beside 2 ** 24.
    large = [2.0**24, 1.0, 1.0, -(2.0**24)]
    states = [
        {"w": torch.tensor([value, 0.1 * i]), "n": torch.tensor(7 + i)}
        for i, value in enumerate(large)
    ]
    mean = mean_of(states)
    assert mean["w"].tolist() == [0.5, np.float32((0.1 + 0.2 + 0.3) / 4)]
    assert mean["w"].dtype == torch.float32
    assert mean["n"].item() == 7
    mean["n"] += 1
    assert states[0]["n"].item() == 7  # a tensor of its own


def _source(name, **changes):
    tensors = {"fc.weight": torch.ones(2, 3), "n": torch.tensor(1)}
    return replace(Weights(tensors, name, "resnet18", ("a", "b")), **changes)


def test_an_average_says_what_it_is_the_mean_of_and_keeps_no_accuracy():
    run = {"config": {"name": "x"}, "epoch": 3.0, "top1": 70.0, "environment": {"torch": "2"}}
    first, second = _source("runs/a/last.pt", run=run, kind="EMA"), _source("b", kind="EMA")
    weights = averaged([first, second])
    assert weights.run == {
        "config": {"name": "x"},
        "environment": {"torch": "2"},
        "averaged": ["a/last.pt", "b"],
    }
    assert (weights.kind, weights.architecture, weights.classes) == ("EMA", "resnet18", ("a", "b"))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"architecture": "resnet34"}, "it is a resnet34, not a resnet18"),
        ({"classes": ("a", "c")}, "class 1 is c there and b here"),
        ({"classes": None}, "only one of them names its classes"),
        ({"tensors": {"fc.weight": torch.ones(2, 3)}}, "n is absent there and int64 () here"),
        (
            {"tensors": {"fc.weight": torch.ones(2, 4), "n": torch.tensor(1)}},
            "fc.weight is float32 (2, 4) there and float32 (2, 3) here",
        ),
        (
            {"tensors": {"fc.weight": torch.ones(2, 3).half(), "n": torch.tensor(1)}},
            "fc.weight is float16 (2, 3) there",
        ),
    ],
)
def test_unlike_sources_are_refused_with_their_first_difference(changes, difference):
    with pytest.raises(UserError) as caught:
        check_alike([_source("one"), _source("two"), _source("three", **changes)])
    assert str(caught.value).startswith("three is no match for one: ")
    assert difference in str(caught.value)


class _Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(5, 4, 1)
        self.last_norm = nn.BatchNorm2d(4)

    def forward(self, images):
        return self.last_norm(self.head(self.dropout(self.norm(self.convolution(images)).relu())))


def test_norm_statistics_are_the_mean_of_those_of_the_batches():
    model = _Small().eval()
    model.norm.running_mean.fill_(100)  # forgotten
    batches = [torch.randn(6, 3, 8, 8) * (i + 1) + i for i in range(3)]
    assert recompute_norm_statistics(model, iter(batches)) == 18
    means, variances = [], []
    last_means, last_variances = [], []
    with torch.no_grad():
        for images in batches:
            x = model.convolution(images)
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)
            means.append(mean)
            variances.append(variance)
            # A batch in training is normalised by its own statistics, the biased variance.
            biased = x.var((0, 2, 3), correction=0)
            normal = (x - mean[:, None, None]) / (biased + model.norm.eps)[:, None, None].sqrt()
            y = model.head(normal.relu())  # no dropout
            last_means.append(y.mean((0, 2, 3)))
            last_variances.append(y.var((0, 2, 3), correction=1))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(model.norm.running_mean, torch.stack(means).mean(0), **close)
    torch.testing.assert_close(model.norm.running_var, torch.stack(variances).mean(0), **close)
    torch.testing.assert_close(
        model.last_norm.running_mean, torch.stack(last_means).mean(0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        model.last_norm.running_var, torch.stack(last_variances).mean(0), rtol=1e-4, atol=1e-5
    )
    assert (model.norm.momentum, model.last_norm.momentum) == (0.3, 0.1)
    assert not any(module.training for module in model.modules())


def test_a_greedy_soup_keeps_what_does_not_lower_the_accuracy():
    # An average is judged by what is in it: b helps, d does nothing, c harms.
    values = {"a": 70.0, "b": 69.0, "c": 71.0, "d": 60.0}
    pairs = {"c": 71.0, "c+a": 70.9, "c+b": 72.0, "c+b+d": 72.0}
    judged = []

    def judge(weights):
        judged.append(weights.source)
        return {**values, **pairs}[weights.source]

    def combine(sources):
        return _source("+".join(weights.source for weights in sources))

    soup = greedy_soup([_source(name) for name in values], judge, combine)
    assert soup.weights.source == "c+b+d"
    assert [weights.source for weights in soup.ingredients] == ["c", "b", "d"]
    assert soup.top1 == 72.0
    assert [(w.source, alone, with_it) for w, alone, with_it in soup.trials] == [
        ("c", 71.0, 71.0),
        ("a", 70.0, 70.9),
        ("b", 69.0, 72.0),
        ("d", 60.0, 72.0),
    ]
    assert judged == ["a", "b", "c", "d", "c+a", "c+b", "c+b+d"]


@pytest.fixture(scope="module")
def checkpoints(photo_folder, tmp_path_factory):
    """Three checkpoints of one architecture, and one of another."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in range(3):
        write_checkpoint(folder / f"{seed}.pt", photo_folder, seed)
    write_checkpoint(folder / "other.pt", photo_folder, architecture="timm:test_vit")
    return folder


def _pixels(photo_folder):
    """The images as an evaluation sees them, by Pillow: float32 [14, 3, H, W], normalised."""
    resize = int(SIZE / 0.95)
    index = open_index(photo_folder)
    images = []
    for row in range(len(index)):
        image = Image.open(index.path(row)).convert("RGB")
        shorter = min(image.size)
        size = [int(resize * side / shorter) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - SIZE) / 2) for side in size)
        images.append(np.asarray(image.crop((left, top, left + SIZE, top + SIZE))))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("batch", [64, 5])
def test_the_command_averages_and_computes_the_norms_as_plain_pytorch(
    monkeypatch, tmp_path, checkpoints, photo_folder, batch
):
    target = tmp_path / "average.safetensors"
    sources = [checkpoints / f"{seed}.pt" for seed in range(3)]
    options = ["--output", target, "--batch", batch, "--device", "cpu"]
    run_command(monkeypatch, "average", *sources, *options)
    found = open_weights(str(target))
    assert found.classes == tuple(CLASSES)
    assert "accuracy" not in found.run
    states = [state_dict(seed) for seed in range(3)]
    expected = create_model(found.architecture, 2)
    expected.load_state_dict(
        {
            name: (sum(state[name].double() for state in states) / 3).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in states[0].items()
        }
    )
    pixels = _pixels(photo_folder)[torch.from_numpy(epoch_order(14, 0, 0))]
    # PyTorch's own way puts the whole model into training mode; this one has no dropout.
    whole_batches = pixels.split(batch) if batch > 14 else pixels.split(batch)[: 14 // batch]
    torch.optim.swa_utils.update_bn(whole_batches, expected)
    statistics = {id(b) for layer in norm_layers(expected) for b in layer.buffers()}
    assert statistics
    for name, tensor in expected.state_dict(keep_vars=True).items():
        if id(tensor) in statistics:
            # Pillow's resize and DALI's differ by a level here and there.
            torch.testing.assert_close(found.tensors[name], tensor, rtol=0.02, atol=0.02)
        else:
            assert torch.equal(found.tensors[name], tensor), name


def test_the_greedy_command_judges_on_the_validation_images(
    monkeypatch, tmp_path, checkpoints, photo_folder, capsys
):
    target = tmp_path / "soup.safetensors"
    sources = [checkpoints / f"{seed}.pt" for seed in range(3)]
    run_command(monkeypatch, "average", *sources, "--greedy", "--output", target, "--device", "cpu")
    labels, pixels = torch.from_numpy(open_index(photo_folder).labels), _pixels(photo_folder)

    def top1(weights):
        with torch.no_grad():
            return 100 * (weights.model()(pixels).argmax(1) == labels).double().mean().item()

    alone = {str(source): top1(open_weights(str(source))) for source in sources}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert {row[0]: float(row[1]) for row in rows} == pytest.approx(alone, abs=1e-3)
    soup = open_weights(str(target))
    accuracy = soup.run["accuracy"]
    assert accuracy["top1"] == pytest.approx(top1(soup))
    assert accuracy["has_chosen"]
    assert accuracy["top1"] >= max(alone.values())
    kept = [row[0] for row in rows if row[-1] == "kept"]
    assert len(soup.run.get("averaged", [0])) == len(kept)


def test_images_that_judge_are_called_alike_wherever_the_command_is_given(
    monkeypatch, tmp_path, checkpoints, photo_folder
):
    target = tmp_path / "soup.safetensors"
    monkeypatch.chdir(photo_folder.parent)
    words = [checkpoints / "0.pt", checkpoints / "1.pt", "--greedy", "--val", photo_folder.name]
    words += ["--num-images", 2, "--batch", 2]  # the fewest that there may be
    run_command(monkeypatch, "average", *words, "--output", target, "--device", "cpu")
    judged_on = open_weights(str(target)).run["accuracy"]["images"]
    assert judged_on == f"{photo_folder.parent.name}/{photo_folder.name}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0.pt"], "give at least two sources"),
        (["0.pt", "nowhere.pt"], "no weights at"),
        (["0.pt", "other.pt"], "it is a timm:test_vit, not a timm:test_resnet"),
        (["0.pt", "1.pt", "--output", "x.pt"], r"ends in \.safetensors"),
        (["0.pt", "1.pt", "--output", "no/x.safetensors"], "there is no folder"),
        (["0.pt", "1.pt", "--num-images", "1"], "of at least 2"),
        (["0.pt", "1.pt", "--batch", "1"], "of at least 2"),
        (["0.pt", "1.pt", "--gready"], "did you mean '--greedy'"),
        (["0.pt", "1.pt", "--images", "nowhere"], "nowhere does not exist"),
        (["0.pt", "1.pt", "--weights", "ema"], "has no EMA"),
        (["0.pt", "1.pt", "--greedy", "--val", "nowhere"], "nowhere does not exist"),
        (["0.pth", "1.pth", "--model", "timm:test_resnet"], "names no training images"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    monkeypatch, tmp_path, checkpoints, arguments, message
):
    for seed in range(2):
        (tmp_path / f"{seed}.pt").write_bytes((checkpoints / f"{seed}.pt").read_bytes())
        torch.save(state_dict(seed), tmp_path / f"{seed}.pth")
    (tmp_path / "other.pt").write_bytes((checkpoints / "other.pt").read_bytes())
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "x.safetensors"]
    with pytest.raises(UserError, match=message) as caught:
        run_command(monkeypatch, "average", "--device", "cpu", *arguments)
    assert len(str(caught.value)) <= 300
    assert sorted(tmp_path.iterdir()) == before

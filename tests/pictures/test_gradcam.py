"""`dali-rsb gradcam`: maps whose right answer is known, torchcam by hand, and what is written."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
import timm
import torch
import tracker_stores as stores
from browser import shown
from conftest import run_module
from PIL import Image
from planted import BLUE, CELL, RED, SIZE, photograph, save_run, tensors
from torch import nn
from torchcam.methods import GradCAM, LayerCAM

from dali_rsb import create_model, gradcam
from dali_rsb.errors import UserError
from dali_rsb.evaluation.imagenet import titles
from dali_rsb.pictures.activation_maps import choose_layer, with_heat
from dali_rsb.run.trackers.services import SERVICES

RUN = "the run's folder"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A red one, a blue one and one with nothing, labelled by folders: the grey one as blue."""
    root = tmp_path_factory.mktemp("photographs")
    for name, image in (
        ("red/a.png", photograph()),
        ("blue/b.png", photograph((120, 60))),
        ("blue/c.png", photograph((0, 0))),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        image.save(root / name)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of the planted network, and one whose EMA has the classes' weights exchanged."""
    root = tmp_path_factory.mktemp("runs")
    swapped = tensors() | {"fc.weight": tensors()["fc.weight"].flip(0)}
    return save_run(root / "right"), save_run(root / "ema", ema=swapped)


def run(monkeypatch, folder, *arguments):
    """The command in this process: its maps by (image, network), as dictionaries."""
    words = ["dali-rsb", *arguments, "--output", folder]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    gradcam.main()
    maps = json.loads((folder / "gradcam.json").read_text())["maps"]
    return {(one["image"], one["network"].partition(" ")[0]): one for one in maps}


def brightest(one):
    heat = np.array(one["map"])
    return tuple(int(place) for place in np.unravel_index(heat.argmax(), heat.shape))


def test_the_map_lies_on_the_patch_that_decides_the_class(runs, photographs, tmp_path, monkeypatch):
    found = run(monkeypatch, tmp_path / "out", *runs, "--images", photographs)
    red, blue, grey = (found[name, "1"] for name in ("red/a.png", "blue/b.png", "blue/c.png"))
    assert (red["predicted"], brightest(red)) == ("red", RED)
    assert (blue["predicted"], brightest(blue)) == ("blue", BLUE)
    assert np.count_nonzero(red["map"]) == 1  # nothing else is red, and blue speaks against it
    assert not np.any(grey["map"])
    assert grey["probability"] == 0.5
    # The same patches, told apart by weights of the EMA that call them by the other name.
    assert found["red/a.png", "2"]["predicted"] == "blue"
    assert brightest(found["red/a.png", "2"]) == RED

    page = (tmp_path / "out/gradcam.html").read_text()
    assert page.count("nothing here speaks for this class") == 2
    screen = shown(tmp_path / "out/gradcam.html", 1280)
    assert screen.width == 1280
    with Image.open(tmp_path / "out/gradcam.png") as grid:
        assert min(grid.size) > 3 * 224  # three images, and three columns with the image itself


@pytest.mark.parametrize(
    ("target", "of_red", "of_blue"),
    [("red", RED, RED), ("blue", BLUE, BLUE), ("label", RED, BLUE)],
)
def test_the_class_that_is_asked_for(
    runs, photographs, tmp_path, monkeypatch, target, of_red, of_blue
):
    found = run(
        monkeypatch, tmp_path, runs[0], "--images", photographs, "--class", target, "run.amp=none"
    )
    assert brightest(found["red/a.png", "1"]) == of_red
    assert brightest(found["blue/b.png", "1"]) == of_blue
    # The page names a map's class where it is not the prediction that stands there already.
    others = [one["map_of"] for one in found.values() if one["map_of"] != one["predicted"]]
    page = (tmp_path / "gradcam.html").read_text()
    assert sorted(re.findall(r">map of (\w+), [\d.]+ %<", page)) == sorted(others)


@pytest.fixture(scope="module")
def resnet_run(tmp_path_factory):
    """A run of one of our models with random weights, and that model."""
    torch.manual_seed(3)
    model = create_model("resnet18", 3).eval()
    with torch.no_grad():  # a fresh network ends each block in zeros
        for name, parameter in model.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.fill_(1.0)
    folder = tmp_path_factory.mktemp("resnet") / "run"
    return save_run(folder, "resnet18", model.state_dict(), None, ("a", "b", "c")), model


@pytest.mark.parametrize(("method", "by_hand"), [("gradcam", GradCAM), ("layercam", LayerCAM)])
def test_maps_are_those_of_torchcam_by_hand(resnet_run, tmp_path, monkeypatch, method, by_hand):
    folder, model = resnet_run
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        photograph((40 * number, 100)).save(file)
    options = ("--layer", "layer2", "--method", method)
    found = run(monkeypatch, tmp_path / "out", folder, "--images", *files, *options)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = (torch.from_numpy(pixels).float().permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with by_hand(model, target_layer="layer2") as extractor:
        logits = model(images)
        (heat,) = extractor(logits.argmax(1).tolist(), logits)
    for number, file in enumerate(files):
        one = found[file.name, "1"]
        assert np.abs(np.array(one["map"]) - heat[number].numpy()).max() < 2e-3
        assert abs(one["probability"] - logits[number].softmax(0).max().item()) < 1e-4


class _Tokens(nn.Module):
    """Mixes tokens, as MLP-Mixer does: what comes last is no map, though there was one before."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.fc = nn.Conv2d(3, 4, 8, 8), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.norm(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


def test_the_last_layer_with_maps_is_chosen():
    ours = create_model("resnet18", 2).eval()
    assert choose_layer(ours, 64, None, "x") == "layer4"
    assert choose_layer(ours, 32, None, "x") == "layer3"  # of 32 px, layer4 leaves a point
    for name, layer in (("resnet10t", "layer4"), ("test_efficientnet", "bn2.act")):
        model = timm.create_model(name, num_classes=2).eval()
        assert choose_layer(model, 64, None, "x") in (layer, layer.partition(".")[0])
    tokens = timm.create_model("test_vit", num_classes=2).eval()
    with pytest.raises(UserError, match=r"does not end in maps .* by --layer NAME"):
        choose_layer(tokens, 160, None, "x")
    assert choose_layer(tokens, 160, "patch_embed.proj", "x") == "patch_embed.proj"
    with pytest.raises(UserError, match="does not end in maps"):
        choose_layer(_Tokens(), 32, None, "x")


def test_synsets_are_called_what_they_are():
    assert titles(("n01443537", "n99999999")) == ["goldfish n01443537", "n99999999"]
    assert titles(("cat", "dog")) == ["cat", "dog"]


def test_a_runs_tracking_services_get_the_table(resnet_run, tmp_path):
    """In a process of its own: the services' clients stay where they were imported."""
    folder, store, output = resnet_run[0], tmp_path / "store", tmp_path / "out"
    services = [name for name in ("tensorboard", "wandb", "mlflow") if _is_here(name)]
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        photograph((40 * number, 100)).save(file)
    tracking = [
        f"tracking.trackers=[{','.join(services)}]",
        f"tracking.dir={store}",
        "tracking.mode=offline",
    ]
    told = run_module(
        "dali_rsb.gradcam", folder, *tracking, "--images", *files, "--run", folder,
        "--output", output, cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    maps = json.loads((output / "gradcam.json").read_text())["maps"]
    places = [line.partition(": ")[0] for line in told.stdout.splitlines()]
    assert places[-len(services) :] == services
    if "tensorboard" in services:
        pictures, text = stores.tensorboard_pictures(folder / "tensorboard-gradcam")
        assert {*pictures} == {f"gradcam/{n}/{kind}" for n in (0, 1) for kind in ("picture", "map")}
        assert all(f"| {one['image']} |" in text for one in maps)
        _assert_looks_like(pictures["gradcam/1/picture"], files[1])
    if "wandb" in services:
        columns, rows = stores.wandb_table(store, "gradcam")
        figures = [[one[name] for name in columns[:-2]] for one in maps]
        assert [row[:-2] for row in rows] == figures
        _assert_looks_like(rows[1][-2], files[1])
    if "mlflow" in services:
        artifacts = stores.MlflowRun(store, folder.name).artifacts / "gradcam"
        for name in ("gradcam.html", "gradcam.png", "gradcam.json"):
            assert (artifacts / name).read_bytes() == (output / name).read_bytes()


def _is_here(service):
    return all(importlib.util.find_spec(package) for package in SERVICES[service].packages)


def _assert_looks_like(picture, file):
    with Image.open(file) as image:
        small = np.asarray(image.convert("RGB"), float)
    assert picture.size == (224, 224)
    got = np.asarray(picture.convert("RGB").resize((SIZE, SIZE)), float)
    assert np.abs(got - small).mean() < 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "rde"], r"--class rde is none of the 2 classes .*did you mean 'red'"),
        (["--layer", "cnov"], "--layer cnov: .* has no such layer, did you mean 'conv'"),
        (["--layer", "fc"], r"--layer fc: its output in .* is \(1, 2\), no map .* of act"),
        (["--count", "0"], "--count 0: give a number from 1 to 32"),
        (["evaluation.size=8"], "does not end in maps"),
        (["--run", "nowhere"], "--run nowhere is no run folder"),
        (["--run", RUN], "no tracking service of the run takes tables; give one of tensorboard"),
        (["--run", RUN, "tracking.trackers=trackio"], "no tracking service of the run takes"),
    ],
)
def test_wrong_words_are_one_line(runs, photographs, tmp_path, monkeypatch, arguments, message):
    arguments = [runs[0] if word == RUN else word for word in arguments]
    with pytest.raises(UserError, match=message) as error:
        run(monkeypatch, tmp_path / "out", runs[0], "--images", photographs, *arguments)
    assert len(str(error.value)) <= 300
    assert not (tmp_path / "out").exists()


def test_without_torchcam_there_is_a_line(runs, photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcam", None)
    with pytest.raises(UserError, match=r"torchcam, which is not installed.*run: pip install"):
        run(monkeypatch, tmp_path / "out", runs[0], "--images", photographs)


def test_wrong_images_are_one_line(runs, tmp_path, monkeypatch):
    output = tmp_path / "out"
    photograph().save(tmp_path / "a.png")
    for images, message in (
        ([tmp_path / "a.png", tmp_path / "b.png"], "b.png is no file"),
        ([tmp_path / "nothing"], "nothing"),
    ):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, output, runs[0], "--images", *images)
    with pytest.raises(UserError, match="nobody says the classes of these images"):
        run(monkeypatch, output, runs[0], "--images", tmp_path / "a.png", "--class", "label")
    with pytest.raises(UserError, match="is no folder: name another"):
        run(monkeypatch, tmp_path / "a.png", runs[0], "--images", tmp_path / "a.png")
    assert not output.exists()


def test_a_picture_is_bright_where_the_map_is():
    heat = np.zeros((4, 4), np.float32)
    heat[RED] = 1
    picture = np.asarray(with_heat(Image.new("RGB", (SIZE, SIZE), (128, 128, 128)), heat))
    factor = picture.shape[0] // SIZE
    row, column = (int(factor * CELL * (place + 0.5)) for place in RED)
    assert picture.shape == (224, 224, 3)
    assert picture[row, column].mean() > 128 > picture[-8, 8].mean()

"""Preview: its pictures read back and compared with the loader's and Pillow's; what is marked."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import shown
from PIL import Image

from dali_rsb import preview
from dali_rsb.checks.parity.pillow import apply_operation
from dali_rsb.config import load_config
from dali_rsb.config.recipes import find_config
from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.randaugment import OPERATIONS, fill_color
from dali_rsb.errors import UserError
from dali_rsb.loader.pillow import eval_transform
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.pictures.loading import CPU
from dali_rsb.pictures.oddities import blankness, of_classes, of_images, of_pictures
from dali_rsb.pictures.operation_chart import SIGNED, UNSIGNED
from dali_rsb.pictures.stages import as_levels
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import train_loader, train_samples
from dali_rsb.training.datasets import open_training

SIZE, IMAGES = 48, 11


def _overrides(folder):
    return [
        f"data.train={folder}",
        f"augment.size={SIZE}",
        "augment.randaugment=rand-m7-mstd0.5-inc1",
        "augment.random_erasing=0.2",
        "mixing.mode=pair",
        "optimizer.batch_size=16",
        "model.num_classes=4",
        "run.seed=5",
        "data.threads=1",
    ]


def _command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["dali-rsb preview", *map(str, arguments)])
    preview.main()


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """Eighteen photographs of three classes, and a black one."""
    root = tmp_path_factory.mktemp("preview") / "photographs"
    black = Image.new("RGB", (60, 50), (1, 0, 2))
    for number, photograph in enumerate([*photographs, *photographs[:4], black]):
        (root / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        photograph = photograph.copy()
        photograph.thumbnail((160, 160))
        photograph.save(root / f"class{number % 3}" / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The folder of a preview, and its JSON."""
    target = tmp_path_factory.mktemp("written") / "in folders/that are new/preview"
    with pytest.MonkeyPatch.context() as patch:
        _command(patch, "a3", *_overrides(folder), "--images", IMAGES, "--output", target)
    return target, json.loads((target / "preview.json").read_text())


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_grid_is_what_the_loader_gives(folder, written):
    target, content = written
    config = load_config(find_config("a3"), _overrides(folder))
    alone = Processes(CPU)
    settings = LoaderSettings.untuned(CPU, 1)
    samples = train_samples(config, open_training(config.data), alone, 16, settings)
    loader = train_loader(config.data, samples, settings, alone)
    batch = next(loader.batches(samples.specs(0)))
    mixed = batch.mixed(config.data.mean, config.data.std, torch.float32)
    loader.close()
    expected = as_levels(mixed.images, config.data.mean, config.data.std)
    grid = _pixels(target / "grid.png")
    assert grid.shape == (2 * SIZE, 8 * SIZE, 3)
    for number, row in enumerate(content["grid"]):
        top, left = number // 8 * SIZE, number % 8 * SIZE
        tile = grid[top : top + SIZE, left : left + SIZE]
        assert np.array_equal(tile, expected[number]), number
        assert row["label"] == mixed.labels[number]
        assert row["class"] == f"class{row['label']}"
        mixing = row["mixing"] or {"lam": 1.0}
        assert mixing["lam"] == mixed.lam[number]
        if row["mixing"] is not None:
            assert mixing["partner"]["label"] == mixed.partner_labels[number]
    assert len(content["grid"]) == IMAGES
    assert (grid[SIZE:, (IMAGES - 8) * SIZE :] == 255).all()  # no image


def test_the_chart_shows_the_pipeline_s_pixels_beside_pillow_s(folder, written):
    target, content = written
    chart = _pixels(target / "operations.png")
    assert chart.shape == (len(OPERATIONS) * SIZE, 4 * 2 * SIZE, 3)
    with Image.open(content["grid"][0]["file"]) as photograph:
        geometry = EvalGeometry(SIZE, 1.0)
        before = eval_transform(photograph.convert("RGB"), geometry, "bicubic")
    fill, changed = fill_color((0.485, 0.456, 0.406)), 0
    by_name = {}
    for entry in content["operations"]:
        by_name.setdefault(entry["operation"], []).append(entry)
    assert list(by_name) == list(OPERATIONS)
    for row, (name, entries) in enumerate(by_name.items()):
        magnitudes = tuple(entry["magnitude"] for entry in entries)
        assert magnitudes in (SIGNED, UNSIGNED, (None,))
        for column, entry in enumerate(entries):
            pair = chart[row * SIZE : (row + 1) * SIZE, 2 * column * SIZE :][:, : 2 * SIZE]
            ours, pillows = pair[:, :SIZE].astype(int), pair[:, SIZE:].astype(int)
            signed = entry["magnitude"] or 0.0
            expected = apply_operation(before, name, abs(signed), signed < 0, True, fill)
            assert np.array_equal(pillows, np.asarray(expected)), (name, signed)
            difference = np.abs(ours - pillows)
            assert difference.max() == entry["largest_difference"]
            assert abs(difference.mean() - entry["mean_difference"]) < 1e-5
            assert difference.mean() < 0.6
            changed += (ours != np.asarray(before)).any()
    assert changed > 40  # of 51


def test_what_is_off_is_marked_and_counted(written):
    target, content = written
    found = {oddity["kind"]: oddity for oddity in content["oddities"]}
    assert {"black", "outputs without a class"} <= found.keys()
    assert (found["black"]["count"], found["black"]["of"]) == (1, 19)
    assert found["black"]["names"][0].endswith("class0/18.png")
    assert found["outputs without a class"]["count"] == 1
    text = (target / "preview.html").read_text()
    assert all(oddity["text"] in text for oddity in content["oddities"])
    assert text.count('<p class="bad">') == len(content["oddities"])


def test_crops_have_the_ranges_that_are_asked_for(written):
    _, content = written
    area, ratio, magnification = content["crops"]
    for figures in content["crops"]:
        assert sum(figures["counts"]) == 10_000
        quantiles = list(figures["quantiles"].values())
        assert quantiles == sorted(quantiles)
    assert area["asked"] == [0.08, 1.0]
    assert 0.06 < area["quantiles"]["0.0"] < 0.12
    assert area["quantiles"]["1.0"] <= 1
    assert 0.35 < area["quantiles"]["0.5"] < 0.6
    assert 0.9 < ratio["quantiles"]["0.5"] < 1.1
    first = content["grid"][0]
    share = first["window"]["height"] * first["window"]["width"]
    share /= first["width"] * first["height"]
    assert area["quantiles"]["0.0"] <= share <= area["quantiles"]["1.0"]
    side = SIZE / np.sqrt(first["window"]["height"] * first["window"]["width"])
    assert magnification["quantiles"]["0.0"] <= side <= magnification["quantiles"]["1.0"]


def test_the_page_shows_without_a_message(written):
    target, _ = written
    assert shown(target / "preview.html").width == 390
    assert (target / "preview.html").read_text().count("<svg") == 3


def test_blank_pictures_are_told_apart():
    def picture(*colour):
        pixels = np.full((8, 9, 3), colour, np.uint8)
        pixels[3, 4] += np.uint8(2)  # of a JPEG's rounding
        return pixels

    assert blankness(picture(0, 0, 0)) == "black"
    assert blankness(picture(90, 90, 90)) == "grey"
    assert blankness(picture(255 - 2, 253, 253)) == "grey"
    assert blankness(picture(90, 20, 90)) == "constant"
    spotted = picture(90, 90, 90)
    spotted[0, 0] = 100
    assert blankness(spotted) is None
    names = [("a", picture(0, 0, 0)), ("b", spotted), ("c", picture(0, 0, 0))]
    (oddity,) = of_pictures(names)
    assert (oddity.kind, oddity.count, oddity.of) == ("augmented black", 2, 3)
    assert oddity.names == ("a", "c")
    assert oddity.text == "2 of 3 augmented images are all black: a, c"


def test_classes_and_labels_that_are_off(folder):
    index = open_index(folder, progress=False)

    def found(classes, labels, num_classes):
        labelled = replace(index, classes=tuple(classes), labels=np.array(labels))
        return {oddity.kind: oddity for oddity in of_classes(labelled, num_classes)}

    labels = [0] * 10 + [1] * 9
    assert found("ab", labels, 2) == {}
    empty = found("abc", labels, 3)
    assert empty.keys() == {"empty classes"}
    assert empty["empty classes"].names == ("c",)
    missing = found("ab", labels, 5)["outputs without a class"]
    assert missing.text.startswith("3 of 5 outputs of the model (model.num_classes=5) belong to no")
    assert missing.text.endswith("class")
    outside = found("abc", [0] * 10 + [1] * 7 + [2] * 2, 2)
    assert outside.keys() == {"labels out of range"}
    assert (outside["labels out of range"].count, outside["labels out of range"].of) == (2, 19)
    assert outside["labels out of range"].names == ("c",)
    rare = found("abc", [0] * 40 + [1] * 2 + [2] * 3, 3)["imbalance"]
    assert rare.names == ("b",)
    assert "b, has 2" in rare.text
    assert "imbalance" not in found("ab", [0] * 39 + [1] * 2, 2)


def test_an_image_that_cannot_be_decoded_is_counted(tmp_path):
    (tmp_path / "data/class").mkdir(parents=True)
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"data/class/{number}.png")
    index = open_index(tmp_path / "data", progress=False)
    path = tmp_path / "data/class/1.png"
    path.write_bytes(path.read_bytes()[:500])
    (oddity,) = of_images(index, [0, 1])
    assert (oddity.kind, oddity.count, oddity.names) == ("undecodable", 1, (str(path),))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--images", "0"], "--images: give a number from 1 to"),
        (["--photograph", "nowhere.png"], "nowhere.png is no image of"),
        (["optimizer.batch_size=64"], "fewer than optimizer.batch_size=64"),
        (["run.batch_per_device=24"], "run.batch_per_device=24 on 1 process(es) cannot make"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, monkeypatch, tmp_path, arguments, answer):
    with pytest.raises(UserError) as caught:
        _command(monkeypatch, "a3", *_overrides(folder), *arguments, "--output", tmp_path / "out")
    assert answer in str(caught.value)
    assert not list(tmp_path.iterdir())

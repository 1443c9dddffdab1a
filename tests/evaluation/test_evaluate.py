"""`dali-rsb evaluate`: which weights on which images, seen how, and what is written."""

import csv
import hashlib
import json
import re
import socket

import numpy as np
import pytest
import torch
from conftest import SERVER
from PIL import Image
from safetensors.torch import save_file
from small_runs import (
    SIZE,
    assert_equal,
    by_hand,
    logits_by_hand,
    run_evaluate,
    save_run,
    tensors_of,
    write_images,
)
from timm.data import ImageNetInfo

from dali_rsb import evaluate
from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.errors import run_command
from dali_rsb.evaluation.report import COLUMNS, Subject, introduction

ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
NAMES = [f"{name}/{number}.png" for name in ANIMALS for number in range(5)]
RIGHT = [{name.partition("/")[0]} for name in NAMES]


@pytest.fixture
def images(tmp_path):
    """A folder of 35 images in seven classes."""
    write_images(tmp_path / "data", NAMES)
    return tmp_path / "data"


def expected(images, seed, classes=ANIMALS, flip=False):
    tensors, paths = tensors_of(len(classes), seed), [images / name for name in NAMES]
    logits = logits_by_hand(tensors, paths)
    if flip:
        logits = (logits + logits_by_hand(tensors, paths, flip=True)) / 2
    return by_hand(logits, classes, RIGHT)


def test_a_run_alone_is_evaluated_on_its_own_images(monkeypatch, tmp_path, images, capsys):
    run = save_run(tmp_path / "run", ANIMALS, seed=1, ema_seed=2, data={"val": str(images)})
    model, ema = run_evaluate(monkeypatch, tmp_path, run)
    assert (model["kind"], ema["kind"]) == ("model", "EMA")
    assert_equal(model, expected(images, 1))
    assert_equal(ema, expected(images, 2))
    printed = capsys.readouterr().out
    first, *rest = " ".join(printed.split()).partition(" on ")
    assert first == f"1 {run}/best.pt: timm:linear_of_48, epoch 3, model and EMA, 7 classes"
    assert rest[1].startswith(f"{images}: 35 images images: centre crop/shorter edge 32/32 bicubic")
    # The old way to name other images.
    again = run_evaluate(monkeypatch, tmp_path, run / "best.pt", f"data.val={images}")
    assert [{**row, "set": None} for row in again] == [{**row, "set": None} for row in (model, ema)]


def test_a_path_of_many_columns_is_printed_whole():
    """For it is copied from the terminal: lines break at blanks alone."""
    path = f"/runs/{'long-name/' * 9}best.pt"
    subject = Subject(1, path, path, "resnet50", 3.0, ("model", "EMA"), tuple(ANIMALS))
    lines = introduction([subject], []).splitlines()
    assert len(path) > COLUMNS
    assert [path in line for line in lines].count(True) == 1
    assert all(len(line) <= COLUMNS for line in lines if path not in line)


def test_a_run_with_a_split_is_evaluated_on_the_part_that_validates(monkeypatch, tmp_path, images):
    data = {"train": str(images), "val_fraction": 0.4}
    run = save_run(tmp_path / "run", ANIMALS, data=data)
    rows = run_evaluate(monkeypatch, tmp_path, run)
    digests = [hashlib.sha256(name.encode()).digest()[:8] for name in NAMES]
    chosen = [i for i in range(35) if int.from_bytes(digests[i], "big") < 0.4 * 2**64]
    assert 5 < len(chosen) < 30
    logits = logits_by_hand(tensors_of(7), [images / NAMES[i] for i in chosen])
    assert_equal(rows[0], by_hand(logits, ANIMALS, [RIGHT[i] for i in chosen]))
    (others,) = run_evaluate(monkeypatch, tmp_path, run, images)  # named: all of them
    assert_equal(others, expected(images, 0))


def test_several_weights_at_once_are_as_one_by_one(monkeypatch, tmp_path, images):
    """Of other orders of classes, sizes and means too; each size is decoded once."""
    runs = [
        save_run(tmp_path / "a", ANIMALS, seed=1, ema_seed=2),
        save_run(
            tmp_path / "b",
            ANIMALS[::-1],
            seed=3,
            data={"mean": (0.1, 0.2, 0.3)},
            **{"every": 3, "batch_per_device": 5},  # images look the same by them
        ),
        save_run(tmp_path / "c", ANIMALS, seed=4, size=16, crop_ratio=0.5),
        save_run(tmp_path / "d", ANIMALS, seed=5, batch_per_device=3, interpolation="bilinear"),
    ]
    passes = []
    build = evaluate.eval_loader

    def counted(config, *arguments):
        passes.append((config.evaluation.size, config.evaluation.interpolation))
        return build(config, *arguments)

    monkeypatch.setattr(evaluate, "eval_loader", counted)
    together = run_evaluate(monkeypatch, tmp_path, *runs, images)
    assert passes == [(32, "bicubic"), (16, "bicubic"), (32, "bilinear")]
    alone = []
    for number, run in enumerate(runs, start=1):
        for row in run_evaluate(monkeypatch, tmp_path, run, "--data", images):
            alone.append({**row, "weights": number})
    assert len(alone) == 5
    together.sort(key=lambda row: row["weights"])
    assert_same_rows(together, alone)
    paths = [images / name for name in NAMES]
    logits = logits_by_hand(tensors_of(7, 3), paths, mean=(0.1, 0.2, 0.3))
    assert_equal(together[2], by_hand(logits, ANIMALS[::-1], RIGHT))


def assert_same_rows(rows, others):
    """Numbers to rounding, everything else exactly."""
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert other[key] == (value if isinstance(value, str) else pytest.approx(value)), key


def test_flip_averages_the_logits_with_the_mirror_images(monkeypatch, tmp_path, images, capsys):
    run = save_run(tmp_path / "run", ANIMALS)
    (row,) = run_evaluate(monkeypatch, tmp_path, run, images, "--flip")
    assert row["flip"]
    assert_equal(row, expected(images, 0, flip=True))
    assert abs(row["loss"] - expected(images, 0)["loss"]) > 0.01
    assert "averaged with those of the mirror" in " ".join(capsys.readouterr().out.split())


def test_sizes_and_crop_ratio_are_those_of_the_options(monkeypatch, tmp_path, images):
    run = save_run(tmp_path / "run", ANIMALS)
    rows = run_evaluate(
        monkeypatch, tmp_path, run, images, "--size", "32,16,32", "--crop-ratio", "0.5"
    )
    assert [(row["size_px"], row["resize_px"]) for row in rows] == [(32, 64), (16, 32)]
    (given,) = run_evaluate(
        monkeypatch, tmp_path, run, images, "evaluation.size=16", "evaluation.crop_ratio=0.5"
    )
    assert_same_rows(rows[1:], [given])


@pytest.mark.parametrize(("use", "seeds"), [("model", [1]), ("ema", [2]), ("both", [1, 2])])
def test_which_weights_of_a_checkpoint(monkeypatch, tmp_path, images, use, seeds):
    run = save_run(tmp_path / "run", ANIMALS, seed=1, ema_seed=2)
    rows = run_evaluate(monkeypatch, tmp_path, run, images, "--use", use)
    for row, seed in zip(rows, seeds, strict=True):
        assert_equal(row, expected(images, seed))


def test_pillows_pixels_stand_beside_dalis(monkeypatch, tmp_path, photo_folder, capsys):
    """Photographs of all shapes, which are resized: two decoders, nearly the same pixels."""
    run = save_run(tmp_path / "run", ["n00000000", "n00000001"], crop_ratio=0.875)
    dali, pillow = run_evaluate(monkeypatch, tmp_path, run, photo_folder, "--decoder", "pillow")
    assert (dali["decoder"], pillow["decoder"]) == ("DALI", "Pillow")
    assert pillow["same_as_dali"] == 14
    assert "the same class by DALI's and Pillow's pixels for 14 of 14" in capsys.readouterr().out
    assert pillow["loss"] == pytest.approx(dali["loss"], abs=0.05)
    assert pillow["loss"] != dali["loss"]
    # By hand from timm's transform.
    from timm.data.transforms_factory import transforms_imagenet_eval

    transform = transforms_imagenet_eval(SIZE, crop_pct=0.875, interpolation="bicubic")
    paths = sorted(photo_folder.glob("*/*.JPEG"))
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    tensors = tensors_of(2)
    pooled = pixels.double().unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(1)
    logits = pooled @ tensors["fc.weight"].double().T
    right = [{path.parent.name} for path in paths]
    assert_equal(pillow, by_hand(logits, ["n00000000", "n00000001"], right))


def test_the_classes_of_each_row_go_to_a_csv_file(monkeypatch, tmp_path, images):
    run = save_run(tmp_path / "run", ANIMALS, seed=1, ema_seed=2)
    file = tmp_path / "classes.csv"
    rows = run_evaluate(monkeypatch, tmp_path, run, images, "--per-class", file)
    with file.open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    logits = logits_by_hand(tensors_of(7, 1), [images / name for name in NAMES])
    chosen = [ANIMALS[i] for i in logits.argmax(1)]
    for line, name in zip(lines[:7], ANIMALS, strict=True):
        answers = [answer for answer, right in zip(chosen, RIGHT, strict=True) if name in right]
        wrong = [answer for answer in answers if answer != name]
        assert (line["class"], line["kind"], line["images"]) == (name, "model", "5")
        assert int(line["right"]) == answers.count(name)
        assert int(line["confusions"]) == max(map(wrong.count, wrong), default=0)
        assert wrong.count(line["commonest_confusion"]) == int(line["confusions"])
    for number, row in enumerate(rows):
        of_row = lines[7 * number : 7 * number + 7]
        assert sum(int(line["right"]) for line in of_row) == round(row["top1"] * 35 / 100)
        mean = np.mean([float(line["top1_percent"]) for line in of_row])
        assert mean == pytest.approx(row["mean_per_class"])


def test_a_suite_is_every_set_of_a_folder(monkeypatch, tmp_path, images, capsys):
    suite = tmp_path / "suite"
    images.rename(tmp_path / "moved")
    suite.mkdir()
    (tmp_path / "moved").rename(suite / "animals")
    flat = write_images(suite / "flat", [f"{i}.png" for i in range(4)])
    (suite / "flat.txt").write_text("".join(f"{path.name} gnu\n" for path in flat))
    (suite / "README.md").write_text("sets")
    (suite / ".cache").mkdir()
    (suite / "empty").mkdir()
    run = save_run(tmp_path / "run", ANIMALS)
    rows = run_evaluate(monkeypatch, tmp_path, run, "--suite", suite)
    assert [(row["set"], row["labelling"]) for row in rows] == [
        ("animals", "all"),
        ("flat", "all"),
        ("flat", "present"),
    ]
    assert_equal(rows[0], expected(suite / "animals", 0))
    assert_equal(rows[1], by_hand(logits_by_hand(tensors_of(7), flat), ANIMALS, [{"gnu"}] * 4))
    assert rows[2]["top1"] == 100
    captured = capsys.readouterr()
    assert "empty is empty and left out" in captured.err
    assert all(len(line) <= 80 for line in captured.out.splitlines() if str(tmp_path) not in line)


def test_weights_without_class_names(monkeypatch, tmp_path, images, capsys):
    torch.save(tensors_of(7, seed=6), tmp_path / "seven.pth")
    (tmp_path / "names.txt").write_text("\n".join(ANIMALS[::-1]))
    options = ["model.name=timm:linear_of_48", f"evaluation.size={SIZE}", "--crop-ratio", "1"]
    options += ["--classes", tmp_path / "names.txt"]
    (row,) = run_evaluate(monkeypatch, tmp_path, tmp_path / "seven.pth", images, *options)
    assert_equal(row, expected(images, 6, ANIMALS[::-1]))
    # A thousand outputs without names are ImageNet's, and that is said.
    synsets = ImageNetInfo().label_names()
    paths = write_images(tmp_path / "in1k", [f"{name}/x.png" for name in synsets[::200]])
    torch.save(tensors_of(1000), tmp_path / "thousand.pth")
    rows = run_evaluate(
        monkeypatch, tmp_path, tmp_path / "thousand.pth", tmp_path / "in1k", *options[:-2]
    )
    right = [{name} for name in synsets[::200]]
    assert_equal(rows[0], by_hand(logits_by_hand(tensors_of(1000), paths), synsets, right))
    assert "taken for ImageNet's synsets" in " ".join(capsys.readouterr().out.split())


def test_a_folder_of_timm_and_a_run_share_a_decode(monkeypatch, tmp_path, images, capsys):
    """The folder names its architecture, its preprocessing and its classes, in another order."""
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(tensors_of(7, seed=7), folder / "model.safetensors")
    config = {
        "architecture": "linear_of_48",
        "num_classes": 7,
        "label_names": ANIMALS[::-1],
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    run = save_run(tmp_path / "run", ANIMALS, seed=1)
    first, second = run_evaluate(monkeypatch, tmp_path, folder, run, images)
    assert_equal(first, expected(images, 7, ANIMALS[::-1]))
    assert_equal(second, expected(images, 1))
    assert f"1 {folder}: timm:linear_of_48, model, 7 classes" in " ".join(
        capsys.readouterr().out.split()
    )


def _as_rank(rank, port, arguments):
    import os
    import sys

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["dali-rsb", *arguments]
    run_command(evaluate.main)


def test_two_processes_give_what_one_gives(monkeypatch, tmp_path, images):
    # 33 images, 17 and 16 of them, in batches of 8; two classes have no image.
    for path in (*(images / "gnu").iterdir(), *(images / "fox").iterdir()):
        path.unlink()
    write_images(tmp_path / "more", [f"{i}.png" for i in range(8)])
    for path in (tmp_path / "more").iterdir():
        path.rename(images / "ant" / f"more{path.name}")
    run = save_run(tmp_path / "run", ANIMALS, seed=1, ema_seed=2)
    options = [run, images, "--decoder", "pillow"]
    one = run_evaluate(monkeypatch, tmp_path, *options)
    assert {row["images"] for row in one} == {33}
    assert len(one) == 8  # two decoders, weights and EMA, among all classes and among five
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path / "two.json"
    arguments = [*map(str, options), "--json", str(output)]
    pair = [SERVER.Process(target=_as_rank, args=(rank, port, arguments)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    assert_same_rows(json.loads(output.read_text())["results"], one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: WEIGHTS"),
        (["nowhere.pt", "data"], "no .* at nowhere.pt"),
        (["half.pt", "data"], "half.pt .*truncated"),
        (["pickle.pt", "data"], "pickle.pt "),
        (["seven.pth", "data"], "seven.pth has 7 outputs and no class names: .* --classes FILE"),
        (["seven.pth", "data", "--classes", "nowhere"], "nowhere does not exist"),
        (
            ["seven.pth", "data", "--classes", "three"],
            "seven.pth has 7 outputs, and --classes names 3: give",
        ),
        (["seven.pth", "data", "--classes", "names"], "does not say its architecture; give model"),
        (
            ["seven.pth", "--classes", "names"],
            "name no validation images of their own: give images",
        ),
        (["run", "data", "model.name=resnet18"], "run is of another architecture"),
        (["run", "data", "model.num_classes=3"], "has 7 classes; leave model.num_classes out"),
        (["run", "nowhere"], "nowhere does not exist"),
        (["run", "run"], "run, the last word, stands for the images and holds weights"),
        (["run", "seven.pth"], "seven.pth, the last word, stands for the images and holds"),
        (["run", "folder"], "folder, the last word, stands for the images and holds weights"),
        (["run", "timm:resnet18"], "timm:resnet18, the last word, stands for the images"),
        (["run", "--data", "data", "data.val=data"], "data.val names the images a second time"),
        (["run", "--data", "data", "--suite", "data"], "not allowed with argument"),
        (["data.val=data"], "no weights are named"),
        (["run", "data", "--size", "12x"], "evaluation.size: input should be a valid integer"),
        (["run", "data", "--size", "0"], "evaluation.size"),
        (["run", "data", "--size", "4"], r"takes no images of 4 px \("),
        (["run", "data", "--crop-ratio", "2"], "evaluation.crop_ratio"),
        (["run", "data", "--classes", "names"], "all weights have class names of their own"),
        (["run", "data", "--use", "ema"], "run has no EMA: leave --use ema out"),
        (["run", "data", "--decoder", "opencv"], "invalid choice"),
        (["run", "data", "--json", "no/x"], "--json no/x is in a folder that does not exist"),
        (["run", "data", "--per-class", "data"], "--per-class data is a folder"),
        (["run", "data", "-b", "64"], "unknown option -b: write evaluation.batch_per_device=N"),
        (["run", "--suite", "run"], "run has no subfolders with images: give --suite a folder"),
        (["run", "--suite", "nowhere"], "nowhere is no folder: give --suite a folder"),
        (["run", "--suite", "data", "--labels", "names"], "--labels is of one flat folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    monkeypatch, tmp_path, images, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    run = save_run(tmp_path / "run", ANIMALS)
    whole = (run / "best.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"code": evaluate.main}, tmp_path / "pickle.pt")
    torch.save(tensors_of(7), tmp_path / "seven.pth")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    (tmp_path / "names").write_text("\n".join(ANIMALS))
    (tmp_path / "three").write_text("a\nb\nc")
    monkeypatch.setattr("sys.argv", ["dali-rsb", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(evaluate.main)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    assert captured.err.count("error: ") == 1
    assert re.search(message, error), error
    assert len(error) <= 300 + len("error: ")

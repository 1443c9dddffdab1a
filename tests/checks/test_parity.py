"""The parity command: its Pillow reference is timm's, and it tells right graphs from wrong ones."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_module
from nvidia.dali import fn
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import functional

from dali_rsb import parity as command
from dali_rsb.checks.parity import comparison as stages_of
from dali_rsb.checks.parity.pillow import apply_operation, crop_resize_flip
from dali_rsb.checks.parity.report import Limits, Stage, _table
from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.randaugment import OPERATIONS
from dali_rsb.errors import UserError, run_command
from dali_rsb.loader.pillow import FILTERS, eval_transform


def _timm_operation(image, name, magnitude, negate, increasing, interpolation, monkeypatch):
    if increasing and f"{name}Increasing" in auto_augment.NAME_TO_OP:
        name = f"{name}Increasing"
    # timm draws the direction itself.
    monkeypatch.setattr(random, "random", lambda: 0.75 if negate else 0.25)
    to_arguments = auto_augment.LEVEL_TO_ARG[name]
    arguments = to_arguments(magnitude, {}) if to_arguments else ()
    operation = auto_augment.NAME_TO_OP[name]
    return operation(image, *arguments, fillcolor=stages_of.FILL, resample=FILTERS[interpolation])


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_the_reference_are_timms(
    photographs, name, increasing, interpolation, monkeypatch
):
    for photograph in photographs[:3]:
        image = photograph.resize((160, 128))
        for magnitude in (0.5, 3.0, 6.3, 7.0, 9.9, 15.0):
            num_bits = int(magnitude / 10 * 4)
            if name == "Posterize" and (4 - num_bits if increasing else num_bits) < 1:
                continue  # Pillow 13 raises where no bit is left
            for negate in (False, True):
                arguments = (image, name, magnitude, negate, increasing)
                expected = _timm_operation(*arguments, interpolation, monkeypatch)
                got = apply_operation(*arguments, stages_of.FILL, interpolation)
                assert np.array_equal(got, expected), (magnitude, negate)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("size_px", "crop_ratio"), [(224, 0.95), (160, 0.875), (64, 1.0)])
def test_evaluation_of_the_reference_is_timms(photographs, size_px, crop_ratio, interpolation):
    transform = transforms_imagenet_eval(
        size_px, crop_pct=crop_ratio, interpolation=interpolation, use_prefetcher=True
    )
    for photograph in photographs:
        got = eval_transform(photograph, EvalGeometry(size_px, crop_ratio), interpolation)
        expected = np.asarray(transform(photograph)).transpose(1, 2, 0)
        assert np.array_equal(got, expected)


def test_crop_of_the_reference_is_torchvisions(photographs):
    for photograph in photographs[:4]:
        got = crop_resize_flip(photograph, (20, 10, 120, 90), 64, "bicubic", flip=True)
        bicubic = functional.InterpolationMode.BICUBIC
        cropped = functional.resized_crop(photograph, 10, 20, 80, 100, [64, 64], bicubic)
        assert np.array_equal(got, functional.hflip(cropped))


def test_the_command_reports_on_a_folder(photo_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(photo_folder, folder)
    images = sorted(folder.rglob("*.JPEG"))
    for image in images[3:-2]:
        image.unlink()
    with Image.open(images[0]) as image:
        image.quantize(64).save(folder / "n00000000" / "0.gif")
    content = images[1].read_bytes()
    images[1].write_bytes(content[: len(content) // 2])

    options = ("--num-images", 20, "--size", 96, "--device", "cpu", "--output", "out")
    result = run_module("dali_rsb.parity", folder, *options, cwd=tmp_path)

    assert "Traceback" not in result.stderr, result.stderr
    assert f"{images[1]} is left out" in result.stderr
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["num_images"] == 5
    assert report["device"] == "cpu"
    assert report["command"].startswith("python -m dali_rsb.parity")
    assert {"pillow", "torch", "nvidia-dali-cuda120"} <= report["versions"].keys()
    stages = {stage["stage"]: stage for stage in report["stages"]}
    assert set(OPERATIONS) < stages.keys()
    assert stages["decode"]["share_exact"] == 1
    assert stages["evaluation transform, 96/0.95 bicubic"]["mean"] < 0.3
    off = {name for name, stage in stages.items() if stage["verdict"] == "off"}
    assert not off
    assert result.returncode == 0
    for name, stage in stages.items():
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{name}  "))
        assert line.endswith(f"  {stage['verdict']}")
        assert len(line) <= 80
    judged = sum(stage["limits"] is not None for stage in stages.values())
    assert result.stdout.splitlines()[-1] == (
        f"all {judged} stages are within their limits; {len(stages) - judged} (-) have no limits; "
        "details in out"
    )
    with Image.open(tmp_path / "out" / "parity.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] > 3 * 224
    assert pixels.std() > 20


@pytest.fixture
def comparison(photo_folder):
    index = open_index(photo_folder, progress=False)
    return stages_of.Comparison(index, np.arange(0, 14, 3), size_px=96, device_id=None)


def test_every_photograph_is_within_the_limits(photo_folder):
    index = open_index(photo_folder, progress=False)
    stages = list(stages_of.Comparison(index, np.arange(14), 128, None).stages())
    assert not [stage.name for stage in stages if stage.verdict == "off"]
    *_, training, evaluation = stages
    assert training.name.startswith("training")
    assert training.mean < 0.4
    # Evaluation has one picture of each image, training several random ones.
    pictures = [stage.figures()["num_values"] / (128 * 128 * 3) for stage in (training, evaluation)]
    assert pictures == [14 * stages_of.NUM_EPOCHS, 14]


def test_a_resize_without_antialias_is_off(comparison, monkeypatch):
    def without_antialias(resize):
        return lambda *arguments, **options: resize(*arguments, **{**options, "antialias": False})

    monkeypatch.setattr("pipelines.decoding.fn.resize", without_antialias(fn.resize))
    monkeypatch.setattr("dali_rsb.loader.cpu_resize.numba_obstacle", lambda: "not installed")
    interpolate = without_antialias(torch.nn.functional.interpolate)
    monkeypatch.setattr("dali_rsb.loader.torch_resize.interpolate", interpolate)
    verdicts = {stage.name: stage.verdict for stage in comparison.stages()}
    assert verdicts["evaluation transform, 96/0.95 bicubic"] == "off"
    assert verdicts["crop + resize + flip, bicubic, roi decode"] == "off"
    assert verdicts["decode"] == "ok"


def test_a_wrong_operation_is_off(comparison, monkeypatch):
    to_operands = stages_of.RandAugmentPolicy.to_operands

    def too_strong(policy, draws, size_px):
        stronger = stages_of.replace(draws, magnitude=draws.magnitude * 1.1)
        return to_operands(policy, stronger, size_px)

    monkeypatch.setattr(stages_of.RandAugmentPolicy, "to_operands", too_strong)
    verdicts = {stage.name: stage.verdict for stage in comparison.stages()}
    assert {verdicts[name] for name in ("Rotate", "Color", "Solarize", "TranslateXRel")} == {"off"}
    assert verdicts["Invert"] == "ok"


def test_figures_of_a_stage():
    stage = Stage("x", Limits(largest=3, mean=1.0, within_2=0.5))
    reference = np.full((2, 2, 3), 100, np.uint8)
    ours = reference.copy()
    ours[0, 0] = [99, 102, 103]
    stage.add(ours, reference, "a")
    assert (stage.largest, stage.mean) == (3, 0.5)
    assert [stage.share_within(n) for n in (0, 1, 2, 3)] == [9 / 12, 10 / 12, 11 / 12, 1]
    assert stage.verdict == "ok"
    for limits in (Limits(largest=2), Limits(mean=0.5), Limits(within_2=0.92)):
        off = Stage("x", limits, stage.counts)
        assert off.verdict == "off"
        table = _table([stage, off, Stage("y", None, stage.counts)], Path("out"))
        assert table.endswith("\n\nOFF: 1 of 2 stages (x); 1 (-) have no limits; see out")
    assert Stage("x", None, stage.counts).verdict == "-"


@pytest.mark.parametrize(("limit", "code"), [(3, 0), (2, 1)])
def test_the_exit_code_says_whether_a_stage_is_off(
    limit, code, photo_folder, tmp_path, monkeypatch
):
    stage = Stage("x", Limits(largest=limit))
    grey = np.full((2, 2, 3), 100, np.uint8)
    stage.add(grey + np.uint8(3), grey, "a")
    monkeypatch.setattr(stages_of.Comparison, "stages", lambda self: iter([stage]))
    monkeypatch.setattr(command, "console_messages", contextlib.nullcontext)
    arguments = [photo_folder, "--device", "cpu", "--output", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["parity", *map(str, arguments)])
    with pytest.raises(SystemExit) if code else contextlib.nullcontext() as caught:
        command.main()
    assert (caught.value.code if caught else 0) == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_folder"], "does not exist"),
        ([".", "--num-images", "0"], "--num-images"),
        ([".", "--size", "2"], "--size"),
        (["damaged"], "Pillow can decode none of 1 images"),
        (["good", "--output", "file"], "give --output"),
    ],
)
def test_mistakes_are_one_line(arguments, message, photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photograph = next(photo_folder.rglob("*.JPEG"))
    for folder in ("good", "damaged"):
        (tmp_path / folder / "class").mkdir(parents=True)
        shutil.copy(photograph, tmp_path / folder / "class" / "1.jpg")
    damaged = tmp_path / "damaged" / "class" / "1.jpg"
    damaged.write_bytes(photograph.read_bytes()[:5000])
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["parity", *arguments, "--device", "cpu"])
    monkeypatch.setattr(command, "console_messages", contextlib.nullcontext)
    monkeypatch.setattr(
        stages_of.Comparison, "stages", lambda self: iter([self._decode("decode", "host", None)])
    )
    with pytest.raises(SystemExit) as caught:
        run_command(command.main)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in next(line for line in lines if line.startswith("error: "))


def test_a_gpu_that_is_not_there_is_a_mistake(monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    assert command._device_id("auto") is None
    with pytest.raises(UserError, match="--device cpu"):
        command._device_id("cuda")

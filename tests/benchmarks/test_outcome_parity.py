"""Outcomes beside timm's: equal words, disjoint images, runs that are kept, means and errors."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SERVER

from benchmarks import outcome_parity, photographs
from benchmarks.outcome_parity import IMAGES, SETTINGS, Runs, summarize
from dali_rsb.config import load_config
from dali_rsb.errors import UserError

# timm's option, and how our key has its value.
SAME = {
    "--img-size": lambda config: config.augment.size,
    "--batch-size": lambda config: config.optimizer.batch_size,
    "--num-classes": lambda config: config.model.num_classes,
    "--hflip": lambda config: config.augment.hflip,
    "--opt": lambda config: config.optimizer.name,
    "--lr": lambda config: config.optimizer.lr,
    "--weight-decay": lambda config: config.optimizer.weight_decay,
    "--momentum": lambda config: config.optimizer.momentum,
    "--smoothing": lambda config: config.loss.smoothing,
    "--bce-target-thresh": lambda config: config.loss.target_threshold,
    "--mixup": lambda config: config.mixing.mixup,
    "--cutmix": lambda config: config.mixing.cutmix,
    "--aa": lambda config: config.augment.randaugment,
    "--train-interpolation": lambda config: config.augment.interpolation,
    "--interpolation": lambda config: config.evaluation.interpolation,
    "--crop-pct": lambda config: config.evaluation.crop_ratio,
    "--epochs": lambda config: config.schedule.epochs,
    "--warmup-epochs": lambda config: config.schedule.warmup_epochs,
    "--warmup-lr": lambda config: config.schedule.warmup_lr,
    "--min-lr": lambda config: config.schedule.min_lr,
    "--val-interval": lambda config: config.evaluation.every,
    "--model": lambda config: config.model.name.removeprefix("timm:"),
    "--device": lambda config: config.run.device,
}
WITHOUT_A_KEY = {"--workers", "--sched", "--sched-on-updates", "--bce-loss"}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_both_programs_are_told_the_same(setting):
    config = load_config(ROOT / "configs/a3.yaml", setting.arguments.ours.split())
    given = {}
    for word in setting.arguments.timms.split():
        if word.startswith("--"):
            given[word] = []
        else:
            given[list(given)[-1]].append(word)
    assert given.pop("--scale") == [str(value) for value in config.augment.scale]
    for option, pair in (("--mean", config.data.mean), ("--std", config.data.std)):
        assert tuple(map(float, given.pop(option))) == pair
    for option in set(given) - WITHOUT_A_KEY:
        (value,) = given[option]
        ours = SAME[option](config)
        assert type(ours)(value) == ours, option
    assert (config.loss.name == "bce") == ("--bce-loss" in given)
    assert config.mixes == ("--mixup" in given)
    # timm's train.py ignores --bce-loss where it neither mixes nor smooths.
    assert config.mixes or float(given["--smoothing"][0]) > 0
    assert (config.model.drop_path, config.model.dropout, config.ema.decay) == (0, 0, None)


def test_test_images_share_no_pixel_with_training_images(monkeypatch):
    width, height = 5 * photographs.TILE_PX + 7, 3 * photographs.TILE_PX + 40
    generator = np.random.default_rng(0)
    covered = np.zeros((2, height, width), bool)
    for colour in (0, 1):
        corners = list(photographs.tiles(width, height, colour))
        assert len(corners) in (7, 8)
        for corner in corners * 20:
            left, top, right, bottom = photographs.box_in(corner, generator)
            assert photographs.LEAST_PX <= right - left == bottom - top <= photographs.TILE_PX
            covered[colour, top:bottom, left:right] = True
    assert covered[:, : 3 * photographs.TILE_PX, : 5 * photographs.TILE_PX].any(0).mean() > 0.99
    assert not covered.all(0).any()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """80 cuts of 32 px to train on, 20 to test: two updates an epoch."""
    few = replace(IMAGES["photographs"], write=lambda root: photographs.write_cuts(root, 4, 1, 32))
    monkeypatch.setitem(IMAGES, "photographs", few)
    setting = replace(SETTINGS[-1], epochs=1)
    assert setting.images == "photographs"
    source = os.environ.get("TIMM_SOURCE")
    return Runs(tmp_path, None if source is None else Path(source), SERVER), setting


def test_a_run_is_trained_once(tiny, tmp_path, monkeypatch):
    runs, setting = tiny
    top1 = [runs.accuracy("dali_rsb", setting, seed) for seed in (0, 1)]
    assert all(0 <= value <= 100 and value % 5 == pytest.approx(0) for value in top1)  # of 20
    assert len(list((tmp_path / "photographs/train").glob("*/*.jpg"))) == 80
    logs = sorted(path.name for path in (tmp_path / "runs").glob("*.log"))
    assert logs == [f"photographs-A3-dali_rsb-{seed}.log" for seed in (0, 1)]

    def again(*_):
        raise AssertionError("trains again")

    monkeypatch.setattr(runs, "_train", again)
    assert [runs.accuracy("dali_rsb", setting, seed) for seed in (0, 1)] == top1
    with pytest.raises(AssertionError, match="trains again"):
        runs.accuracy("dali_rsb", replace(setting, epochs=2), 0)  # that was another run


def test_timms_program_runs_by_our_words(tiny):
    if "TIMM_SOURCE" not in os.environ:
        pytest.skip("TIMM_SOURCE does not name a checkout")
    runs, setting = tiny
    assert 0 <= runs.accuracy("timm", setting, 0) <= 100


def test_a_program_that_fails_is_named_with_its_log(tmp_path):
    runs = Runs(tmp_path, tmp_path, SERVER)  # which holds no train.py
    (tmp_path / "photographs").mkdir()
    with pytest.raises(UserError, match=r"timm failed with exit code 1: see .*timm-3\.log"):
        runs.accuracy("timm", SETTINGS[-1], 3)
    assert "train.py" in (tmp_path / "runs/photographs-A3-timm-3.log").read_text()


def test_means_and_standard_errors_by_hand():
    found = summarize({"x": {"dali_rsb": [90.0, 92.0], "timm": [88.0, 91.0]}})["x"]
    assert found["mean"] == {"dali_rsb": 91.0, "timm": 89.5}
    assert found["difference"] == 1.5
    assert found["standard_error"] == pytest.approx(math.sqrt(2.0 / 2 + 4.5 / 2))
    assert found["within_two_standard_errors"]
    assert not summarize({"x": {"dali_rsb": [90.0, 90.1], "timm": [88, 88.1]}})["x"][
        "within_two_standard_errors"
    ]


@pytest.mark.parametrize("arguments", [["--seeds", "1"], []])
def test_what_the_comparison_needs_is_said(arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["outcome_parity", *arguments])
    monkeypatch.delenv("TIMM_SOURCE", raising=False)
    if arguments:
        monkeypatch.setenv("TIMM_SOURCE", "somewhere")
    with pytest.raises(UserError, match="at least 2" if arguments else "TIMM_SOURCE is not set"):
        outcome_parity.main()


def test_the_picture_holds_every_run(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.outcome_plot import draw

    top1 = {"dali_rsb": [90.0, 92.0, 91.0], "timm": [88.0, 91.0, 90.0]}
    draw(summarize({"digits, A3": top1, "photographs, A3": top1}), tmp_path / "a.svg")
    draw(summarize({"digits, A3": top1, "photographs, A3": top1}), tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    for colour in ("#1b7837", "#762a83"):
        assert text.count(f"fill: {colour}") >= 2

"""The training command from end to end on the digits: files, resume, several processes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, run_module

from dali_rsb.config import load_config
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
CPU = Processes(torch.device("cpu"))


@pytest.fixture(scope="module")
def small(digits):
    """Overrides that make the quickstart small: 16 px, 7 updates an epoch, 2 epochs."""
    return [
        f"data.digits={digits}",
        "augment.size=16",
        "evaluation.size=16",
        "evaluation.batch_per_device=128",
        "optimizer.batch_size=192",
        "run.batch_per_device=96",
        "schedule.epochs=2",
        "schedule.warmup_epochs=1",
        "data.threads=1",
        "run.device=cpu",
        "run.log_every=3",
    ]


def _train(folder: Path, overrides, resume=None):
    config = load_config(QUICKSTART, [*overrides, f"run.dir={folder}"])
    folder.mkdir(exist_ok=True)
    build_trainer(config, CPU, resume).run(folder)
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole_run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, _train(folder, small)


def test_run_folder_holds_metrics_log_and_checkpoints(whole_run):
    folder, _ = whole_run
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in (
        "train_loss",
        "lr",
        "img_per_s",
        "data_wait_percent",
        "val_top1",
        "val_top5",
        "ema_top1",
    ):
        assert all(float(row[name]) >= 0 for row in rows), name
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert 0 <= float(rows[-1]["val_top1"]) <= float(rows[-1]["val_top5"]) <= 100
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").open()]
    assert kinds == (["update"] * 3 + ["epoch"]) * 2
    log = (folder / "train.log").read_text()
    # 1,438 images are 7 updates of 192 and 94 more.
    assert "an epoch is 7 updates; 94 images are left over, others each time" in log
    assert all(f"epoch {done}/2  loss " in log for done in ("0.42", "1.00", "2.00"))
    assert (folder / "best.pt").exists()


def test_a_run_that_is_at_its_end_says_that_nothing_is_left(whole_run, small, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole_run[0], folder)
    _train(folder, [*small, "evaluation.size=24"], resume=folder / "last.pt")
    said = [record.getMessage() for record in caplog.records]
    assert any("the run is at its end, 14 updates: nothing is left to train" in m for m in said)
    # What the best accuracy was measured with has changed: the log says so too.
    assert "resuming with evaluation.size=24, was 16" in said


def _assert_same(a, b, path="state"):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            _assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.mark.parametrize("steps", [7, 9], ids=["after an epoch", "inside an epoch"])
def test_resuming_gives_the_same_bits_as_never_stopping(whole_run, small, tmp_path, steps):
    _, expected = whole_run
    _train(tmp_path, [*small, f"run.max_steps={steps}"])
    got = _train(tmp_path, small, resume=tmp_path / "last.pt")
    for part in ("model", "ema", "optimizer", "updates_done"):
        _assert_same(got[part], expected[part], part)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_resuming_names_what_changed_and_not_what_is_new(whole_run, small, tmp_path, caplog):
    state = torch.load(whole_run[0] / "last.pt", weights_only=True)
    del state["config"]["optimizer"]["layer_decay"], state["config"]["augment"]["random_erasing"]
    torch.save(state, tmp_path / "older.pt")
    changed = ["augment.random_erasing=0.5", "optimizer.weight_decay=0.3"]
    trainer = build_trainer(load_config(QUICKSTART, [*small, *changed]), CPU, tmp_path / "older.pt")
    assert [record.getMessage() for record in caplog.records if "was" in record.msg] == [
        "resuming with augment.random_erasing=0.5, was 0.0",
        "resuming with optimizer.weight_decay=0.3, was 0.02",
    ]
    assert trainer.step.optimizer.param_groups[1]["weight_decay"] == 0.3


def test_erasing_resumes_inside_an_epoch(whole_run, small, tmp_path):
    erasing = [*small, "augment.random_erasing=0.8", "augment.erase_count=2"]
    (tmp_path / "whole").mkdir()
    expected = _train(tmp_path / "whole", [*erasing, "run.max_steps=4"])
    assert not torch.equal(expected["model"]["fc.weight"], whole_run[1]["model"]["fc.weight"])
    _train(tmp_path, [*erasing, "run.max_steps=2"])
    got = _train(tmp_path, [*erasing, "run.max_steps=4"], resume=tmp_path / "last.pt")
    for part in ("model", "ema", "optimizer", "updates_done"):
        _assert_same(got[part], expected[part], part)


def test_cycles_are_counted_in_epochs(small):
    cycles = ["schedule.cycle_epochs=1", "schedule.cycle_growth=2", "schedule.cycle_decay=0.5"]
    overrides = [*small, *cycles, "schedule.name=restarts", "schedule.epochs=3"]
    schedule = build_trainer(load_config(QUICKSTART, overrides), CPU).schedule
    peak, low = 5e-3, 1e-6
    assert schedule.lr_at(7) == pytest.approx(0.5 * peak)  # the second cycle has epochs 2 and 3
    assert schedule.lr_at(14) == pytest.approx((0.5 * peak + low) / 2)
    assert schedule.lr_at(21) == low


def test_accumulation_makes_the_same_update_as_one_large_batch(small, tmp_path):
    # Norm layers see the device batch, so they are frozen by evaluating the model while training.
    weights = []
    for batch in (192, 96, 64):
        overrides = [*small, f"run.batch_per_device={batch}", "run.max_steps=2"]
        trainer = build_trainer(load_config(QUICKSTART, overrides), CPU)
        for module in trainer.step.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module
                module.training = False
        folder = tmp_path / str(batch)
        folder.mkdir()
        trainer.run(folder)
        weights.append(trainer.step.model.state_dict())
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=1e-4)


def test_the_command_makes_numbered_run_folders_and_resumes(small, tmp_path):
    arguments = [QUICKSTART, *small, "run.max_steps=1"]
    for number, resume in ((1, []), (2, []), (2, ["--resume"])):
        steps = "run.max_steps=2" if resume else "run.max_steps=1"
        result = run_module("dali_rsb.train", *arguments[:-1], steps, *resume, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        name = "quickstart" if number == 1 else f"quickstart-{number}"
        state = torch.load(tmp_path / "runs" / name / "last.pt", weights_only=True)
        assert state["updates_done"] == (2 if resume else 1)
    resolved = yaml.safe_load((tmp_path / "runs" / "quickstart-2" / "config.yaml").read_text())
    assert resolved["optimizer"]["batch_size"] == 192


def test_two_processes_train_and_evaluate_every_image_once(small, tmp_path):
    # 359 validation images, a prime, on two processes in batches of 128: the trainer compares the
    # count with the number of images itself. 192 = 48 per device x 2 x 2 accumulation.
    overrides = [*small, "run.batch_per_device=48", "run.max_steps=2", "run.log_every=1"]
    result = run_module(
        "dali_rsb.train", QUICKSTART, *overrides, f"run.dir={tmp_path / 'run'}", processes=2
    )
    assert result.returncode == 0, result.stderr
    assert "48 a device x 2 device(s) x 2 accumulation" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["kind"] for line in lines] == ["update", "update", "epoch"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(small, tmp_path, number):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "dali_rsb.train", QUICKSTART, *small),
            *("run.log_every=1", f"run.dir={folder}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    log = folder / "metrics.jsonl"
    deadline_s = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert "--resume goes on from there" in error
    state = torch.load(folder / "last.pt", weights_only=True)
    assert 1 <= state["updates_done"] < 14


def test_evaluate_command_gives_the_accuracies_of_the_run(whole_run, tmp_path):
    folder, _ = whole_run
    with (folder / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    result = run_module("dali_rsb.evaluate", folder / "last.pt", "--json", tmp_path / "rows.json")
    assert result.returncode == 0, result.stderr
    model, ema = json.loads((tmp_path / "rows.json").read_text())["results"]
    assert model["top1"] == pytest.approx(float(last["val_top1"]), abs=0.001)
    assert ema["top1"] == pytest.approx(float(last["ema_top1"]), abs=0.001)
    assert model["images"] == 359

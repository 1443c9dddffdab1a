"""Sweeps: what is trained, what a sweep that was killed trains again, and how it is shared out."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import SERVER
from killed_runs import end, kill_at_event, run, write_recipe

from dali_rsb import sweep
from dali_rsb.errors import UserError
from dali_rsb.run.trackers.csv_file import read_epochs
from dali_rsb.sweeps import running
from dali_rsb.sweeps.members import job_of_array, parse_seeds, parse_variation, plan, share

VARY = "optimizer.lr=1e-3,5e-3"
SHORT = ["schedule.epochs=1", "schedule.warmup_epochs=0", "ema.decay=null"]


class Forked:
    """Starts the runs of a sweep in forked processes; notes which."""

    def __init__(self):
        self.started = []
        self.prepare = {}  # by number of the start

    def __call__(self, config, overrides, processes=1):
        (folder,) = (o.partition("=")[2] for o in overrides if o.startswith("run.dir="))
        self.started.append("/".join(folder.split("/")[-2:]))
        prepare = self.prepare.get(len(self.started))
        child = SERVER.Process(target=run, args=(config, folder, prepare, overrides))
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        child.start()
        child.wait = partial(end, child)
        child.send_signal = lambda number: os.kill(child.pid, number)
        return child


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("data"))


@pytest.fixture
def forked(monkeypatch):
    forked = Forked()
    monkeypatch.setattr(running, "start_training", forked)
    return forked


def _sweep(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
    try:
        sweep.main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_killed_sweep_goes_on_and_reports_all_runs(recipe, forked, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    command = [recipe, "--seeds", "0-1", "--vary", VARY, "--output", folder, *SHORT]
    first, second = "optimizer.lr=1e-3", "optimizer.lr=5e-3"
    forked.prepare[2] = partial(kill_at_event, 25, folder / second / "seed-0")
    assert _sweep(monkeypatch, *command) == 128 + signal.SIGKILL
    assert forked.started == [f"{first}/seed-0", f"{second}/seed-0"]
    assert not (folder / second / "seed-0" / "result.json").exists()

    forked.started.clear()
    forked.prepare.clear()
    assert _sweep(monkeypatch, *command) == 0
    assert forked.started == [f"{second}/seed-0", f"{first}/seed-1", f"{second}/seed-1"]
    tree = json.loads((folder / "sweep.json").read_text())
    for settings in tree["settings"]:
        for seed in (0, 1):
            (row,) = read_epochs(folder / settings["setting"] / f"seed-{seed}")
            assert settings["results"][str(seed)] == row.val_top1
    assert tree["metric"] == "val_top1"
    assert tree["comparisons"][second]["num_pairs"] == 2
    assert f"{second} against {first}" in capsys.readouterr().out

    forked.started.clear()
    assert _sweep(monkeypatch, *command, "--metric", "val_loss") == 0
    assert forked.started == []  # only reported again
    values = json.loads((folder / "sweep.json").read_text())["settings"]
    seeds = [{*setting["results"].values()} for setting in values]
    assert all(len(of_seeds) == 2 for of_seeds in seeds)
    assert not seeds[0] & seeds[1]
    with pytest.raises(UserError, match=r"other values of schedule\.epochs; give another --output"):
        _sweep(monkeypatch, *command, "schedule.epochs=2")


def test_a_member_alone_and_one_that_fails(recipe, forked, tmp_path, monkeypatch, capsys, caplog):
    folder = tmp_path / "sweep"
    command = [recipe, "--seeds", "3,5", "--output", folder, *SHORT]
    assert _sweep(monkeypatch, *command, "--member", 1) == 0
    assert forked.started == ["sweep/seed-5"]
    out = capsys.readouterr().out
    assert "1 of 2 runs are finished" in out
    (folder / "seed-3").mkdir()
    (folder / "seed-3" / "last.pt").write_bytes(b"no checkpoint")
    assert _sweep(monkeypatch, *command) == 1
    assert forked.started == ["sweep/seed-5", "sweep/seed-3"]
    assert "seed 3 failed with exit code 2" in caplog.text
    with pytest.raises(UserError, match="the sweep has runs 0 to 1"):
        _sweep(monkeypatch, *command, "--member", 2)


def test_tasks_of_an_array_share_all_members():
    members = plan(Path("/s"), range(5), parse_variation(VARY))
    environment = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4"}
    shares = []
    for task in (4, 5, 6):
        job = job_of_array({**environment, "SLURM_ARRAY_TASK_ID": str(task)})
        shares.append(share(members, *job))
    assert sorted(map(len, shares)) == [3, 3, 4]
    assert {m.folder for part in shares for m in part} == {m.folder for m in members}
    assert job_of_array({}) is None
    with pytest.raises(UserError, match=r"submit with --array=4-6"):
        job_of_array({**environment, "SLURM_ARRAY_TASK_ID": "9"})


def test_members_have_folders_of_their_own():
    variation = parse_variation("data.train=/a/b c,/a/b_c,/A/B c")
    members = plan(Path("/s"), [0], variation)
    names = {str(member.folder).lower() for member in members}
    assert len(names) == 3
    assert all("/s/data.train=_a_b_c" in name for name in names)
    assert members[0].overrides[:2] == ["data.train=/a/b c", "run.seed=0"]


def test_seeds_and_values_as_they_are_written():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("7,2-3") == [7, 2, 3]
    assert parse_variation("augment.scale=[0.5,1],[0.08, 1]").values == ("[0.5,1]", "[0.08, 1]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3-1"], "write seeds as 0-9"),
        (["--seeds", "a"], "write seeds as 0-9"),
        (["--seeds", "0-99999999"], "write seeds as 0-9"),
        (["--seeds", "1,0-2"], "names a seed twice"),
        (["--seeds", "0", "--vary", "optimizer.lr=1"], "at least two values"),
        (["--seeds", "0", "--vary", "run.seed=1,2"], "use --seeds or --output"),
        (["--seeds", "0", "--vary", "optimizer.lr=1,1"], "names a value twice"),
        (["--seeds", "0", "--vary", "optimizer.lr=1,-1"], r"optimizer\.lr"),
        (["--seeds", "0", "run.seed=3"], r"give --seeds instead"),
        (["--seeds", "0", "--processes", "0"], "at least 1"),
    ],
)
def test_mistakes_are_found_before_the_first_run(recipe, tmp_path, monkeypatch, arguments, message):
    output = tmp_path / "sweep"
    with pytest.raises(UserError, match=message):
        _sweep(monkeypatch, recipe, *arguments, "--output", output)
    assert not output.exists()


def test_the_command_of_a_run_is_one_that_train_takes(recipe, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(running.subprocess, "Popen", commands.append)
    (member,) = plan(tmp_path / "sweep", [7], None)
    running.start_training(str(recipe), [*SHORT, *member.overrides])
    running.start_training(str(recipe), member.overrides, processes=2)
    assert commands[1][1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    from dali_rsb.config.arguments import ConfigParser

    assert commands[0][:3] == [sys.executable, "-m", "dali_rsb.train"]
    parser = ConfigParser("train", None)
    parser.add_resume()
    config, options = parser.read(commands[0][3:])
    assert (config.run.seed, config.run.dir, options.resume) == (7, member.folder, "auto")

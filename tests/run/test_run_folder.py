"""Run folders and their checkpoints: which is made, which is found again."""

from pathlib import Path

import pytest
import yaml

from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.checkpointer import Checkpointer, checkpoint_to_evaluate
from dali_rsb.run.folder import RunFolders


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(folder, updates_done=1):
    checkpointer = Checkpointer(folder)
    checkpointer.save({"updates_done": updates_done})
    return checkpointer.last


def test_the_best_checkpoint_stays_when_a_worse_one_follows(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.last is None
    checkpointer.save({"updates_done": 1}, is_best=True)
    checkpointer.save({"updates_done": 2})
    assert load_checkpoint(checkpointer.last)["updates_done"] == 2
    assert load_checkpoint(checkpoint_to_evaluate(tmp_path))["updates_done"] == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.pt", "last-1.pt", "last.pt"]


def test_other_ranks_write_nothing(tmp_path):
    checkpointer = Checkpointer(None)
    checkpointer.save({"updates_done": 1}, is_best=True)
    assert checkpointer.last is None
    assert not list(tmp_path.iterdir())


def test_runs_are_numbered_and_the_newest_with_a_checkpoint_is_resumed():
    folders = RunFolders("a3")
    assert folders.find_resume("auto") is None
    with pytest.raises(UserError, match="no checkpoint to resume in runs/a3"):
        folders.find_resume("last")
    opened = [folders.open(None, {"name": "a3"}) for _ in range(3)]
    assert opened == [Path("runs/a3"), Path("runs/a3-2"), Path("runs/a3-3")]
    checkpoints = [_run(folder) for folder in opened[:2]]  # the third was stopped before its first
    assert folders.find_resume("last") == folders.find_resume("auto") == checkpoints[1]
    assert folders.find_resume(None) is None
    assert folders.find_resume("runs/a3") == checkpoints[0]
    assert folders.open(checkpoints[0], {"name": "again"}) == opened[0]
    assert yaml.safe_load((opened[0] / "config.yaml").read_text()) == {"name": "again"}
    assert yaml.safe_load((opened[0] / "config-1.yaml").read_text()) == {"name": "a3"}


def test_a_chosen_folder_is_resumed_and_never_overwritten():
    folders = RunFolders("a3", Path("mine"))
    assert folders.open(None, {}) == Path("mine")
    assert folders.open(None, {}) == Path("mine")  # it holds no checkpoint yet
    checkpoint = _run(Path("mine"))
    _run(RunFolders("a3").open(None, {}))
    assert folders.find_resume("last") == checkpoint
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        folders.open(None, {})
    assert folders.open(checkpoint, {}) == Path("mine")


def test_a_path_without_a_checkpoint_is_a_user_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pt"):
        with pytest.raises(UserError, match=r"give a run folder or a \.pt file to --resume"):
            RunFolders("a3").find_resume(str(path))

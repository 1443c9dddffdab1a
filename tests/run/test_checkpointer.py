"""Checkpoints that survive: bit flips, kills between files, full disks, what others load."""

import logging
import math
import random
import resource
import shutil
import threading
import time

import pytest
import timm
import torch

from dali_rsb.errors import UserError
from dali_rsb.run import checkpointer as module
from dali_rsb.run.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from dali_rsb.run.checkpointer import Checkpointer, checkpoint_to_evaluate, newest_intact
from dali_rsb.run.sealed_file import DamagedFileError, read_seal

CONFIG = {"schedule": {"epochs": 5}}


def _state(number=1, **values):
    weights = torch.arange(600.0).reshape(20, 30) + number
    position = {"updates_done": number, "updates_per_epoch": 7, "best_top1": 10.0}
    return {"model": {"w": weights}, "ema": None, "config": CONFIG} | position | values


def _written(folder, *updates):
    checkpointer = Checkpointer(folder, keep=3)
    for number in updates:
        checkpointer.save(_state(number))
    checkpointer.close()
    return [load_checkpoint(path)["updates_done"] for path in sorted(folder.glob("last*.pt"))]


def test_the_last_ones_are_kept_and_the_older_ones_go(tmp_path):
    assert _written(tmp_path, 1, 2) == [1, 2]  # last-1.pt, last.pt
    assert _written(tmp_path, 3, 4, 5) == [4, 3, 5]  # last-1.pt, last-2.pt, last.pt


def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_taken(tmp_path, caplog):
    _written(tmp_path, 1, 2)
    path = tmp_path / "last.pt"
    good = path.read_bytes()
    generator = random.Random(0)
    places = [*range(len(good) - 110, len(good)), 0, 1, 2]  # end record, mark and checksum
    places += generator.sample(range(len(good) - 110), 200 - len(places))
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << generator.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(DamagedCheckpointError, match=r"last\.pt is damaged.*another"):
            load_checkpoint(path)
    assert newest_intact(tmp_path) == tmp_path / "last-1.pt"
    assert [record.getMessage().split(":")[0] for record in caplog.records][-2:] == [
        f"{path} is damaged",
        f"going on from {tmp_path / 'last-1.pt'} instead",
    ]
    path.write_bytes(good)
    assert newest_intact(tmp_path) == path


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"w": torch.tensor([1.0, math.nan])}},
        {"ema": {"w": torch.tensor([math.inf])}},
        {"updates_done": -5},
        {"updates_done": "abc"},
        {"updates_done": 10**9},
        {"updates_per_epoch": 0},
        {"updates_done": 0, "updates_per_epoch": 0},
        {"best_top1": math.nan},
    ],
)
def test_what_cannot_be_right_is_refused_in_writing_and_in_reading(tmp_path, values, caplog):
    _written(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(2, **values))
    checkpointer.close()
    assert "checkpoint not written: it " in caplog.text
    assert load_checkpoint(tmp_path / "last.pt")["updates_done"] == 1
    shutil.copy(tmp_path / "last.pt", tmp_path / "last-1.pt")
    save_checkpoint(tmp_path / "last.pt", _state(**values))
    with pytest.raises(DamagedCheckpointError) as caught:
        load_checkpoint(tmp_path / "last.pt")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert newest_intact(tmp_path) == tmp_path / "last-1.pt"


@pytest.mark.parametrize("cut", [1, 9, 80, 81, 100, 5000])
def test_where_none_is_intact_a_run_does_not_start_again_in_silence(tmp_path, cut):
    _written(tmp_path, 1, 2)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DamagedCheckpointError, match=r"last\.pt"):
        newest_intact(tmp_path)


def test_what_killed_writes_left_is_removed(tmp_path):
    left = [tmp_path / ".last.pt.next", tmp_path / ".best.pt-0123.partial"]
    for path in left:
        path.write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"")
    Checkpointer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine"]


def test_what_reads_otherwise_than_it_was_written_takes_no_place(tmp_path, monkeypatch, caplog):
    _written(tmp_path, 1)
    checkpoint = module.save_checkpoint.__globals__

    def flipped(path):
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        return read_seal(path)

    monkeypatch.setitem(checkpoint, "read_seal", flipped)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(2))
    assert not checkpointer.wait()
    monkeypatch.undo()
    assert "reads otherwise than it was written" in caplog.text
    assert load_checkpoint(tmp_path / "last.pt")["updates_done"] == 1
    checkpointer.save(_state(3))
    assert checkpointer.wait()
    assert load_checkpoint(tmp_path / "last.pt")["updates_done"] == 3


def test_a_full_disk_is_a_warning_until_there_were_too_many(tmp_path, caplog):
    """RLIMIT_FSIZE fails a write in the middle of a file, as a full disk does."""
    _written(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path, max_failures=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        checkpointer.save(_state(2), is_best=True)
        assert not checkpointer.wait()
        assert not checkpointer.has_failed
        checkpointer.save(_state(3))
        assert not checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpointer.has_failed
    assert "2 checkpoints in a row could not be written (File too large)" in checkpointer.failure()
    assert "failure 1 of run.max_checkpoint_failures=2" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    checkpointer.save(_state(4))  # there is room again
    assert checkpointer.wait()
    assert not checkpointer.has_failed
    assert load_checkpoint(tmp_path / "last.pt")["updates_done"] == 4
    # The best one was not lost.
    assert load_checkpoint(checkpoint_to_evaluate(tmp_path))["updates_done"] == 2


def test_a_failed_checkpoint_is_due_again_soon(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "absent")
    assert not checkpointer.is_due
    checkpointer.save(_state())
    assert not checkpointer.wait()
    assert not checkpointer.is_due
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    assert checkpointer.is_due


def test_checkpoints_are_due_by_the_clock(tmp_path):
    checkpointer = Checkpointer(tmp_path, every_s=0.05)
    assert not Checkpointer(tmp_path).is_due
    time.sleep(0.06)
    assert checkpointer.is_due
    checkpointer.save(_state())
    assert not checkpointer.is_due
    checkpointer.close()
    assert not Checkpointer(None, every_s=0.0).is_due


def test_saving_returns_before_its_checkpoint_is_written_and_after_the_one_before(
    tmp_path, monkeypatch
):
    """A disk that is too slow holds the training up, rather than fill the memory with states."""
    may_write = threading.Event()

    def slow(path, state):
        may_write.wait(60)
        save_checkpoint(path, state)

    monkeypatch.setattr(module, "save_checkpoint", slow)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(1))
    assert not (tmp_path / "last.pt").exists()
    threading.Timer(0.05, may_write.set).start()
    checkpointer.save(_state(2))
    assert (tmp_path / "last.pt").exists()
    assert checkpointer.last == tmp_path / "last.pt"
    assert load_checkpoint(checkpointer.last)["updates_done"] == 2


def test_other_programs_load_the_model_that_was_judged(tmp_path):
    trained, ema = (timm.create_model("test_resnet", num_classes=3) for _ in range(2))
    state = _state(model=trained.state_dict(), ema=ema.state_dict())
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state, is_best=True)
    checkpointer.close()
    path = checkpoint_to_evaluate(tmp_path)
    name = "fc.weight"
    expected = ema.state_dict()[name]
    assert not torch.equal(trained.state_dict()[name], expected)
    theirs = torch.load(path)
    for use_ema in (True, False):
        model = timm.create_model("test_resnet", num_classes=3)
        timm.models.load_checkpoint(model, path, use_ema=use_ema)
        assert torch.equal(model.state_dict()[name], expected)
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(path))
    assert torch.equal(model.state_dict()[name], expected)
    model.load_state_dict(theirs["model"])  # as torchvision's references do
    assert torch.equal(theirs["state_dict"][name], expected)
    # The three names share their memory, and we still find what was trained.
    assert path.stat().st_size < 1.3 * (tmp_path / "last.pt").stat().st_size
    assert torch.equal(load_checkpoint(path)["model"][name], trained.state_dict()[name])


def test_a_foreign_file_has_no_seal(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.pt")
    assert read_seal(tmp_path / "plain.pt") is None
    save_checkpoint(tmp_path / "sealed.pt", _state())
    seal = read_seal(tmp_path / "sealed.pt")
    assert seal is not None
    assert seal.startswith("dali_rsb sha256:")
    with (tmp_path / "sealed.pt").open("ab") as file:
        file.write(b"x" * 1000)
    with pytest.raises(DamagedFileError):
        read_seal(tmp_path / "sealed.pt")


def test_a_run_without_a_checkpoint_has_none(tmp_path):
    assert newest_intact(tmp_path) is None
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "last.pt")


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO, "dali_rsb")

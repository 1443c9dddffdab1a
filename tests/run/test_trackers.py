"""Trackers: each gets every row, and the files of a resumed run hold each epoch once."""

import csv
import json
import math
from typing import ClassVar

import pytest

from dali_rsb.run import trackers
from dali_rsb.run.records import EpochRow, RunInfo, UpdateRow
from dali_rsb.run.trackers import csv_file

EPOCH = EpochRow(1, 7, 0.5, 1e-3, 100.0, 2.5, 0, None, None, None, None, None, 1.0)
UPDATE = UpdateRow(1, 3, 2, 7, 0.25, 1e-3, 100.0, 2.5, 0)


def _epoch(number, **values):
    return EpochRow(**{**EPOCH.__dict__, "epoch": number, **values})


def _start(folder, updates_done=0):
    return trackers.start_trackers(RunInfo(folder, {"name": "a"}, 7, updates_done))


def test_every_tracker_gets_every_row_and_is_closed(tmp_path, monkeypatch):
    class Recorder:
        started: ClassVar = []

        def __init__(self, run):
            self.calls = [run]
            self.started.append(self)

        def log_update(self, row):
            self.calls.append(row)

        def log_epoch(self, row):
            self.calls.append(row)

        def close(self):
            self.calls.append("closed")

    monkeypatch.setattr(trackers, "TRACKERS", (Recorder, Recorder))
    running = _start(tmp_path, updates_done=15)
    running.log_update(UPDATE)
    running.log_epoch(EPOCH)
    running.close()
    for tracker in Recorder.started:
        run, *rows = tracker.calls
        assert (run.folder, run.first_epoch) == (tmp_path, 2)
        assert rows == [UPDATE, EPOCH, "closed"]
    assert len(Recorder.started) == 2


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent = trackers.start_trackers(None)
    silent.log_update(UPDATE)
    silent.log_epoch(EPOCH)
    silent.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("updates_done", "kept"), [(0, []), (7, ["1"]), (13, ["1"]), (14, ["1", "2"])]
)
def test_a_resumed_run_drops_the_rows_of_epochs_that_it_trains_again(tmp_path, updates_done, kept):
    before = _start(tmp_path)
    for number in (1, 2):
        before.log_epoch(_epoch(number, train_loss=1 / 3))
    _start(tmp_path, updates_done).log_epoch(_epoch(9))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [*kept, "9"]
    assert all(float(row["train_loss"]) == 0.333333 for row in rows[:-1])
    assert not [*tmp_path.glob("*damaged*")]  # a sound table is not set aside


def test_lines_of_json_say_what_they_are_and_have_no_nan(tmp_path):
    running = _start(tmp_path)
    running.log_update(UPDATE)
    running.log_update(UpdateRow(**{**UPDATE.__dict__, "loss": math.nan, "skipped": 2}))
    running.log_epoch(EPOCH)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["kind"] for line in lines] == ["update", "update", "epoch"]
    assert (lines[0]["loss"], lines[0].get("skipped")) == (0.25, None)
    assert (lines[1]["loss"], lines[1]["skipped"]) == (None, 2)
    assert lines[2]["skipped"] == 0


HEADER = ",".join(EPOCH.__dict__) + "\r\n"
ROW = "1,7,0.5,0.001,100.0,2.5,0,,,,,,1.0\r\n"


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (HEADER + ROW + "2,2", ["1"]),
        (HEADER + ROW + "abc,1\n", ["1"]),
        (HEADER + ROW.strip() + ",9,9\r\n", []),
        (HEADER + ROW + ROW.replace("0.5,", "half,"), ["1"]),
        (HEADER + ROW + ROW.replace("1,7,", "2,7.5,"), ["1"]),
        (HEADER + ROW + "\xe9\n", []),
        ("a,b\n1,2\n", []),
        (HEADER + ROW + "1" * 200_000, ["1"]),
        ("\x00\xff" * 300, []),
    ],
)
def test_damaged_metrics_are_set_aside_and_block_nothing(tmp_path, caplog, content, kept):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content.encode("latin1"))
    _start(tmp_path, updates_done=14).log_epoch(_epoch(3))
    with path.open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [*kept, "3"]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content.encode("latin1")
    assert "kept as metrics.csv.damaged" in caplog.text


def test_a_row_written_twice_stands_once(tmp_path):
    (tmp_path / "metrics.csv").write_text(HEADER + ROW + ROW)
    _start(tmp_path, updates_done=14)
    assert (tmp_path / "metrics.csv").read_bytes().decode() == HEADER + ROW


def test_the_half_line_of_a_killed_run_is_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch"}\n{"kind": "upd')
    _start(tmp_path).log_update(UPDATE)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").open()]
    assert kinds == ["epoch", "update"]


def test_a_full_disk_is_said_once_and_the_rows_come_later(tmp_path, monkeypatch, caplog):
    running = _start(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(csv_file, "atomic_file", _full)
        running.log_epoch(_epoch(1))
        running.log_epoch(_epoch(2))
    assert caplog.text.count("CsvFile cannot write") == 1
    running.log_epoch(_epoch(3))
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def _full(path):
    raise OSError(28, "No space left on device")


def test_the_row_of_an_open_epoch_is_written_again(tmp_path):
    (tmp_path / "metrics.csv").write_text(HEADER + ROW)
    trackers.start_trackers(RunInfo(tmp_path, {}, 7, 7, is_epoch_open=True)).log_epoch(EPOCH)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]

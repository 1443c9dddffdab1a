"""The feed of tracking services: what is held back, sent once, and survives services that fail."""

import json
import threading
import time
from dataclasses import replace

import pytest

from dali_rsb import train
from dali_rsb.errors import UserError
from dali_rsb.run import trackers
from dali_rsb.run.records import EpochRow, RunInfo, SavedCheckpoint, TrackingOptions, UpdateRow
from dali_rsb.run.trackers import feed, services
from dali_rsb.run.trackers.services import SERVICES, Kind, check_installed

EPOCH = EpochRow(1, 4, 0.5, 1e-3, 100.0, 2.5, 0, None, 80.0, None, None, None, 1.0)
UPDATE = UpdateRow(1, 3, 2, 4, 0.25, 1e-3, 100.0, 2.5, 0)


class Server:
    """What a service keeps over several runs of a process, and how its next client behaves."""

    is_live = False

    def __init__(self):
        self.points = []
        self.begun = []
        self.checkpoints = []
        self.closed = 0
        self.fail = lambda place: None

    def make(self, run):
        self.fail("make")
        return Client(self)


class Client:
    def __init__(self, server):
        self._server = server

    def begin(self, last_images):
        self._server.fail("begin")
        self._server.begun.append(last_images)
        last = max((point.images for point in self._server.points), default=-1)
        if self._server.is_live or last > last_images:
            self._server.points.clear()
        return max((point.images for point in self._server.points), default=-1)

    def log(self, points):
        for point in points:
            self._server.fail("log")
            self._server.points.append(point)

    def log_checkpoint(self, path, alias):
        self._server.fail("log_checkpoint")
        self._server.checkpoints.append((alias, path.name))

    def close(self):
        self._server.closed += 1


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setitem(SERVICES, "fake", server)
    return server


def _start(folder, **values):
    run = RunInfo(folder, {"name": "a"}, 4, 0, images_per_update=16, run_id="id")
    return trackers.start_trackers(
        replace(run, tracking=TrackingOptions(("fake",), **values.pop("tracking", {})), **values)
    )


def _update(running, done, **values):
    epoch, update = divmod(done - 1, 4)
    place = {"epoch": epoch + 1, "update": update + 1, "images": 16 * done}
    running.log_update(replace(UPDATE, **place, **values))


def _saved(running, done, is_open=False):
    best = running.folder / "best.pt"
    running.log_checkpoint(SavedCheckpoint(done, is_open, running.folder / "last.pt", best))


@pytest.fixture
def running(server, tmp_path):
    """A run with four updates and their epoch, of which no checkpoint is saved."""
    running = _start(tmp_path)
    running.folder = tmp_path
    for done in (2, 4):
        _update(running, done)
    return running


def _places(server):
    return [point.images for point in server.points]


def _wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("does not happen")


def test_nothing_is_sent_before_a_checkpoint_covers_it(server, running):
    running.close()
    assert server.begun == []


def test_an_epoch_waits_for_its_row_and_is_one_point(server, running):
    _saved(running, 4, is_open=True)
    _wait_for(lambda: _places(server) == [32])
    running.log_epoch(EPOCH)
    _saved(running, 4)
    running.close()
    assert _places(server) == [32, 64]
    values = server.points[-1].values
    assert values["val/top1"] == 80.0
    assert values["epoch/train_loss"] == 0.5
    assert "ema/top1" not in values
    assert list(values)[-1] == "progress/updates"
    assert (values["progress/updates"], values["progress/epochs"]) == (4, 1)
    assert server.closed == 1


def test_a_live_service_gets_points_at_once(server, tmp_path):
    server.is_live = True
    running = _start(tmp_path)
    _update(running, 2)
    _wait_for(lambda: _places(server) == [32])
    running.close()


def test_a_resumed_run_sends_what_the_service_lacks(server, running, tmp_path):
    running.log_epoch(EPOCH)
    _saved(running, 4)
    running.close()
    first = list(server.points)
    del server.points[1:]  # lost, as the process was killed
    resumed = _start(tmp_path, updates_done=4)
    resumed.close()
    assert [(p.images, p.values) for p in server.points] == [(p.images, p.values) for p in first]
    assert server.begun == [-1, 64]


def test_a_run_resumed_earlier_takes_its_later_points_back(server, running, tmp_path):
    running.log_epoch(EPOCH)
    _saved(running, 4)
    running.close()
    resumed = _start(tmp_path, updates_done=3)
    for done in (4, 5):
        _update(resumed, done, loss=0.5)
    resumed.log_checkpoint(SavedCheckpoint(5, False, tmp_path / "last.pt", None))
    resumed.close()
    assert server.begun == [-1, 32]
    assert [(p.images, p.values["train/loss"]) for p in server.points] == [
        (32, 0.25),
        (64, 0.5),
        (80, 0.5),
    ]


@pytest.mark.parametrize(
    ("done", "is_open", "kept"),
    [
        (0, False, []),
        (3, False, [2]),
        (4, True, [2, 4]),
        (4, False, [2, 4, "epoch"]),
        (9, False, [2, 4, "epoch", 6]),
    ],
)
def test_metrics_jsonl_is_rewound(running, tmp_path, done, is_open, kept):
    running.log_epoch(EPOCH)
    _update(running, 6)
    running.close()
    _start(tmp_path, updates_done=done, is_epoch_open=is_open).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    got = [
        "epoch" if line["kind"] == "epoch" else 4 * (line["epoch"] - 1) + line["update"]
        for line in lines
    ]
    assert got == kept


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ("none", []),
        ("end", [("best", "best.pt"), ("latest", "last.pt")]),
        ("all", [("best", "best.pt"), ("latest", "last.pt")] * 2),
    ],
)
def test_checkpoints_are_sent_when_it_is_time(server, tmp_path, checkpoints, expected):
    running = _start(tmp_path, tracking={"checkpoints": checkpoints})
    running.folder = tmp_path
    _update(running, 2)
    _saved(running, 2)
    _wait_for(lambda: server.points and (checkpoints != "all" or len(server.checkpoints) == 2))
    _update(running, 4)
    _saved(running, 4, is_open=True)
    running.close()
    assert server.checkpoints == expected


@pytest.mark.parametrize("place", ["make", "begin", "log", "log_checkpoint"])
@pytest.mark.parametrize("error", [OSError(28, "full"), SystemExit(3), KeyError()])
def test_a_service_that_raises_is_named_once_and_gets_all_later(
    server, running, caplog, place, error
):
    calls = []

    def fail(where):
        if where == place and len(calls) < 2:
            calls.append(where)
            raise error

    server.fail = fail
    _saved(running, 2)
    _wait_for(lambda: calls or place == "log_checkpoint")
    running.log_epoch(EPOCH)
    _saved(running, 4)
    _wait_for(lambda: len(calls) == 2 or place == "log_checkpoint")
    running.close()
    assert caplog.text.count("fake fails") == 1
    if place == "log_checkpoint":  # which only the end sends
        return
    assert _places(server) == [32, 64]
    assert server.checkpoints == [("best", "best.pt"), ("latest", "last.pt")]


def test_a_service_that_hangs_delays_neither_reports_nor_the_end(
    server, running, monkeypatch, caplog
):
    monkeypatch.setattr(feed, "CLOSE_S", 0.2)
    hung = threading.Event()
    server.fail = lambda place: hung.wait(100) if place == "log" else None
    start_s = time.monotonic()
    for done in range(5, 205):
        _update(running, done)
        _saved(running, done)
    running.close()
    took_s = time.monotonic() - start_s
    hung.set()
    assert took_s < 60  # it hangs for 100 s at each point
    assert caplog.text.count("fake has not answered for 0.2 s") == 1


def test_other_ranks_start_no_service(server):
    before = threading.active_count()
    silent = trackers.start_trackers(None)
    silent.log_update(UPDATE)
    silent.close()
    assert threading.active_count() == before


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(SERVICES, "wandb", Kind("wandb_run", "WandbRun", ("no_such_package",)))
    with pytest.raises(UserError, match=r"pip install 'dali_rsb\[wandb\]'"):
        check_installed(["wandb"])
    (tmp_path / "empty").mkdir()
    data = [f"data.train={tmp_path}/empty", f"data.val={tmp_path}/empty"]
    options = ["tracking.trackers=wandb", "run.device=cpu", f"run.dir={tmp_path}/run"]
    monkeypatch.setattr("sys.argv", ["train", "a3", *data, *options])
    with pytest.raises(UserError, match="wandb needs the package no_such_package"):
        train.main()
    assert not (tmp_path / "run").exists()


def test_local_files_lie_in_a_folder_that_may_be_there_already(tmp_path):
    folder = tmp_path / "of" / "services"
    run = RunInfo(tmp_path, {}, 4, 0, tracking=TrackingOptions(folder=folder))
    assert services.local_folder(run) == services.local_folder(run) == folder
    assert folder.is_dir()
    assert services.local_folder(replace(run, tracking=TrackingOptions())) == tmp_path


def test_tensorboard_begins_with_no_point_and_so_gets_all(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from dali_rsb.run.trackers.tensorboard_events import TensorBoard

    service = TensorBoard(RunInfo(tmp_path, {}, 4, 4))
    assert service.begin(last_images=4) == -1  # of batches of one, the first point is at 1
    service.close()


def test_every_service_is_an_extra_and_a_choice():
    from dali_rsb.config.sections import Config

    schema = Config.model_json_schema()["$defs"]["Tracking"]["properties"]["trackers"]
    assert {*schema["items"]["enum"]} == {*services.SERVICES}

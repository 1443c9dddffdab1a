"""Tracking services: what each is given, and that killed runs leave the undisturbed curves."""

import importlib.util
import json
import random
import signal
from functools import partial

import pytest
import tracker_stores as stores
import yaml
from killed_runs import kill_at_event, write_recipe
from tracked_runs import PROJECT, TrackedRuns, kill_in_delivery

from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.trackers.services import SERVICES

HERE = [
    name
    for name, kind in SERVICES.items()
    if all(importlib.util.find_spec(package) for package in kind.packages)
]


def _needs(service):
    reason = f"{service} is not installed"
    return pytest.mark.skipif(service not in HERE, reason=reason)


SERVICE_PARAMS = [pytest.param(name, marks=_needs(name)) for name in SERVICES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def runs(root):
    tracked = TrackedRuns(write_recipe(root), root / "store", HERE)
    yield tracked
    tracked.close()


@pytest.fixture(scope="module")
def undisturbed(runs, root):
    assert runs.end(runs.start(root / "undisturbed")) == 0
    return root / "undisturbed"


@pytest.fixture(scope="module")
def killed(runs, undisturbed):
    """A run that is killed five times: while it trains, and when a service has taken points."""
    folder = undisturbed.parent / "killed"
    generator = random.Random(5)
    kills = [partial(kill_at_event, generator.randint(5, 30), folder) for _ in range(3)]
    kills += [partial(kill_in_delivery, number) for number in (1, 2)]
    for prepare in kills:
        assert runs.end(runs.start(folder, prepare)) == -signal.SIGKILL
    assert runs.end(runs.start(folder)) == 0
    return folder


def _run_id(folder):
    return load_checkpoint(folder / "last.pt")["run_id"]


def _series(service, folder):
    store = folder.parent / "store"
    if service == "tensorboard":
        return stores.tensorboard_series(folder)[0]
    if service == "wandb":
        return stores.wandb_series(stores.wandb_records(store, _run_id(folder)))
    if service == "mlflow":
        return dict(stores.MlflowRun(store, folder.name).series)
    return stores.trackio_series(store, PROJECT, folder.name)


def _approx(series):
    """TensorBoard keeps 32 bits of a value."""
    return {name: [pytest.approx(p, rel=1e-6) for p in points] for name, points in series.items()}


@pytest.mark.parametrize("service", SERVICE_PARAMS)
def test_a_run_killed_five_times_has_the_undisturbed_curves(service, undisturbed, killed):
    expected = stores.without_times(_series(service, undisturbed))
    assert stores.without_times(_series(service, killed)) == expected


@pytest.mark.parametrize("service", SERVICE_PARAMS)
def test_every_number_of_a_run_is_there_at_the_images_seen(service, undisturbed):
    got = _series(service, undisturbed)
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").open()]
    updates = [line for line in lines if line["kind"] == "update"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    expected = {
        "progress/updates": [(32, 2), (64, 4), (96, 6), (128, 8), (160, 10), (192, 12)],
        "progress/epochs": [(32 * n, n / 2) for n in range(1, 7)],
        "train/skipped_updates": [(32 * n, 0) for n in range(1, 7)],
        "train/bad_images": [(32 * n, 0) for n in range(1, 7)],
        "epoch/skipped_updates": [(64 * n, 0) for n in range(1, 4)],
    }
    for key, name in (
        ("loss", "train/loss"),
        ("lr", "train/lr"),
        ("img_per_s", "train/img_per_s"),
        ("data_wait_percent", "train/data_wait_percent"),
    ):
        expected[name] = [(32 * n, row[key]) for n, row in enumerate(updates, 1)]
    for key, name in (
        ("train_loss", "epoch/train_loss"),
        ("img_per_s", "epoch/img_per_s"),
        ("data_wait_percent", "epoch/data_wait_percent"),
        ("val_loss", "val/loss"),
        ("val_top1", "val/top1"),
        ("val_top5", "val/top5"),
        ("ema_top1", "ema/top1"),
        ("ema_top5", "ema/top5"),
    ):
        expected[name] = [(64 * n, row[key]) for n, row in enumerate(epochs, 1)]
    assert got.keys() == expected.keys()
    assert got == _approx(expected)


@_needs("tensorboard")
def test_tensorboard_shows_configuration_and_machine(undisturbed):
    _, texts = stores.tensorboard_series(undisturbed)
    assert "optimizer.lr: 0.005" in texts["configuration"]
    assert "environment.torch: " in texts["configuration"]
    assert 'tags: ["first", "second"]' in texts["run"]


@_needs("wandb")
def test_wandb_gets_configuration_tags_and_checkpoints(undisturbed, killed):
    for folder in (undisturbed, killed):
        records = stores.wandb_records(folder.parent / "store", _run_id(folder))
        (run,) = [record.run for record in records if record.HasField("run")]
        assert (run.project, run.display_name) == (PROJECT, folder.name)
        assert [*run.tags] == ["first", "second"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["optimizer"]["batch_size"] == 16
        assert config["environment"]["devices"] == "1 x CPU"
        assert config["environment"]["cpus_usable"] >= 1
        artifacts = [
            record.request.log_artifact.artifact if record.HasField("request") else record.artifact
            for record in records
            if record.HasField("artifact") or record.request.HasField("log_artifact")
        ]
        # The newest version of an artifact is its latest, whatever else it is.
        assert len({artifact.name for artifact in artifacts}) == 1
        found = [({*a.aliases}, *(entry.path for entry in a.manifest.contents)) for a in artifacts]
        assert found == [({"best", "latest"}, "best.pt"), ({"latest"}, "last.pt")]
        # Until they are sent, their copies lie with the rest, not in the user's home.
        copies = [entry.local_path for a in artifacts for entry in a.manifest.contents]
        assert all(path.startswith(f"{folder.parent}/store/wandb/") for path in copies), copies


@_needs("mlflow")
def test_mlflow_gets_configuration_tags_and_checkpoints(undisturbed, killed):
    for folder in (undisturbed, killed):
        run = stores.MlflowRun(folder.parent / "store", folder.name)
        assert (run.status, run.project) == ("FINISHED", PROJECT)
        assert run.params["optimizer.batch_size"] == "16"
        assert run.params["environment.devices"] == "1 x CPU"
        assert {"first", "second"} <= run.tags.keys()
        assert run.tags["dali_rsb.run_id"] == _run_id(folder)
        config = yaml.safe_load((run.artifacts / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == 5e-3
        for alias, name in (("latest", "last.pt"), ("best", "best.pt")):
            copy = run.artifacts / "checkpoints" / alias / name
            assert copy.read_bytes() == (folder / name).read_bytes()

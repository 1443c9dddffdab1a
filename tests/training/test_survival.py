"""Runs that are killed, stopped and resumed write what the undisturbed run writes.

The runs are children of the tests' fork server, which has imported everything once: a run
takes about a second, where a command would take that many times over to start.
"""

import csv
import os
import random
import signal
import sys
import time
from functools import partial

import numpy as np
import pytest
import timm
import torch
from conftest import SERVER
from PIL import Image

from dali_rsb import train
from dali_rsb.config import load_config
from dali_rsb.errors import run_command
from dali_rsb.run.checkpoint import load_checkpoint

CONFIG = """
data: {{train: {root}/train, val: {root}/val, threads: 1}}
augment: {{size: 32, scale: [0.6, 1.0]}}
mixing: {{mixup: 0.1, cutmix: 1.0}}
model: {{name: "timm:test_resnet", num_classes: 2}}
optimizer: {{name: lamb, batch_size: 16, lr: 5e-3}}
schedule: {{epochs: 3, warmup_epochs: 1}}
ema: {{decay: 0.9}}
evaluation: {{size: 32, batch_per_device: 8}}
run: {{device: cpu, log_every: 2, checkpoint_every: 1, warm_up: false}}
"""
TIMES = ("img_per_s", "data_wait", "time_s")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A configuration file: 64 images of two classes, 4 updates an epoch, 3 epochs."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, number in (("train", 32), ("val", 12)):
        for label, name in enumerate("ab"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(number):
                pixels = generator.integers(0, 160, (40, 40, 3)) + 90 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.jpg")
    path = root / "tiny.yaml"
    path.write_text(CONFIG.format(root=root))
    load_config(path)
    return path


def _count_down(number, event):
    """Make an audit hook that kills this process at the `number`-th event in a run folder."""
    left = [number]
    names = ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir")

    def hook(name, arguments):
        if name in names and event in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _kill_in_write(number):
    """Kill this process inside the `number`-th write of a checkpoint's bytes."""
    from dali_rsb.run.sealed_file import SealingWriter

    left, put = [number], SealingWriter._put

    def half(self, data):
        left[0] -= 1
        if left[0] == 0:
            put(self, data[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, data)

    SealingWriter._put = half


def _run(recipe, folder, prepare=None, overrides=(), rank=0, world_size=1, port=0):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    output = os.open(f"{folder}.{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if prepare is not None:
        prepare()
    sys.argv = ["train", str(recipe), f"run.dir={folder}", *overrides, "--resume", "auto"]
    run_command(train.main)


def _start(recipe, folder, prepare=None, **options):
    process = SERVER.Process(target=_run, args=(recipe, folder, prepare), kwargs=options)
    process.start()
    return process


def _end(process, timeout_s=120):
    process.join(timeout_s)
    assert process.exitcode is not None, "does not end"
    return process.exitcode


def _kill_at_event(number, folder):
    sys.addaudithook(_count_down(number, str(folder) + "/"))


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert _end(_start(recipe, folder)) == 0
    return folder


def _flat(value, place=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{place}/{key}")
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from _flat(item, f"{place}/{key}")
    elif isinstance(value, torch.Tensor):
        yield place, (value.dtype, value.shape, value.numpy().tobytes())
    else:
        yield place, value


def _content(folder):
    """All that a run wrote, but for times and the name of its folder."""
    content = {}
    for name in ("last.pt", "best.pt"):
        state = torch.load(folder / name, weights_only=True)
        del state["config"]["run"]["dir"]
        content |= dict(_flat(state, name))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    content["rows"] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return content


def _assert_same(folder, undisturbed):
    got, expected = _content(folder), _content(undisturbed)
    differing = [key for key in {*got, *expected} if got.get(key) != expected.get(key)]
    assert not differing, (len(differing), sorted(differing)[:5])
    assert not [*folder.glob(".*.partial"), *folder.glob(".*.next")]


def _killed_runs(recipe, undisturbed, tmp_path, kills, seed):
    """Kill runs at `kills` moments in all, let each go on to its end, and compare."""
    generator = random.Random(seed)
    done, series = 0, 0
    while done < kills:
        folder, in_series = tmp_path / f"killed-{seed}-{series}", 0
        series += 1
        while in_series < 8 and done < kills:
            kind = generator.choice(["event", "event", "write", "time"])
            if kind == "event":
                prepare = partial(_kill_at_event, generator.randint(3, 60), folder)
            elif kind == "write":
                prepare = partial(_kill_in_write, generator.randint(1, 900))
            else:
                prepare = None
            process = _start(recipe, folder, prepare)
            if kind == "time":
                process.join(generator.uniform(0.3, 3))
                process.kill()
            if _end(process) == 0:
                break
            assert process.exitcode == -signal.SIGKILL, folder
            in_series, done = in_series + 1, done + 1
        assert _end(_start(recipe, folder)) == 0
        _assert_same(folder, undisturbed)
    return series


def test_killed_runs_write_what_the_undisturbed_one_writes(recipe, undisturbed, tmp_path):
    _killed_runs(recipe, undisturbed, tmp_path, kills=12, seed=0)


@pytest.mark.slow
def test_three_hundred_kills(recipe, undisturbed, tmp_path):
    _killed_runs(recipe, undisturbed, tmp_path, kills=300, seed=1)


def _signal_at(place, number):
    """Send this process a signal at a place of its run, the first time that it comes there."""
    from dali_rsb.evaluation import accuracy, validation
    from dali_rsb.run import checkpointer
    from dali_rsb.training import assembly, trainer

    module, name, calls = {
        "indexing": (assembly, "open_datasets", 1),
        "building": (assembly, "build_step", 1),
        "warm-up": (trainer, "warm_up_training", 1),
        "an update": (trainer.TrainStep, "update", 3),
        "the last update of an epoch": (trainer.TrainStep, "update", 4),
        "the last update of the run": (trainer.TrainStep, "update", 12),
        "evaluation": (accuracy, "_count", 2),
        "the end of an evaluation": (validation.Validation, "evaluate", 1),
        "a checkpoint": (checkpointer, "save_checkpoint", 2),
        "reporting an epoch": (trainer.EpochRow, "__init__", 2),
    }[place]
    left, original = [calls], getattr(module, name)

    def signalling(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    setattr(module, name, signalling)


@pytest.mark.parametrize(
    "place",
    [
        "indexing",
        "building",
        "warm-up",
        "an update",
        "the last update of an epoch",
        "the last update of the run",
        "evaluation",
        "the end of an evaluation",
        "a checkpoint",
        "reporting an epoch",
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_stopped_in_any_phase_loses_nothing(recipe, undisturbed, tmp_path, place, number):
    if place == "warm-up":
        recipe = tmp_path / "warm.yaml"
        text = (undisturbed / "config.yaml").read_text()
        recipe.write_text(text.replace("warm_up: false", "warm_up: true"))
    folder = tmp_path / "run"
    process = _start(recipe, folder, partial(_signal_at, place, number))
    assert _end(process) == 128 + number
    output = (tmp_path / "run.0.out").read_text()
    assert "Traceback" not in output
    assert _end(_start(recipe, folder)) == 0
    if place != "warm-up":  # whose configuration differs
        _assert_same(folder, undisturbed)


def _free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _two(recipe, folder, prepare=None):
    port = _free_port()
    ranks = [{"rank": rank, "world_size": 2, "port": port} for rank in (0, 1)]
    # Only the second process gets the signal: the first must hear of it.
    both = [
        _start(recipe, folder, None if rank["rank"] == 0 else prepare, **rank) for rank in ranks
    ]
    return [_end(process) for process in both]


@pytest.fixture(scope="module")
def undisturbed_pair(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pair"
    assert _two(recipe, folder) == [0, 0]
    return folder


@pytest.mark.parametrize(
    "place", ["warm-up", "an update", "the last update of an epoch", "evaluation"]
)
def test_two_processes_stop_though_one_is_asked(recipe, undisturbed_pair, tmp_path, place):
    if place == "warm-up":
        recipe = tmp_path / "warm.yaml"
        text = (undisturbed_pair / "config.yaml").read_text()
        recipe.write_text(text.replace("warm_up: false", "warm_up: true"))
    folder = tmp_path / "run"
    start_s = time.monotonic()
    codes = _two(recipe, folder, partial(_signal_at, place, signal.SIGTERM))
    assert codes == [143, 143]
    assert time.monotonic() - start_s < 60
    assert _two(recipe, folder) == [0, 0]
    if place != "warm-up":
        _assert_same(folder, undisturbed_pair)


def test_a_run_goes_on_with_another_number_of_processes(recipe, undisturbed_pair, tmp_path):
    """2, then 1, then 2 processes: the same images a device batch, so the same weights."""
    folder = tmp_path / "run"
    assert _two(recipe, folder, partial(_signal_at, "an update", signal.SIGTERM)) == [143, 143]
    stop = partial(_signal_at, "the last update of an epoch", signal.SIGTERM)
    one = _start(recipe, folder, stop, overrides=["run.batch_per_device=8"])
    assert _end(one) == 143
    assert _two(recipe, folder) == [0, 0]
    got, expected = (load_checkpoint(path / "last.pt") for path in (folder, undisturbed_pair))
    assert got["updates_done"] == expected["updates_done"]
    model = timm.create_model("test_resnet", num_classes=2)
    for part in ("model", "ema"):
        for name, _ in model.named_parameters():
            assert torch.equal(got[part][name], expected[part][name]), (part, name)
        for name, statistic in model.named_buffers():
            if statistic.is_floating_point():  # merged, and collected from all images of one
                torch.testing.assert_close(
                    got[part][name], expected[part][name], rtol=0.2, atol=0.1
                )
    assert _losses(folder) == pytest.approx(_losses(undisturbed_pair), rel=1e-5)


def _losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]

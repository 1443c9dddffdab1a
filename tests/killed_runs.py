"""Small runs in processes that a test kills, stops and resumes.

They are children of the tests' fork server, which has imported everything once: a run takes about a
second, where a command would take that many times over to start.
"""

import csv
import os
import signal
import socket
import sys

import numpy as np
import torch
from conftest import SERVER
from PIL import Image

from dali_rsb import train
from dali_rsb.errors import run_command

TIMES = ("img_per_s", "data_wait_percent", "time_s")
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


def write_recipe(root, config=CONFIG, num_val=12):
    """A configuration file: 64 images of two classes, 4 updates an epoch.

    `num_val` images of each class validate; `config` is a text with a place for {root}.
    """
    generator = np.random.default_rng(0)
    for split, number in (("train", 32), ("val", num_val)):
        for label, name in enumerate("ab"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(number):
                pixels = generator.integers(0, 160, (40, 40, 3)) + 90 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.jpg")
    path = root / "tiny.yaml"
    path.write_text(config.format(root=root))
    return path


def count_down(number, event):
    """Make an audit hook that kills this process at the `number`-th event in a run folder."""
    left = [number]
    names = ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir")

    def hook(name, arguments):
        if name in names and event in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def kill_in_write(number):
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


def run(recipe, folder, prepare=None, overrides=(), rank=0, world_size=1, port=0):
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


def start(recipe, folder, prepare=None, **options):
    process = SERVER.Process(target=run, args=(recipe, folder, prepare), kwargs=options)
    process.start()
    return process


def start_two(recipe, folder, prepare=(None, None), overrides=()):
    """Start both processes of a run; `prepare` holds what each does first."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [
        start(
            recipe, folder, prepare[rank], overrides=overrides, rank=rank, world_size=2, port=port
        )
        for rank in range(2)
    ]


def end(process, timeout_s=120):
    process.join(timeout_s)
    assert process.exitcode is not None, "does not end"
    return process.exitcode


def kill_at_event(number, folder):
    sys.addaudithook(count_down(number, str(folder) + "/"))


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
        state.pop("run_id", None)
        content |= dict(_flat(state, name))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    content["rows"] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return content


def assert_same(folder, undisturbed):
    """Two run folders hold the same, but for times, and nothing half written."""
    got, expected = _content(folder), _content(undisturbed)
    differing = [key for key in {*got, *expected} if got.get(key) != expected.get(key)]
    assert not differing, (len(differing), sorted(differing)[:5])
    assert not [*folder.glob(".*.partial"), *folder.glob(".*.next")]

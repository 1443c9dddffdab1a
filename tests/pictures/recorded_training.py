"""A small training whose steps keep every batch that they are given: what replays must equal.

The images are JPEG and PNG files of various sizes, three of which cannot be decoded.
"""

import functools
import os
import socket
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import SERVER
from damage import encoded
from torch import nn

from dali_rsb.errors import UserError

NUM_IMAGES, NUM_CLASSES = 320, 4
# Numbers of the images that are bad: alone, and two in a row; their headers are intact.
BAD = (17, 100, 101)
SIZE, GLOBAL_BATCH, EPOCHS, OFF_EPOCH = 32, 32, 8, 6
PER_EPOCH = 256 // GLOBAL_BATCH  # repeated augmentation rounds an epoch down to 256

FIRST, SECOND = 52, 58  # updates after which the first two sessions end, within epochs
LOST = 62  # the update whose loss is not finite, in the third session


def write_images(root):
    """Class folders of noise, to train and to validate; returns the bad files of the former."""
    for label in range(NUM_CLASSES):
        folder = root / "val" / f"class{label}"
        folder.mkdir(parents=True)
        (folder / "only.jpg").write_bytes(encoded(seed=1000 + label))
    bad = []
    for number in range(NUM_IMAGES):
        folder = root / "train" / f"class{number * NUM_CLASSES // NUM_IMAGES}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (40 + number % 37, 36 + number % 29)
        is_png = number in BAD or number % 50 == 0
        data = encoded(*size, "PNG" if is_png else "JPEG", seed=number)
        path = folder / f"{number:03d}.{'png' if is_png else 'jpg'}"
        if number in BAD:
            data = data[: len(data) // 2]
            bad.append(path)
        path.write_bytes(data)
    return bad


def write_config(path, images, **sections):
    """A configuration with all that a replay has to follow; `sections` are merged into it."""
    tree = {
        "data": {"train": str(images / "train"), "val": str(images / "val"), "threads": 1}
        | {"max_bad_fraction": 0.1},
        "augment": {"size": SIZE, "repeats": 2, "randaugment": "rand-m7-mstd0.5-inc1"}
        | {"random_erasing": 0.3},
        "mixing": {"mixup": 0.4, "cutmix": 1.0, "prob": 0.8, "mode": "pair"}
        | {"off_epoch": OFF_EPOCH},
        "model": {"name": "resnet18", "num_classes": NUM_CLASSES},
        "optimizer": {"batch_size": GLOBAL_BATCH, "name": "sgd", "lr": 0.01},
        "schedule": {"epochs": EPOCHS, "warmup_epochs": 0, "warmup_lr": 0.001},
        "evaluation": {"every": EPOCHS, "size": SIZE, "batch_per_device": 4},
        "run": {"device": "cpu", "batch_per_device": 8, "seed": 3, "warm_up": False}
        | {"log_every": 4},
    }
    for name, values in sections.items():
        tree[name] |= values
    path.write_text(yaml.safe_dump(tree))
    return path


class Tiny(nn.Module):
    """Takes no time."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))


def record(kept, patch, rank=0):
    """Let models be tiny, and every step keep its batches: (update from 1, rank) -> batches."""
    from dali_rsb.training import assembly
    from dali_rsb.training.step import TrainStep

    patch.setattr(assembly, "build_model", lambda config, device: Tiny(config.num_classes))
    mixed = TrainStep._mixed

    def keeping(self, batch):
        result = mixed(self, batch)
        fields = (result.images, result.labels, result.partner_labels, result.lam)
        kept.setdefault((self.updates_done + 1, rank), []).append([t.clone() for t in fields])
        return result

    patch.setattr(TrainStep, "_mixed", keeping)


def train(patch, *arguments):
    """The command, in this process."""
    from dali_rsb import train as command

    patch.setattr("sys.argv", ["dali-rsb train", *map(str, arguments)])
    command.main()


def as_rank(rank, port, world_size, output, arguments):
    """Be one of the processes of a training; its batches go to a file."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        record(kept, patch, rank)
        train(patch, *arguments)
    torch.save(kept, output)


def lose(patch, update):
    """Let the loss of an update be infinite, in its last micro-batch, with finite gradients."""
    from dali_rsb.training.step import TrainStep

    loss = TrainStep._loss

    def losing(self, batch):
        return loss(self, batch) + (torch.inf if self.updates_done + 1 == update else 0)

    patch.setattr(TrainStep, "_loss", losing)


@functools.cache
def recorded_run(root):
    """A run of three sessions, and all batches that its steps were given.

    Two processes begin it, one goes on with another mixing, and again until a loss is not finite.
    """
    root.mkdir()
    bad = write_images(root / "images")
    config = write_config(root / "small.yaml", root / "images")
    folder, kept = root / "run", {}
    arguments = [config, f"run.dir={folder}"]
    for output in _two_processes(root, [*arguments, f"run.max_steps={FIRST}"]):
        kept |= torch.load(output)
    arguments += ["mixing.mode=elem", "run.batch_per_device=16", "--resume"]
    with pytest.MonkeyPatch.context() as patch:
        record(kept, patch)
        train(patch, *arguments, f"run.max_steps={SECOND}")
        lose(patch, LOST)
        with pytest.raises(UserError) as caught:
            train(patch, *arguments, f"run.max_steps={SECOND + 10}")
    return SimpleNamespace(
        folder=folder, images=root / "images/train", bad=bad, kept=kept, message=str(caught.value)
    )


def _two_processes(root, arguments):
    """Train; returns the files with the batches of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [root / f"{rank}.pt" for rank in range(2)]
    processes = [
        SERVER.Process(target=as_rank, args=(rank, port, 2, output, arguments))
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    return outputs

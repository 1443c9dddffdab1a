"""A run to export, and what the tests of exports and averages share."""

import torch

from dali_rsb import __main__ as command_line
from dali_rsb.config import Config
from dali_rsb.models import create_model
from dali_rsb.run.checkpoint import save_checkpoint, with_judged_weights

ARCHITECTURE = "timm:test_resnet"  # 0.5 million parameters
CLASSES = ["n00000000", "n00000001"]  # those of the fixture photo_folder
SIZE = 64


def state_dict(seed, architecture=ARCHITECTURE):
    """Weights with norm statistics as after a training, not those of a new model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = create_model(architecture, len(CLASSES)).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.02)
        else:
            tensor.fill_(seed + 1)
    return tensors


def write_checkpoint(
    path, images, seed=0, ema=False, architecture=ARCHITECTURE, classes=CLASSES, **data
):
    """A checkpoint after three epochs of ten updates, whose best accuracy was 62.5 %."""
    config = Config.model_validate(
        {
            "name": "tiny",
            "data": {"train": str(images), "val": str(images), **data},
            "model": {"name": architecture, "num_classes": len(classes)},
            "optimizer": {"lr": 0.0123},
            "schedule": {"epochs": 4, "warmup_epochs": 1},
            "ema": {"decay": 0.9 if ema else None},
            "evaluation": {"size": SIZE},
        }
    )
    state = {
        "model": state_dict(seed, architecture),
        "ema": state_dict(seed + 100, architecture) if ema else None,
        "updates_done": 30,
        "updates_per_epoch": 10,
        "best_top1": 62.5,
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "environment": {"torch": "2.9.9", "devices": "3 x Abacus"},
    }
    save_checkpoint(path, with_judged_weights(state))


def run_command(monkeypatch, *arguments):
    """Run `dali-rsb ARGUMENTS` in this process; raises the command's `UserError`."""
    monkeypatch.setattr("sys.argv", ["dali-rsb", *map(str, arguments)])
    command_line.main()


def assert_same_bits(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name

"""What a resumed run takes from a checkpoint's optimizer, and what it does not."""

from pathlib import Path

import pytest
import torch

from dali_rsb.errors import UserError
from dali_rsb.kernels.mix import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.models import create_model
from dali_rsb.models.precision import Precision
from dali_rsb.optim import create_optimizer
from dali_rsb.run.processes import Processes
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep

CPU = torch.device("cpu")
SOURCE = Path("runs/first/last.pt")


def make_step(name="adamw", **options):
    model = create_model("resnet18", num_classes=3)
    return TrainStep(
        model,
        create_loss("ce"),
        create_optimizer(model, name, lr=1e-3, **{"weight_decay": 0.02, **options}),
        None,
        Precision(CPU, None),
        Processes(CPU),
        accumulation=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def stepped(step):
    for p in step.model.parameters():
        p.grad = torch.ones_like(p)
    step.optimizer.step()
    return step


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_moments_are_the_checkpoints_and_options_are_the_runs(name):
    before = stepped(make_step(name, layer_decay=0.5, betas=(0.8, 0.9)))
    after = make_step(name, layer_decay=0.9, betas=(0.7, 0.9), weight_decay=0.3)
    expected = [
        {key: group[key] for key in ("lr_scale", "weight_decay", "betas")}
        for group in after.optimizer.param_groups
    ]
    after.load_state_dict(before.state_dict(), SOURCE)
    for group, options in zip(after.optimizer.param_groups, expected, strict=True):
        assert {key: group[key] for key in options} == options
    ours, theirs = (next(iter(step.optimizer.state.values())) for step in (after, before))
    assert torch.equal(ours["exp_avg"], theirs["exp_avg"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"layer_decay": 0.5}),
        ({"layer_decay": 0.5}, {}),
        ({}, {"weight_decay": 0.0}),
    ],
)
def test_groups_of_another_shape_are_a_user_error(before, after):
    state = stepped(make_step(**before)).state_dict()
    with pytest.raises(UserError, match=r"runs/first/last\.pt.*model\.weights=runs") as caught:
        make_step(**after).load_state_dict(state, SOURCE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300

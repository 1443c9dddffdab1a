"""Parameter groups against timm's rule, and optimizers by name."""

import math

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from dali_rsb.errors import UserError
from dali_rsb.optim import Lamb, create_optimizer, param_groups


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "seresnet50", "test_resnet"])
@pytest.mark.parametrize("weight_decay", [0.02, 0.0])
def test_groups_equal_timm(name, weight_decay):
    with torch.device("meta"):
        model = timm.create_model(name)
    ours = param_groups(model, weight_decay)
    theirs = param_groups_weight_decay(model, weight_decay)
    assert len(ours) == len(theirs) == (2 if weight_decay else 1)
    for a, b in zip(ours, theirs, strict=True):
        assert a["weight_decay"] == b["weight_decay"]
        assert [id(p) for p in a["params"]] == [id(p) for p in b["params"]]


def test_resnet50_counts():
    with torch.device("meta"):
        not_decayed, decayed = param_groups(timm.create_model("resnet50"), 0.01)
    assert sum(p.numel() for p in decayed["params"]) == 25_502_912
    assert len(decayed["params"]) == 54
    assert sum(p.numel() for p in not_decayed["params"]) == 54_120


class Odd(nn.Module):
    """A 2-D parameter called bias, and a 0-D one."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.bias = nn.Parameter(torch.ones(2, 2))
        self.bias_table = nn.Parameter(torch.ones(2, 2))
        self.temperature = nn.Parameter(torch.ones(()))


def test_names_and_dimensions():
    model = Odd()
    not_decayed, decayed = param_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model.bias_table)]
    assert {id(p) for p in not_decayed["params"]} == {id(model.temperature), id(model.inner.bias)}


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    (group,) = param_groups(model, 0.1)
    assert group["weight_decay"] == 0.1
    assert [id(p) for p in group["params"]] == [id(model.weight)]


@pytest.mark.parametrize(
    ("name", "cls"), [("lamb", Lamb), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)]
)
def test_create_optimizer(name, cls):
    optimizer = create_optimizer(nn.Linear(3, 3), name, lr=0.25, weight_decay=0.1)
    assert type(optimizer) is cls
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    assert all(group["lr"] == 0.25 for group in optimizer.param_groups)


def test_create_optimizer_options():
    model = nn.Linear(3, 3)
    sgd = create_optimizer(model, "sgd", 0.1, 0.0, momentum=0.9, nesterov=True, eps=1e-3)
    assert sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["nesterov"] is True
    adamw = create_optimizer(model, "adamw", 0.1, 0.0, betas=(0.5, 0.6), eps=1e-3)
    assert adamw.defaults["betas"] == (0.5, 0.6)
    assert adamw.defaults["eps"] == 1e-3
    lamb = create_optimizer(model, "lamb", 0.1, 0.0)
    assert lamb.defaults["max_grad_norm"] == 1.0
    assert lamb.defaults["eps"] == 1e-6
    assert (
        create_optimizer(model, "lamb", 0.1, 0.0, max_grad_norm=2.0).defaults["max_grad_norm"]
        == 2.0
    )
    unclipped = create_optimizer(model, "lamb", 0.1, 0.0, max_grad_norm=math.inf)
    assert unclipped.defaults["max_grad_norm"] is None


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'lamb'") as caught:
        create_optimizer(nn.Linear(3, 3), "lmab", 0.1, 0.0)
    assert "\n" not in str(caught.value)

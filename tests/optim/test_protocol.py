"""What training asks of an optimizer: one that this package has never seen can do all of it."""

import math

import pytest
import torch
from torch import nn

from dali_rsb.loader.batch import Batch
from dali_rsb.models.precision import Precision
from dali_rsb.optim import ModelEma, describe_backend
from dali_rsb.run.processes import Processes
from dali_rsb.training import step as step_module
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep

CPU = torch.device("cpu")


class Foreign(torch.optim.Optimizer):
    """Gradient descent with every capability, under a name that nobody knows."""

    _step_supports_amp_scaling = True
    takes_norm = True

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.averages, self.calls = {}, 0

    def fuse_averages(self, averages, weight):
        params = [p for group in self.param_groups for p in group["params"]]
        self.averages = {p: averages[p] for p in params}
        self.weight = weight
        return set(self.averages)

    def describe(self):
        return "foreign, on an abacus"

    @torch.no_grad()
    def step(self):
        self.calls += 1
        params = [p for group in self.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in params])
        self.skipped = norm.isfinite().logical_not().float()
        for p in params:
            if not self.skipped:
                p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
            if p in self.averages:
                self.averages[p].lerp_(p, self.weight)


def make_step(optimizer_class):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    return TrainStep(
        model,
        create_loss("bce", 0.0, None),
        optimizer_class(model.parameters(), lr=0.1),
        ModelEma(model, decay=0.5),
        Precision(CPU, None),
        Processes(CPU),
        accumulation=1,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, 8, 8, 3), generator=generator).byte()
    return Batch(images, torch.randint(0, 3, (4,), generator=generator), num_valid=4)


def test_an_unknown_optimizer_takes_the_norm_and_the_ema_along(monkeypatch):
    foreign, plain = make_step(Foreign), make_step(torch.optim.SGD)
    for seed in range(3):
        plain.update(iter([batch(seed)]))

    def refuse(*_):
        raise AssertionError("the optimizer takes the norm itself")

    monkeypatch.setattr(step_module.TrainStep, "_gradients", refuse)
    for seed in range(3):
        foreign.update(iter([batch(seed)]))
        assert foreign.skipped is foreign.optimizer.skipped
    assert len(foreign.optimizer.averages) == len(list(foreign.model.parameters()))
    for name, value in plain.ema.state_dict().items():
        torch.testing.assert_close(foreign.ema.state_dict()[name], value)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_it_skips_is_rolled_back(bad):
    step = make_step(Foreign)
    step.update(iter([batch(0)]))
    before = [t.clone() for t in step.model.state_dict().values() if t.is_floating_point()]
    handle = step.model[0].weight.register_hook(lambda grad: torch.full_like(grad, bad))
    step.update(iter([batch(1)]))
    handle.remove()
    assert step.skipped == 1
    after = [t for t in step.model.state_dict().values() if t.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_only_what_describes_itself_is_described():
    model = nn.Linear(2, 2)
    assert describe_backend(Foreign(model.parameters(), 0.1)) == "foreign, on an abacus"
    assert describe_backend(torch.optim.SGD(model.parameters(), 0.1)) is None

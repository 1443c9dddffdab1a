"""The learning-rate schedule against golden values and timm's scheduler."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from dali_rsb.optim import CosineSchedule, Cycles


def make_optimizer(num_groups=1):
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(num_groups)], lr=1.0
    )


def make_schedule(peak_lr, total, warmup, warmup_lr=1e-4, min_lr=1e-6, optimizer=None):
    optimizer = optimizer or make_optimizer()
    return CosineSchedule(optimizer, peak_lr, total, warmup, warmup_lr, min_lr)


# Section "Cosine" of timm's values, one update an epoch.
GOLDEN_PER_EPOCH = {
    "a1": (5e-3, 600, {0: 1e-4, 1: 0.00108, 4: 0.00402, 5: 0.004999143484, 6: 0.004998766648,
                       100: 0.004665130497, 600: 1e-6, 609: 1e-6}),
    "a2": (5e-3, 300, {0: 1e-4, 5: 0.004996574522, 100: 0.00375025}),
    "a3": (8e-3, 100, {0: 1e-4, 1: 0.00168, 4: 0.00642, 5: 0.007950759518, 6: 0.007929157859,
                       50: 0.0040005, 99: 2.973511817e-6}),
}  # fmt: skip


@pytest.mark.parametrize("recipe", GOLDEN_PER_EPOCH)
def test_golden_values_per_epoch(recipe):
    peak_lr, epochs, golden = GOLDEN_PER_EPOCH[recipe]
    schedule = make_schedule(peak_lr, epochs, 5)
    for epoch, lr in golden.items():
        assert schedule.lr_at(epoch) == pytest.approx(lr, rel=1e-9)


def test_golden_values_per_update():
    schedule = make_schedule(8e-3, 62_500, 3_125, warmup_lr=1e-5, min_lr=0.0)
    golden = {0: 1e-5, 1: 1.25568e-05, 3124: 0.0079974432, 3125: 0.007950753362}
    for update, lr in golden.items():
        assert schedule.lr_at(update) == pytest.approx(lr, rel=1e-9)
    assert schedule.lr_at(62_499) == pytest.approx(5.0532e-12, rel=1e-5)
    assert schedule.lr_at(62_500) == 0.0


@pytest.mark.parametrize("warmup", [0, 7])
def test_equals_timm_at_every_update(warmup):
    ours, theirs = make_optimizer(2), make_optimizer(2)
    ours.param_groups[1]["lr_scale"] = theirs.param_groups[1]["lr_scale"] = 0.5
    for group in theirs.param_groups:
        group["lr"] = 8e-3
    schedule = make_schedule(8e-3, 60, warmup, optimizer=ours)
    oracle = CosineLRScheduler(
        theirs, t_initial=60, lr_min=1e-6, warmup_t=warmup, warmup_lr_init=1e-4, t_in_epochs=False,
        cycle_decay=0.5,
    )  # fmt: skip
    for update in range(70):
        if update > 0:
            schedule.step(update)
            oracle.step_update(update)
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            if update or warmup:  # without warm-up timm leaves the first lr as it is, unscaled
                assert a["lr"] == pytest.approx(b["lr"], rel=1e-12)


def test_schedule_has_no_state():
    first, second = make_optimizer(), make_optimizer()
    running = make_schedule(8e-3, 60, 5, optimizer=first)
    for update in range(40):
        running.step(update)
    make_schedule(8e-3, 60, 5, optimizer=second).step(39)
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"]


def test_starts_at_the_warmup_rate():
    optimizer = make_optimizer()
    make_schedule(8e-3, 60, 5, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (10, -1)])
def test_invalid_lengths(total, warmup):
    with pytest.raises(ValueError, match="Invalid schedule"):
        make_schedule(8e-3, total, warmup)


@pytest.mark.parametrize(("first", "growth"), [(5, 1), (5, 2), (3, 3), (1, 2)])
def test_restarts_equal_pytorchs_at_every_update(first, growth):
    theirs = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=8e-3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(theirs, first, growth, 1e-6)
    schedule = CosineSchedule(make_optimizer(), 8e-3, 50, 0, 0.0, 1e-6, Cycles(first, growth))
    rates = []
    for update in range(50):
        rates.append(schedule.lr_at(update))
        assert rates[-1] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12), update
        theirs.step()
        oracle.step()
    assert rates.count(8e-3) > 1
    assert schedule.lr_at(50) == 1e-6


@pytest.mark.parametrize(("growth", "decay", "warmup"), [(1, 1.0, 3), (1, 0.5, 0), (2, 0.7, 4)])
def test_restarts_equal_timms_at_every_update(growth, decay, warmup):
    ours, theirs = make_optimizer(2), make_optimizer(2)
    ours.param_groups[1]["lr_scale"] = theirs.param_groups[1]["lr_scale"] = 0.5
    for group in theirs.param_groups:
        group["lr"] = 8e-3
    total = {1: 40, 2: 70}[growth]
    cycles = Cycles(10, growth, decay)
    schedule = CosineSchedule(ours, 8e-3, total, warmup, 1e-4, 1e-6, cycles)
    oracle = CosineLRScheduler(
        theirs, t_initial=10, lr_min=1e-6, cycle_mul=growth, cycle_decay=decay,
        cycle_limit={1: 4, 2: 3}[growth], warmup_t=warmup, warmup_lr_init=1e-4, t_in_epochs=False,
    )  # fmt: skip
    for update in range(1, total + 5):
        schedule.step(update)
        oracle.step_update(update)
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert a["lr"] == pytest.approx(b["lr"], rel=1e-9), update


@pytest.mark.parametrize("cycles", [(0,), (5, 0), (5, 1, 0.0), (5, 1, 1.5)])
def test_cycles_that_cannot_be_are_refused(cycles):
    with pytest.raises(ValueError, match="Invalid cycles"):
        Cycles(*cycles)

"""Cosine learning-rate schedules with linear warm-up, one value per optimizer update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cycles:
    """Warm restarts (SGDR, arXiv 1608.03983): cosines one after another instead of one.

    Attributes:
        first: updates of the first cycle, at least 1.
        growth: the length of each next cycle, as a multiple of the last one's, at least 1.
        decay: the peak of each next cycle, as a share of the last one's, above 0 and at most 1.
    """

    first: int
    growth: int = 1
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.first < 1 or self.growth < 1 or not 0 < self.decay <= 1:
            raise ValueError(f"Invalid cycles: {self}")

    def find(self, update: int) -> tuple[int, int, int]:
        """Number of the cycle that holds an update, its first update, and its length."""
        if self.growth == 1:
            number = update // self.first
            return number, number * self.first, self.first
        number, start, length = 0, 0, self.first
        while update >= start + length:
            number, start, length = number + 1, start + length, length * self.growth
        return number, start, length


class CosineSchedule:
    """Cosine decay from `peak_lr` to `min_lr` over all updates, its start replaced by a warm-up.

    As timm's cosine schedule with `--sched-on-updates`: the warm-up is a part of the
    `total_updates` and the cosine runs from update 0, so that after a warm-up the rate goes on at
    the cosine's value there, a little below `peak_lr`. From `total_updates` on the rate is
    `min_lr`. With `cycles` the cosine begins again, as PyTorch's CosineAnnealingWarmRestarts with
    `T_0` and `T_mult`, or timm's with `cycle_mul`, `cycle_decay` and a `cycle_limit`.

    The schedule has no state: to resume, call `step` with the number of the next update.

    Raises:
        ValueError: `total_updates` below 1 or `warmup_updates` below 0.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        peak_lr: float,
        total_updates: int,
        warmup_updates: int,
        warmup_lr: float,
        min_lr: float,
        cycles: Cycles | None = None,
    ) -> None:
        if total_updates < 1 or warmup_updates < 0:
            raise ValueError(
                f"Invalid schedule: {total_updates} updates with {warmup_updates} of warm-up"
            )
        self.optimizer = optimizer
        self.peak_lr = peak_lr
        self.total_updates = total_updates
        self.warmup_updates = warmup_updates
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        self.cycles = cycles or Cycles(total_updates)
        self.step(0)

    def lr_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        if update < self.warmup_updates:
            slope = (self.peak_lr - self.warmup_lr) / self.warmup_updates
            return self.warmup_lr + update * slope
        if update >= self.total_updates:
            return self.min_lr
        number, start, length = self.cycles.find(update)
        peak_lr = self.peak_lr * self.cycles.decay**number
        half_amplitude = 0.5 * (peak_lr - self.min_lr)
        return self.min_lr + half_amplitude * (1 + math.cos(math.pi * (update - start) / length))

    def step(self, update: int) -> None:
        """Set the rate for an update, counted from 0, in all groups, times a group's `lr_scale`."""
        lr = self.lr_at(update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

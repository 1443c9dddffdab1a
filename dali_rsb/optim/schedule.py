"""Cosine learning-rate schedule with linear warm-up, one value per optimizer update."""

from __future__ import annotations

import math

import torch


class CosineSchedule:
    """Cosine decay from `peak_lr` to `min_lr` over all updates, its start replaced by a warm-up.

    As timm's cosine schedule with `--sched-on-updates`: the warm-up is a part of the
    `total_updates` and the cosine runs from update 0, so that after a warm-up the rate goes on at
    the cosine's value there, a little below `peak_lr`. From `total_updates` on the rate is
    `min_lr`.

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
        self.step(0)

    def lr_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        if update < self.warmup_updates:
            slope = (self.peak_lr - self.warmup_lr) / self.warmup_updates
            return self.warmup_lr + update * slope
        if update >= self.total_updates:
            return self.min_lr
        half_amplitude = 0.5 * (self.peak_lr - self.min_lr)
        return self.min_lr + half_amplitude * (1 + math.cos(math.pi * update / self.total_updates))

    def step(self, update: int) -> None:
        """Set the rate for an update, counted from 0, in all groups, times a group's `lr_scale`."""
        lr = self.lr_at(update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

"""What a run reports: one row for the updates since the last row, one for each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run.

    Attributes:
        folder: run folder, which exists.
        config: the whole configuration, as plain values.
        updates_per_epoch: updates of each epoch.
        updates_done: where the run starts; above 0 it was resumed, and reports from there on again.
        is_epoch_open: the last update of an epoch is done, its evaluation and row are not.
    """

    folder: Path
    config: Mapping[str, Any]
    updates_per_epoch: int
    updates_done: int
    is_epoch_open: bool = False

    @property
    def first_epoch(self) -> int:
        """The first epoch that the run reports, from 0."""
        epoch, update = divmod(self.updates_done, self.updates_per_epoch)
        return epoch - 1 if self.is_epoch_open and update == 0 else epoch


@dataclass(frozen=True)
class UpdateRow:
    """The updates since the last such row.

    Attributes:
        epoch, update: of the last of them, from 1; `update` counts within the epoch.
        num_epochs, num_updates: in all, and of an epoch.
        loss: mean over those that were not skipped; NaN where all were.
        lr: of the last of them.
        img_per_s: images of all processes.
        data_wait: percent of the time.
        skipped: updates skipped for inf or NaN in their gradients.
    """

    epoch: int
    num_epochs: int
    update: int
    num_updates: int
    loss: float
    lr: float
    img_per_s: float
    data_wait: float
    skipped: int


@dataclass(frozen=True)
class EpochRow:
    """An epoch. Accuracies and `data_wait` are in percent, None where not measured.

    `skipped` counts the updates skipped for inf or NaN in their gradients; they are in `updates`,
    and not in the loss.
    """

    epoch: int
    updates: int
    train_loss: float
    lr: float
    img_per_s: float
    data_wait: float
    skipped: int
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    ema_top1: float | None
    ema_top5: float | None
    time_s: float

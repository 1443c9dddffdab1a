"""What a run reports: one row for the updates since the last row, one for each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrackingOptions:
    """Which tracking services take the numbers of a run, beside its own files, and how.

    Attributes:
        services: their names, see `run.trackers.services`.
        project: what the services file the run under.
        name: of the run there; None for that of its folder.
        tags: of the run there.
        is_offline: all is kept in local files.
        folder: of these files; None for the run folder.
        checkpoints: which of them the services get: "none", those at the "end", or "all".
    """

    services: tuple[str, ...] = ()
    project: str = "dali_rsb"
    name: str | None = None
    tags: tuple[str, ...] = ()
    is_offline: bool = False
    folder: Path | None = None
    checkpoints: str = "end"


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run.

    Attributes:
        folder: run folder, which exists.
        config: the whole configuration, as plain values.
        updates_per_epoch: updates of each epoch.
        updates_done: where the run starts; above 0 it was resumed, and reports from there on again.
        is_epoch_open: the last update of an epoch is done, its evaluation and row are not.
        images_per_update: the global batch.
        run_id: the same for a run and whatever it is resumed as; "" where no service needs it.
        environment: versions and hardware by name.
        tracking: the services that take its numbers.
        checkpoint: that it goes on from, where it lies in the folder.
    """

    folder: Path
    config: Mapping[str, Any]
    updates_per_epoch: int
    updates_done: int
    is_epoch_open: bool = False
    images_per_update: int = 1
    run_id: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    tracking: TrackingOptions = TrackingOptions()
    checkpoint: SavedCheckpoint | None = None

    @property
    def first_epoch(self) -> int:
        """The first epoch that the run reports, from 0."""
        epoch, update = divmod(self.updates_done, self.updates_per_epoch)
        return epoch - 1 if self.is_epoch_open and update == 0 else epoch


@dataclass(frozen=True, eq=False)
class PictureTable:
    """A table with pictures that belongs to a run, made after it or beside it.

    Attributes:
        name: what services file it under, such as "gradcam".
        columns: their names.
        rows: a cell for each column: text, a number, or a PIL image.
        files: the same for people: a page, a picture, figures.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class UpdateRow:
    """The updates since the last such row.

    Attributes:
        epoch, update: of the last of them, from 1; `update` counts within the epoch.
        num_epochs, num_updates: in all, and of an epoch.
        loss: mean over those that were not skipped; NaN where all were.
        lr: of the last of them.
        img_per_s: images of all processes.
        data_wait_percent: percent of the time.
        skipped: updates skipped for inf or NaN in their gradients.
        replaced: bad images that others stood in for, of all processes.
        images: seen since the run began, of all processes.
    """

    epoch: int
    num_epochs: int
    update: int
    num_updates: int
    loss: float
    lr: float
    img_per_s: float
    data_wait_percent: float
    skipped: int
    replaced: int = 0
    images: int = 0


@dataclass(frozen=True)
class EpochRow:
    """An epoch. Accuracies and `data_wait_percent` are in percent, None where not measured.

    `skipped` counts the updates skipped for inf or NaN in their gradients; they are in `updates`,
    and not in the loss.
    """

    epoch: int
    updates: int
    train_loss: float
    lr: float
    img_per_s: float
    data_wait_percent: float
    skipped: int
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    ema_top1: float | None
    ema_top5: float | None
    time_s: float


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is in its place: what was reported up to it is final.

    Attributes:
        updates_done: where a run goes on from it.
        is_epoch_open: the row of the epoch that ends there is not covered.
        last, best: the files; `best` is None where no evaluation has been saved.
    """

    updates_done: int
    is_epoch_open: bool
    last: Path
    best: Path | None

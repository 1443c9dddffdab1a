"""What a run folder tells of its run: its configuration, and its numbers in the order of training.

A run that was killed and resumed reports some updates twice: the later report counts. Damaged lines
are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dali_rsb.config import Config, load_config
from dali_rsb.errors import UserError
from dali_rsb.pictures.run_lines import TOO_LARGE, Line, read_lines
from dali_rsb.run.records import EpochRow
from dali_rsb.run.trackers.csv_file import read_epochs
from dali_rsb.system.names import printable


@dataclass(frozen=True)
class Interval:
    """Some updates between two reports.

    Attributes:
        end: updates that were done at its end, since the run began.
        updates: how many it has.
        loss: mean, NaN where all of them were skipped.
        lr: of the last one.
        img_per_s: images of all processes in a second.
        data_wait_percent: percent of its time.
        end_s: when it ended: seconds of training and evaluating since the run began, no pauses.
        time_s: its length, by its images and their rate.
    """

    end: int
    updates: int
    loss: float
    lr: float
    img_per_s: float
    data_wait_percent: float
    end_s: float
    time_s: float


@dataclass(frozen=True)
class Epoch:
    """An epoch's row, and when it was reported.

    Attributes:
        row: as in metrics.csv.
        end_s: as of an `Interval`, the evaluation included; None where nobody knows it.
        evaluation_s: how long the evaluation took; None where nobody knows it.
    """

    row: EpochRow
    end_s: float | None
    evaluation_s: float | None

    @property
    def top1(self) -> float | None:
        """What the run judges by: the accuracy of the EMA, where there is one."""
        top1 = self.row.val_top1 if self.row.ema_top1 is None else self.row.ema_top1
        return top1 if top1 is not None and math.isfinite(top1) else None


@dataclass(frozen=True)
class RunHistory:
    """A run as its folder tells it.

    Attributes:
        folder: of the run.
        name: what the report calls it; no other run of the report is called the same.
        config: of the run.
        intervals, epochs: in the order of training; either may be empty.
        updates_per_epoch: None where nothing was reported yet.
        first_s, last_s: when the run began and was last heard of, as Unix time; None for never.
        faults: what is wrong with its files, in sentences.
    """

    folder: Path
    name: str
    config: Config
    intervals: tuple[Interval, ...]
    epochs: tuple[Epoch, ...]
    updates_per_epoch: int | None
    first_s: float | None
    last_s: float | None
    faults: tuple[str, ...]

    @property
    def updates_done(self) -> int:
        """How far the reports go."""
        ends = [one.end for one in self.intervals] + [one.row.updates for one in self.epochs]
        return max(ends, default=0)

    @property
    def updates_planned(self) -> int | None:
        """How many there shall be in all; None where nobody knows the length of an epoch."""
        if self.updates_per_epoch is None:
            return None
        total = self.config.schedule.epochs * self.updates_per_epoch
        return min(total, self.config.run.max_steps or total)

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch has its row."""
        reported = self.epochs[-1].row.updates if self.epochs else 0
        return self.updates_planned is not None and reported >= self.updates_planned

    @property
    def best(self) -> Epoch | None:
        """The last of the epochs with the best accuracy; None where nothing was evaluated."""
        judged = [one for one in self.epochs if one.top1 is not None]
        return max(judged, key=lambda one: (one.top1, one.row.epoch), default=None)

    def in_epochs(self, updates: int) -> float:
        """A number of updates as epochs."""
        return updates / (self.updates_per_epoch or 1)

    def in_images(self, updates: int) -> int:
        """How many images so many updates have seen."""
        return updates * self.config.optimizer.batch_size


def read_run(folder: Path, name: str) -> RunHistory:
    """Read a run folder.

    Raises:
        UserError: it is none, or its configuration cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{printable(folder, 150)} is no run folder, it holds no config.yaml: give the folder "
            "of a run, such as runs/a3"
        )
    config = load_config(folder / "config.yaml")
    lines, faults = read_lines(folder / "metrics.jsonl")
    rows = _read_rows(folder)
    num_epochs = sum(line["kind"] == "epoch" for line in lines)
    if len(rows) < num_epochs:
        faults.append(
            f"metrics.csv has {len(rows)} usable rows and metrics.jsonl {num_epochs} epochs: what "
            "the first lacks is taken from the second."
        )
        rows = _completed(rows, lines)
    intervals, ends, evaluations = _timed(lines, config.optimizer.batch_size)
    epochs = tuple(Epoch(row, ends.get(row.updates), evaluations.get(row.updates)) for row in rows)
    lengths = [line["num_updates"] for line in lines if line["kind"] == "update"]
    lengths += [round(row.updates / row.epoch) for row in rows]
    times = [line["unix_time_s"] for line in lines]
    begun = times[0] - intervals[0].time_s if times and intervals else None
    return RunHistory(
        folder,
        name,
        config,
        tuple(intervals),
        epochs,
        lengths[0] if lengths else None,
        begun,
        max(times, default=None),
        tuple(faults),
    )


def _read_rows(folder: Path) -> list[EpochRow]:
    """The usable rows of metrics.csv."""
    try:
        rows = read_epochs(folder)
    except ValueError:  # a cell is a number of another kind than its column
        return []
    return [
        row
        for row in rows
        if min(row.epoch, row.updates) > 0 and max(row.epoch, row.updates, row.skipped) < TOO_LARGE
    ]


def _completed(rows: list[EpochRow], lines: list[Line]) -> list[EpochRow]:
    """The rows of metrics.csv, and those of metrics.jsonl that it lacks."""
    names = EpochRow.__dataclass_fields__
    found = {
        int(line["epoch"]): EpochRow(**{name: cast(Any, line.get(name)) for name in names})
        for line in lines
        if line["kind"] == "epoch"
    }
    found |= {row.epoch: row for row in rows}
    return [found[epoch] for epoch in sorted(found)]


def _timed(
    lines: list[Line], batch_size: int
) -> tuple[list[Interval], dict[int, float], dict[int, float]]:
    """The intervals; for the epochs, by their updates, when they ended and how long they judged."""
    intervals: list[Interval] = []
    ends: dict[int, float] = {}
    evaluations: dict[int, float] = {}
    clock_s, position, reported_s = 0.0, 0, None
    for line in lines:
        if line["kind"] == "update":
            updates = line["position"] - position
            time_s = updates * batch_size / line["img_per_s"]
            clock_s, position = clock_s + time_s, line["position"]
            loss = math.nan if line.get("loss") is None else float(line["loss"])
            intervals.append(
                Interval(
                    position,
                    updates,
                    loss,
                    line["lr"],
                    line["img_per_s"],
                    line["data_wait_percent"],
                    clock_s,
                    time_s,
                )
            )
            reported_s = line["unix_time_s"]
            continue
        # An epoch's last updates are always reported, right before its evaluation.
        if reported_s is not None and line["position"] == position:
            evaluations[position] = max(0.0, line["unix_time_s"] - reported_s)
            clock_s += evaluations[position]
        ends[line["position"]] = clock_s
        reported_s = None
    return intervals, ends, evaluations


def names_of(folders: list[Path]) -> Iterator[str]:
    """What a report calls its runs: the folders' names, with their parents' where two are alike."""
    names = [folder.absolute().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        parts = folder.absolute().parts[-3:]
        yield printable(name if names.count(name) == 1 else "/".join(parts), 60)

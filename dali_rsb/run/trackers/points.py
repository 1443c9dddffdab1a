"""The points of a run's curves, made of its rows: values by name at a number of images seen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dali_rsb.run.records import EpochRow, RunInfo, UpdateRow
from dali_rsb.run.trackers.jsonl_file import read_lines

# Names of a row's numbers in the services, by the kind of the row.
NAMES = {
    "update": {
        "loss": "train/loss",
        "lr": "train/lr",
        "img_per_s": "train/img_per_s",
        "data_wait_percent": "train/data_wait_percent",
        "skipped": "train/skipped_updates",
        "replaced": "train/bad_images",
    },
    "epoch": {
        "train_loss": "epoch/train_loss",
        "img_per_s": "epoch/img_per_s",
        "data_wait_percent": "epoch/data_wait_percent",
        "skipped": "epoch/skipped_updates",
        "val_loss": "val/loss",
        "val_top1": "val/top1",
        "val_top5": "val/top5",
        "ema_top1": "ema/top1",
        "ema_top5": "ema/top5",
    },
}
UPDATES, EPOCHS = "progress/updates", "progress/epochs"


@dataclass(frozen=True)
class Point:
    """Values at one place of a run.

    Attributes:
        images: seen since the run began, the axis of all curves.
        unix_time_s: when they were reported.
        values: finite numbers by name; UPDATES comes last: who has it has the others.
    """

    images: int
    unix_time_s: float
    values: Mapping[str, float]


class Series:
    """The points of a run in their order, an epoch's as two of equal place: updates, then the row.

    Not safe for threads by itself.

    Args:
        run: whose metrics.jsonl has the points until now; it has been rewound.
    """

    def __init__(self, run: RunInfo) -> None:
        self._images_per_update = run.images_per_update
        self.points: list[Point] = []
        for line in read_lines(run.folder):
            try:
                self._add(line["kind"], line, float(line["unix_time_s"]))
            except (KeyError, TypeError, ValueError):  # a line of another program
                continue
        # How many of them no resumed run will report again.
        self.num_final = len(self.points)
        if run.is_epoch_open:
            self.num_final = self._num_before(run.updates_done * run.images_per_update)

    def add(self, row: UpdateRow | EpochRow) -> None:
        """Append the point of a row."""
        kind = "update" if isinstance(row, UpdateRow) else "epoch"
        self._add(kind, asdict(row), time.time())

    def make_final(self, updates_done: int, is_epoch_open: bool) -> None:
        """Note that a checkpoint covers what was reported up to an update, but for an open epoch.

        Where an epoch is open, its last update waits for the epoch's row: they are one point.
        """
        images = updates_done * self._images_per_update + (not is_epoch_open)
        self.num_final = max(self.num_final, self._num_before(images))

    def _num_before(self, images: int) -> int:
        number = len(self.points)
        while number and self.points[number - 1].images >= images:
            number -= 1
        return number

    def _add(self, kind: str, row: Mapping[str, Any], unix_time_s: float) -> None:
        values = {
            name: float(row[key])
            for key, name in NAMES[kind].items()
            if row.get(key) is not None and math.isfinite(row[key])
        }
        if kind == "update":
            for rare in ("skipped", "replaced"):  # which files leave out where there are none
                values.setdefault(NAMES[kind][rare], 0.0)
            updates = (row["epoch"] - 1) * row["num_updates"] + row["update"]
            images = row.get("images") or updates * self._images_per_update
            values[EPOCHS], values[UPDATES] = updates / row["num_updates"], float(updates)
        else:
            images = self.points[-1].images if self.points else 0
        self.points.append(Point(int(images), unix_time_s, values))


def merged(points: Iterable[Point]) -> list[Point]:
    """The same with one point a place."""
    found: list[Point] = []
    for point in points:
        if found and found[-1].images == point.images:
            before = found.pop()
            values = {**before.values, **point.values}
            if UPDATES in values:
                values[UPDATES] = values.pop(UPDATES)  # last again
            point = Point(point.images, before.unix_time_s, values)
        found.append(point)
    return found

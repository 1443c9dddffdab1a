"""Where the numbers of a run go: a tracker is a class in a module, and its entry in TRACKERS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dali_rsb.run.records import EpochRow, RunInfo, UpdateRow
from dali_rsb.run.trackers.csv_file import CsvFile
from dali_rsb.run.trackers.jsonl_file import JsonlFile


class Tracker(Protocol):
    """What takes the numbers of a run: made of a `RunInfo` when the run starts, on rank 0 alone."""

    def log_update(self, row: UpdateRow) -> None:
        """Take a report of the updates since the last one."""

    def log_epoch(self, row: EpochRow) -> None:
        """Take the row of an epoch."""

    def close(self) -> None:
        """Write out what is left; called once, also where the run failed."""


# The trackers of every run, each called with its `RunInfo`.
TRACKERS: tuple[Callable[[RunInfo], Tracker], ...] = (CsvFile, JsonlFile)


class Trackers:
    """All trackers of a run as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log_update(self, row: UpdateRow) -> None:
        for tracker in self._trackers:
            tracker.log_update(row)

    def log_epoch(self, row: EpochRow) -> None:
        for tracker in self._trackers:
            tracker.log_epoch(row)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def start_trackers(run: RunInfo | None) -> Trackers:
    """Start every tracker; none where `run` is None, as on other ranks than the first."""
    return Trackers([] if run is None else [start(run) for start in TRACKERS])

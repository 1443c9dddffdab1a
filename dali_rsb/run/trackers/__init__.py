"""Where the numbers of a run go: a tracker is a class in a module, and its entry in TRACKERS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from dali_rsb.errors import UserError
from dali_rsb.run.records import EpochRow, RunInfo, SavedCheckpoint, UpdateRow
from dali_rsb.run.trackers.csv_file import CsvFile
from dali_rsb.run.trackers.feed import Feed
from dali_rsb.run.trackers.jsonl_file import JsonlFile

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What takes the numbers of a run: made of a `RunInfo` when the run starts, on rank 0 alone."""

    def log_update(self, row: UpdateRow) -> None:
        """Take a report of the updates since the last one."""

    def log_epoch(self, row: EpochRow) -> None:
        """Take the row of an epoch."""

    def log_checkpoint(self, saved: SavedCheckpoint) -> None:
        """Take note that a checkpoint is in its place; called on the thread that wrote it."""

    def close(self) -> None:
        """Write out what is left; called once, also where the run failed."""


# The trackers of every run, each called with its `RunInfo`. The feed of the services comes last: it
# begins with what the files hold.
TRACKERS: tuple[Callable[[RunInfo], Tracker], ...] = (CsvFile, JsonlFile, Feed)


class Trackers:
    """All trackers of a run as one. A disk that is full or read-only is a warning, not the end."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self._failing: set[Tracker] = set()

    def log_update(self, row: UpdateRow) -> None:
        for tracker in self._trackers:
            self._try(tracker, partial(tracker.log_update, row))

    def log_epoch(self, row: EpochRow) -> None:
        for tracker in self._trackers:
            self._try(tracker, partial(tracker.log_epoch, row))

    def log_checkpoint(self, saved: SavedCheckpoint) -> None:
        for tracker in self._trackers:
            self._try(tracker, partial(tracker.log_checkpoint, saved))

    def close(self) -> None:
        for tracker in self._trackers:
            self._try(tracker, tracker.close)

    def _try(self, tracker: Tracker, call: Callable[[], None]) -> None:
        """Make a call; a tracker that fails again and again is named once."""
        try:
            call()
        except OSError as error:
            if tracker not in self._failing:
                logger.warning(
                    "%s cannot write (%s); training goes on", type(tracker).__name__, error
                )
            self._failing.add(tracker)
        else:
            self._failing.discard(tracker)


def start_trackers(run: RunInfo | None) -> Trackers:
    """Start every tracker; none where `run` is None, as on other ranks than the first.

    Raises:
        UserError: the run folder cannot be written.
    """
    try:
        return Trackers([] if run is None else [start(run) for start in TRACKERS])
    except OSError as error:
        raise UserError(
            f"the run folder cannot be written ({error}); make room, or set run.dir to another"
        ) from error

"""Feeds tracking services with a run's points, each on a thread that training never waits for.

The truth is the run's own metrics.jsonl, which a resumed run rewinds. A service that keeps what it
is given gets a point once a checkpoint covers it: a run that is killed never reports it again. One
that lacks points, as it was killed, failed or not there, gets them when it begins the next time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from dali_rsb.errors import one_line
from dali_rsb.run.records import EpochRow, RunInfo, SavedCheckpoint, UpdateRow
from dali_rsb.run.trackers.points import Point, Series, merged
from dali_rsb.run.trackers.services import SERVICES, Kind, Service

logger = logging.getLogger(__name__)

# Seconds that the end of a run waits for its services, all of them together.
CLOSE_S = 60.0


@dataclass(frozen=True)
class _Notice:
    """Something has changed.

    Attributes:
        saved: the newest checkpoint, if there is one.
        is_last: the run ends.
    """

    saved: SavedCheckpoint | None
    is_last: bool


class Feed:
    """The tracker that stands for all services of `RunInfo.tracking`, each on its own thread."""

    def __init__(self, run: RunInfo) -> None:
        self._series = Series(run) if run.tracking.services else None
        self._changed = threading.Condition()
        self._saved = run.checkpoint
        self._version = 1  # of all below the condition; there may be points already
        self._is_closing = False
        self._threads = [
            _ServiceThread(name, SERVICES[name], run, self) for name in run.tracking.services
        ]
        for thread in self._threads:
            thread.start()

    def log_update(self, row: UpdateRow) -> None:
        self._add(row)

    def log_epoch(self, row: EpochRow) -> None:
        self._add(row)

    def _add(self, row: UpdateRow | EpochRow) -> None:
        if self._series is not None:
            with self._changed:
                self._series.add(row)
                self._notify()

    def log_checkpoint(self, saved: SavedCheckpoint) -> None:
        if self._series is not None:
            with self._changed:
                self._series.make_final(saved.updates_done, saved.is_epoch_open)
                self._saved = saved
                self._notify()

    def close(self) -> None:
        """Let the services take the rest; leave those behind that take too long."""
        with self._changed:
            self._is_closing = True
            self._notify()
        deadline_s = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                logger.warning(
                    "%s has not answered for %g s: left behind; --resume sends what it lacks",
                    thread.name,
                    CLOSE_S,
                )

    def notices(self) -> Iterator[_Notice]:
        """Wait for changes; several that come meanwhile are one notice. The last one is the end."""
        seen, is_last = 0, False
        while not is_last:
            with self._changed:
                while self._version == seen:
                    self._changed.wait()
                seen, is_last = self._version, self._is_closing
                notice = _Notice(self._saved, is_last)
            yield notice

    def points(self, first: int, is_live: bool) -> list[Point]:
        """The points from number `first` that may be sent."""
        assert self._series is not None
        with self._changed:
            return self._series.points[first : None if is_live else self._series.num_final]

    def _notify(self) -> None:
        self._version += 1
        self._changed.notify_all()


class _ServiceThread(threading.Thread):
    """Carries what is new to one service, and says once if that fails."""

    def __init__(self, name: str, kind: Kind, run: RunInfo, feed: Feed) -> None:
        super().__init__(name=name, daemon=True)
        self._kind, self._run_info, self._feed = kind, run, feed
        self._service: Service | None = None
        self._num_sent = 0
        self._last_there = -1  # place of the last point that the service has
        final = feed.points(0, is_live=False)
        self._last_true = final[-1].images if final else -1  # later ones there are of a lost past
        self._sent_checkpoint: SavedCheckpoint | None = None
        self._failed_at: _Notice | None = None
        self._has_complained = False

    def run(self) -> None:
        for notice in self._feed.notices():
            failed = self._failed_at
            if failed is not None and failed.saved == notice.saved and not notice.is_last:
                continue
            try:
                self._deliver(notice)
            except BaseException as error:  # whatever a service raises is no reason to stop
                self._abandon()
                self._complain(error)
                self._failed_at = notice
            else:
                self._failed_at = None

    def _deliver(self, notice: _Notice) -> None:
        if self._service is None and not self._begin():
            return
        assert self._service is not None
        points = self._feed.points(self._num_sent, self._kind.is_live)
        new = [point for point in merged(points) if point.images > self._last_there]
        if new:
            self._service.log(new)
            self._last_true = max(self._last_true, new[-1].images)
        self._num_sent += len(points)
        saved, wanted = notice.saved, self._run_info.tracking.checkpoints
        is_time = wanted == "all" or (wanted == "end" and notice.is_last)
        if saved is not None and saved != self._sent_checkpoint and is_time:
            if saved.best is not None:
                self._service.log_checkpoint(saved.best, "best")
            # After the best one: services call the newest version "latest" by themselves.
            self._service.log_checkpoint(saved.last, "latest")
            self._sent_checkpoint = saved
        if notice.is_last:
            self._service.close()

    def _begin(self) -> bool:
        """Begin with the service if there is anything to send; say whether it has begun."""
        if not self._feed.points(0, self._kind.is_live):
            return False
        self._num_sent = 0
        self._service = self._kind.make(self._run_info)
        self._last_there = self._service.begin(self._last_true)
        return True

    def _abandon(self) -> None:
        service, self._service = self._service, None
        self._sent_checkpoint = None
        if service is not None:
            with suppress(BaseException):
                service.close()

    def _complain(self, error: BaseException) -> None:
        if self._has_complained:
            return
        self._has_complained = True
        reason = str(error).strip().split("\n")[0][:150] or type(error).__name__
        logger.warning(
            "%s fails (%s); training goes on, and tries again at each checkpoint",
            self.name,
            one_line(reason),
        )

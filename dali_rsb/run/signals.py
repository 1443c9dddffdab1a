"""Stopping a run from outside: a signal is noted, the update finished, the state saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, the end of a pre-emptible job, and Slurm's warning before its time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The run was asked to stop, and what it did is saved, if it could be.

    No Exception, as KeyboardInterrupt is none: it may be raised anywhere, and whoever reads a file
    and takes every Exception for its damage would take the signal for it.

    Attributes:
        signal: its number.
        agreed: whether all processes of the run stop here; otherwise this one alone knows of it.
        exit_code: the shell's for a process that the signal ended, 128 + its number.
    """

    def __init__(self, signal_number: int, agreed: bool = False) -> None:
        super().__init__(signal_number)
        self.signal = signal_number
        self.agreed = agreed
        self.exit_code = 128 + signal_number


class StopRequest:
    """The first signal that asked to stop, if one did.

    Args:
        at_once: raise `Stopped` where the signal arrives, as there is nothing to save.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.signal: int | None = None
        self._at_once = at_once

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler; the second signal interrupts at once."""
        is_first = self.signal is None
        if is_first:
            self.signal = number
        if self._at_once or not is_first:
            raise Stopped(number)


@contextmanager
def stop_requests(at_once: bool = False) -> Iterator[StopRequest]:
    """Note the signals instead of dying of them; see `StopRequest`."""
    request = StopRequest(at_once)
    previous = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

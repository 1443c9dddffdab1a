"""What all processes of a run must decide alike, between two updates: to stop, to save."""

from __future__ import annotations

import time

import torch

from dali_rsb.run.processes import Processes

# Seconds between two comparisons. Each makes the host wait for the device once.
PERIOD_S = 1.0


class Agreement:
    """Tells every process, at the same place, what any of them wants.

    All processes call `any_of` at the same places. Alone, a process has its answer at once. Several
    compare about once in `period_s`: they count calls, because their clocks differ, and learn from
    each comparison how many calls the next period has.

    Args:
        processes: those that decide together.
        period_s: seconds between comparisons.
    """

    def __init__(self, processes: Processes, period_s: float = PERIOD_S) -> None:
        self._processes = processes
        self._period_s = period_s
        self._calls = 0
        self._calls_per_period = 1
        self._start_s = time.perf_counter()

    def any_of(self, *wishes: bool, now: bool = False) -> tuple[bool, ...]:
        """Which of the wishes any process has; none of them where it is not time to compare.

        Args:
            wishes: of this process; the same number in all.
            now: compare in any case, as at the boundary between training and evaluation, where
                calls begin to take another time.
        """
        if self._processes.world_size == 1:
            return wishes
        self._calls += 1
        if not now and self._calls < self._calls_per_period:
            return (False,) * len(wishes)
        elapsed_s = time.perf_counter() - self._start_s
        values = torch.tensor([*wishes, elapsed_s], dtype=torch.float64)
        *votes, total_s = self._processes.sum(values.to(self._processes.device)).tolist()
        self._plan(total_s / self._processes.world_size, restart=now)
        return tuple(vote > 0 for vote in votes)

    def _plan(self, elapsed_s: float, restart: bool) -> None:
        """Set the calls of the next period, from numbers that are the same in all processes."""
        if restart:
            self._calls_per_period = 1
        else:
            fitting = int(self._calls * self._period_s / max(elapsed_s, 1e-9))
            self._calls_per_period = max(1, min(fitting, 4 * self._calls))
        self._calls, self._start_s = 0, time.perf_counter()

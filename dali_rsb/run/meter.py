"""Measuring a run: loss, speed and the share of time spent waiting for data.

The ends of its intervals are the only places where the host waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dali_rsb.loader.batch import Batch
from dali_rsb.run.processes import Processes


@dataclass(frozen=True)
class Interval:
    """What happened in an interval.

    Attributes:
        loss: mean over the updates that were not skipped and over all processes; NaN if all were.
        img_per_s: images of all processes.
        data_wait_percent: percent of the time.
        updates: how many, skipped ones included.
        skipped: updates skipped for inf or NaN in their gradients.
        skipped_in_row: the last so many updates were skipped; may reach back further than the
            interval.
        replaced: bad images that others stood in for, of all processes.
        finite: the first so many updates had finite losses, skipped ones left out, in all
            processes.
    """

    loss: float
    img_per_s: float
    data_wait_percent: float
    updates: int
    skipped: int = 0
    skipped_in_row: int = 0
    replaced: int = 0
    finite: int = 0


class Meter:
    """Adds up losses and waiting times; `read` reports an interval, `read_epoch` all of them.

    Args:
        processes: those that train together.
        images_per_update: the global batch.
    """

    def __init__(self, processes: Processes, images_per_update: int) -> None:
        self._processes = processes
        self._images_per_update = images_per_update
        self._wait_timer = WaitTimer(processes.device)
        self._loss = torch.zeros((), device=processes.device)
        self._skipped = torch.zeros((), device=processes.device)
        self._skipped_in_row = torch.zeros((), device=processes.device)
        self._finite = torch.zeros((), device=processes.device)
        self._updates = 0
        self._replaced = 0.0  # of this process
        self._start_s = time.perf_counter()
        self._before = _Totals()  # times of this interval from before a `state_dict`
        self._epoch = _Totals()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is there counts as waiting for data."""
        while True:
            try:
                with self._wait_timer:
                    batch = next(batches)
            except StopIteration:
                return
            self._processes.note()
            self._replaced += batch.replaced
            yield batch

    def add(self, loss: Tensor, skipped: Tensor) -> None:
        """Count an update; both scalars stay on the device.

        Args:
            loss: left out where the update was skipped: it may be inf or NaN itself.
            skipped: 1 for a skipped update, else 0; the same in all processes.
        """
        self._loss += torch.where(skipped != 0, 0.0, loss)
        self._finite += self._loss.isfinite()  # a sum that was not finite once never is again
        self._skipped += skipped
        self._skipped_in_row.add_(1).mul_(skipped)
        self._updates += 1

    def restart(self) -> None:
        """Begin an interval here: what went before since the last reading does not count."""
        self._start_s = time.perf_counter()

    def read(self) -> Interval:
        """The interval since the last reading (all processes must read); starts the next."""
        totals = _Totals(self._updates)
        own = [self._loss, self._skipped, self._skipped_in_row, self._replaced_on_device()]
        sums = self._processes.sum(torch.stack(own).double())
        means = (sums / self._processes.world_size).tolist()
        totals.loss, totals.skipped, skipped_in_row = means[0], round(means[1]), round(means[2])
        replaced = round(means[3] * self._processes.world_size)
        finite = self._updates
        if not math.isfinite(totals.loss):  # in all processes alike: it is their mean
            finite = min(self._processes.gather(round(self._finite.item())))
        self._read_times()
        totals.wait_s, totals.time_s = self._before.wait_s, self._before.time_s
        self._before = _Totals()
        self._loss.zero_()
        self._skipped.zero_()
        self._finite.zero_()
        self._updates = 0
        self._replaced = 0.0
        self._epoch.add(totals)
        interval = totals.interval(self._images_per_update)
        return replace(interval, skipped_in_row=skipped_in_row, replaced=replaced, finite=finite)

    def read_epoch(self) -> Interval:
        """All intervals since `restart_epoch`."""
        return self._epoch.interval(self._images_per_update)

    def restart_epoch(self) -> None:
        """Begin an epoch here."""
        self._epoch = _Totals()

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch and of the interval so far, but for the `partial_sums`.

        Times are those of this process; an interval without an update has none.
        """
        if self._updates:
            self._read_times()
        return {"epoch": asdict(self._epoch), "interval": asdict(self._before)} | {
            "updates": self._updates
        }

    def partial_sums(self) -> Tensor:
        """float32 [4] on the CPU: what this process alone has summed up in the interval."""
        own = [self._loss, self._skipped, self._skipped_in_row, self._replaced_on_device()]
        return torch.stack(own).cpu()

    def load_state_dict(self, state: Mapping[str, Any], partial_sums: Sequence[Tensor]) -> None:
        """Go on where another meter stood.

        Args:
            state: its `state_dict`.
            partial_sums: of all processes then; as many as now, or their mean is shared out.
                Those of earlier versions have no fourth.
        """
        self._epoch, self._before = _Totals(**state["epoch"]), _Totals(**state["interval"])
        self._updates = state["updates"]
        processes = self._processes
        if len(partial_sums) == processes.world_size:
            own = partial_sums[processes.rank]
        else:
            own = torch.stack([*partial_sums]).mean(0)
        totals = (self._loss, self._skipped, self._skipped_in_row)
        for total, value in zip(totals, own[:3], strict=True):
            total.copy_(value)
        self._replaced = float(own[3:].sum())
        self._finite.fill_(self._updates if self._loss.isfinite() else 0)

    def _replaced_on_device(self) -> Tensor:
        return torch.tensor(self._replaced, device=self._processes.device)

    def _read_times(self) -> None:
        now_s = time.perf_counter()
        self._before.add(_Totals(wait_s=self._wait_timer.read(), time_s=now_s - self._start_s))
        self._start_s = now_s


@dataclass
class _Totals:
    updates: int = 0
    skipped: int = 0
    loss: float = 0.0
    wait_s: float = 0.0
    time_s: float = 0.0

    def add(self, other: _Totals) -> None:
        self.updates += other.updates
        self.skipped += other.skipped
        self.loss += other.loss
        self.wait_s += other.wait_s
        self.time_s += other.time_s

    def interval(self, images_per_update: int) -> Interval:
        made = self.updates - self.skipped
        return Interval(
            loss=self.loss / made if made else math.nan,
            img_per_s=self.updates * images_per_update / self.time_s,
            data_wait_percent=100 * self.wait_s / self.time_s,
            updates=self.updates,
            skipped=self.skipped,
        )


class WaitTimer:
    """How long the device had nothing to do because the next batch was not there.

    On a GPU two events around the hand-over measure the gap in its stream, however far ahead the
    host runs; on a CPU the host's own waiting is the gap.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._waited_s = 0.0

    def __enter__(self) -> None:
        if self._on_gpu:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)
        else:
            self._start_s = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._waited_s += time.perf_counter() - self._start_s

    def read(self) -> float:
        """Seconds waited since the last reading; waits for the device."""
        for start, end in self._events:
            end.synchronize()
            self._waited_s += start.elapsed_time(end) / 1e3
        self._events.clear()
        waited, self._waited_s = self._waited_s, 0.0
        return waited

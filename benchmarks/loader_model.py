"""A discrete-event model of the CPU loader: what more cores would give, and where they would wait.

The model has cores, the interpreter lock of each process, the pipelines with their threads, and the
thread that feeds them. As in DALI a pipeline runs one operator at a time, all of its threads wait
for the last of them at its end, and what the executor does itself is done by one thread. A thread
that waits for the lock leaves its core to others. Memory bandwidth, caches, hyper-threads and the
clock of a full processor are not in the model: more cores give less than it says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

# CPython asks the thread that holds the lock to let it go after this time (sys.setswitchinterval).
SWITCH_INTERVAL_US = 5000.0
_PREFETCH = 3


@dataclass(frozen=True)
class Costs:
    """CPU microseconds of an image, measured on one thread.

    Attributes:
        feeding: the thread that feeds and takes: draws, names, checks, inputs; under the lock.
        executor: DALI's executor, on one thread of the pipeline, without the lock.
        decoding: reading and decoding, on all threads.
        handing_over: images to Python and back; one thread under the lock.
        resize_locked: Python's part of the resize, on all threads under the lock.
        contention: what `resize_locked` takes more while another thread waits for the lock.
        resizing: the rest of the resize, on all threads without the lock.
        augmenting: RandAugment, on all threads.
        spread: how decoding differs between images: factors with a mean of 1.
    """

    feeding: float
    executor: float
    decoding: float
    handing_over: float
    resize_locked: float
    contention: float
    resizing: float
    augmenting: float
    spread: tuple[float, ...] = (1.0,)

    @property
    def total(self) -> float:
        """All of an image's CPU time, without contention."""
        shares = (self.feeding, self.executor, self.decoding, self.handing_over)
        return sum(shares) + self.resize_locked + self.resizing + self.augmenting

    @property
    def locked(self) -> float:
        """What of it one process can only do one image at a time."""
        return self.feeding + self.handing_over + self.resize_locked + self.contention


class _Resource:
    """Something of which `free` are to be had, in the order of asking."""

    def __init__(self, clock: _Clock, free: int) -> None:
        self._clock = clock
        self._free = free
        self.waiting: deque[_Process] = deque()

    def ask(self, process: _Process) -> None:
        if self._free:
            self._free -= 1
            self._clock.after(0.0, process)
        else:
            self.waiting.append(process)

    def give_back(self) -> None:
        if self.waiting:
            self._clock.after(0.0, self.waiting.popleft())
        else:
            self._free += 1


# A process is a generator: it goes on after the microseconds that it yields, with the resource that
# it yields, or when the countdown that it yields is over.
_Step = "float | _Resource | _Countdown"
_Process = Generator["float | _Resource | _Countdown", None, None]


class _Countdown:
    def __init__(self, clock: _Clock, number: int) -> None:
        self._clock = clock
        self._left = number
        self._waiting: list[_Process] = []

    def ask(self, process: _Process) -> None:
        if self._left:
            self._waiting.append(process)
        else:
            self._clock.after(0.0, process)

    def count(self) -> None:
        self._left -= 1
        if not self._left:
            for process in self._waiting:
                self._clock.after(0.0, process)


class _Clock:
    def __init__(self) -> None:
        self.now_us = 0.0
        self._events: list[tuple[float, int, _Process]] = []
        self._numbers = itertools.count()

    def after(self, us: float, process: _Process) -> None:
        heapq.heappush(self._events, (self.now_us + us, next(self._numbers), process))

    def run(self, is_over: Callable[[], bool]) -> None:
        while self._events and not is_over():
            self.now_us, _, process = heapq.heappop(self._events)
            step = next(process, None)
            if isinstance(step, float):
                self.after(step, process)
            elif step is not None:
                step.ask(process)


class _Loader:
    """One process with its pipelines."""

    def __init__(
        self, clock: _Clock, cores: _Resource, costs: Costs, threads: Sequence[int], batch: int
    ) -> None:
        self._clock, self._cores, self._costs, self._batch = clock, cores, costs, batch
        self._lock = _Resource(clock, 1)
        self._threads = threads  # of each pipeline
        self.taken_us: list[float] = []  # when each batch was taken

    def start(self, num_batches: int) -> None:
        """Load batches from now on."""
        self._clock.after(0.0, self._feed(num_batches))

    def _feed(self, num_batches: int) -> _Process:
        number = len(self._threads)
        depth = max(2, -(-_PREFETCH // number)) * number
        ready: list[_Countdown] = []
        before: list[_Countdown | None] = [None] * number  # the last batch of each pipeline
        for i in range(num_batches + depth):
            if i >= depth:
                yield ready[i - depth]
                self.taken_us.append(self._clock.now_us)
            yield from self._locked(self._costs.feeding * self._batch)
            done = _Countdown(self._clock, 1)
            which = i % number
            process = self._pipeline(i, self._threads[which], before[which], done)
            self._clock.after(0.0, process)
            before[which] = done
            ready.append(done)

    def _pipeline(
        self, number: int, threads: int, before: _Countdown | None, done: _Countdown
    ) -> _Process:
        costs, batch = self._costs, self._batch
        if before is not None:
            yield before
        yield from self._computed(costs.executor * batch)
        spread = costs.spread
        yield from self._operator(
            threads,
            [
                self._computed(costs.decoding * spread[(number * batch + i) % len(spread)])
                for i in range(batch)
            ],
        )
        yield from self._locked(costs.handing_over * batch)
        yield from self._operator(threads, [self._resized() for _ in range(batch)])
        augmented = [self._computed(costs.augmenting) for _ in range(batch)]
        yield from self._operator(threads, augmented)
        done.count()

    def _operator(self, threads: int, images: Sequence[_Process]) -> _Process:
        """All images on some threads; over when the last is."""
        left, all_done = iter(images), _Countdown(self._clock, threads)

        def work() -> _Process:
            for image in left:
                yield from image
            all_done.count()

        for _ in range(threads):
            self._clock.after(0.0, work())
        yield all_done

    def _resized(self) -> _Process:
        yield from self._locked(self._costs.resize_locked, self._costs.contention)
        yield from self._computed(self._costs.resizing)

    def _computed(self, us: float) -> _Process:
        yield self._cores
        yield float(us)
        self._cores.give_back()

    def _locked(self, us: float, if_contended_us: float = 0.0) -> _Process:
        """Python: a core and the lock, which is left to others now and then."""
        while us > 0:
            yield self._lock
            part = min(us, SWITCH_INTERVAL_US)
            yield from self._computed(part + (if_contended_us if self._lock.waiting else 0.0))
            self._lock.give_back()
            us -= part


def modelled_rate(
    costs: Costs, cores: int, processes: int = 1, pipelines: int = 2, batch: int = 256
) -> float:
    """Images/s of all processes together on so many cores.

    Args:
        processes: each with a loader of its own; they share the cores, not the lock.
        pipelines: of each process; their threads are as many as the process's share of the cores.
    """
    clock = _Clock()
    of_cores = _Resource(clock, cores)
    share = max(1, cores // processes)
    number = min(pipelines, share)
    threads = [share // number + (i < share % number) for i in range(number)]
    loaders = [_Loader(clock, of_cores, costs, threads, batch) for _ in range(processes)]
    num_batches = 12 * number
    for loader in loaders:
        loader.start(num_batches)
    clock.run(lambda: all(len(loader.taken_us) == num_batches for loader in loaders))
    # From the first round of the pipelines to the last, so that no start is in it.
    return sum(
        1e6
        * batch
        * (num_batches - 2 * number)
        / (each.taken_us[-1] - each.taken_us[2 * number - 1])
        for each in loaders
    )

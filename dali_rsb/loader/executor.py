"""Feeds DALI pipelines some iterations ahead and takes their outputs.

All that touches DALI's executor stands here.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nvidia.dali import Pipeline
from nvidia.dali.backend import TensorGPU
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

Inputs = Mapping[str, Any]  # a numpy array [B, ...] or a list of B arrays for each input name


@dataclass(frozen=True)
class Division:
    """How threads and iterations are divided among round-robin pipelines.

    DALI runs one CPU operator of a pipeline at a time, and at its end all threads wait for the
    slowest of them. Pipelines of one thread never wait: on 2 cores, two of them are a fifth faster
    than one of two threads (160 px with RandAugment), and decode-once for copies a quarter.

    Args:
        num_threads: of all pipelines together.
        prefetch: iterations in flight in all of them; each has 2 at least.
        pipelines: how many serve round-robin.
    """

    num_threads: int
    prefetch: int
    pipelines: int

    @property
    def threads_each(self) -> int:
        """Threads of one pipeline."""
        return max(1, self.num_threads // self.pipelines)

    @property
    def prefetch_each(self) -> int:
        """Queue depth of one pipeline."""
        return max(2, math.ceil(self.prefetch / self.pipelines))


def default_pipelines(device: torch.device, num_threads: int) -> int:
    """Pipelines where nobody has measured: one on a GPU, two on a CPU with threads for them."""
    return 1 if device.type == "cuda" else min(2, num_threads)


def is_failure_of_device(error: RuntimeError) -> bool:
    """Whether DALI failed for want of memory or because the GPU did, whatever the images."""
    return _FAILURE_OF_DEVICE.search(str(error)) is not None


_FAILURE_OF_DEVICE = re.compile(
    r"out of memory|MemoryAllocation|OUT_OF_MEMORY|CUDA (runtime|driver) API error"
)

# A fork in the middle of a run would leave DALI's locks taken for ever in the child, where any
# pipeline then waits without end: every process forks between runs. What a child inherits it must
# neither use nor free, either of which would wait for threads that did not come along.
_RUNNERS: weakref.WeakSet[PipelineRunner] = weakref.WeakSet()
_ONE_FORK = threading.Lock()
_HALTED: list[PipelineRunner] = []  # by the fork that is going on
_INHERITED: list[object] = []

# Outputs of a pipeline that were taken, and that the GPU may not have come to yet. A host is faster
# than its GPU, and DALI decodes on for a host that takes: only CUDA's queue of launches would stop
# it, which holds many steps, with a decoded batch each, where a step is one CUDA graph.
_MAX_UNREAD = 4


def _before_fork() -> None:
    _ONE_FORK.acquire()
    for runner in list(_RUNNERS):
        runner.lock.acquire()
        _HALTED.append(runner)
        runner.settle()


def _after_fork_in_parent() -> None:
    while _HALTED:
        _HALTED.pop().lock.release()
    _ONE_FORK.release()


def _after_fork_in_child() -> None:
    for runner in _HALTED:
        _INHERITED.append(runner.abandon())
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


class PipelineRunner:
    """Runs a pipeline with one output asynchronously, in the order of submission.

    In a forked child it starts again, with nothing in flight.

    Args:
        build: makes the pipeline; called again after a failure, which DALI does not survive.
        prefetch: the pipeline's queue depth; submit at most this many batches ahead.
    """

    def __init__(self, build: Callable[[], Pipeline], prefetch: int) -> None:
        self.prefetch = prefetch
        self._build = build
        self._pipeline: Pipeline | None = None
        self._started = False
        # For each batch fed: will its output be taken? And its inputs, which must live until then:
        # the graph may read them in place.
        self._in_flight: deque[tuple[bool, Inputs]] = deque()
        # Of the first of these, what came out already, or the failure; see `settle`.
        self._settled: deque[Tensor | RuntimeError | None] = deque()
        self._copies: deque[torch.cuda.Event] = deque()  # the newest, of a GPU's outputs
        self.lock = threading.RLock()  # held by a fork, which may come from another thread
        _RUNNERS.add(self)

    def __del__(self) -> None:
        self.reset()

    def submit(self, inputs: Inputs) -> None:
        """Start a batch."""
        self._feed(inputs, wanted=True)

    def take(self) -> Tensor:
        """Wait for the oldest batch that was submitted.

        Returns:
            uint8 [B, H, W, C] on the pipeline's device, ready on the current stream. Later batches
            never overwrite it.

        Raises:
            RuntimeError: an operator failed; the pipeline is gone and `reset` must be called.
        """
        assert self._pipeline is not None
        while not self._started:
            # DALI's first run schedules a whole queue; fill it up with copies nobody takes.
            self._feed(self._last_inputs, wanted=False)
        while not self._in_flight[0][0]:
            self._next_output()
        images = self._next_output()
        assert images is not None
        return images

    def settle(self) -> None:
        """Wait until no run is going on; what came out is kept for `take`. With the lock held."""
        if self._pipeline is None or not self._started:
            return
        for wanted, _ in list(self._in_flight)[len(self._settled) :]:
            try:
                self._settled.append(self._receive(wanted))
            except RuntimeError as error:
                self._settled.append(error)
                return
        if self._pipeline.device_id is not None:
            # `take` may be on another stream.
            torch.cuda.current_stream(self._pipeline.device_id).synchronize()

    def abandon(self) -> object:
        """Forget everything; returns what must not be freed."""
        inherited = (self._pipeline, self._settled, self._copies)
        self._pipeline, self._settled, self._copies = None, deque(), deque()
        self.reset()
        return inherited

    def _next_output(self) -> Tensor | None:
        """The oldest output, or None if nobody wants it."""
        with self.lock:
            if self._settled:
                output = self._settled.popleft()
            else:
                output = self._receive(self._in_flight[0][0])
            if isinstance(output, RuntimeError):
                raise output
            self._in_flight.popleft()
            return output

    def _receive(self, wanted: bool) -> Tensor | None:
        assert self._pipeline is not None
        device_id = self._pipeline.device_id
        if device_id is None:
            (output,) = self._pipeline.share_outputs()
            images = from_dlpack(output.as_tensor()) if wanted else None
        else:
            stream = torch.cuda.current_stream(device_id) if wanted else None
            (output,) = self._pipeline.share_outputs(cuda_stream=stream)
            images = self._copy(output.as_tensor(), stream) if stream is not None else None
        self._pipeline.release_outputs()
        return images

    def _copy(self, tensor: TensorGPU, stream: torch.cuda.Stream) -> Tensor:
        """Copy DALI's uint8 tensor into memory of PyTorch's, in the order of `stream`.

        Without a copy the tensor would be DALI's to free: it asks a thread to wait for the whole
        device each time, since it cannot know which stream still reads it. That thread takes a core
        away from decoding, and its waiting may spoil a CUDA graph that is being recorded. The copy
        moves 39 MB for 256 images of 160 px: an estimated 20 microseconds on an H100, a thousandth
        of a step.

        DALI's own stream goes on behind the copy, and so behind the step before it: resizing and
        RandAugment are at most one batch ahead of the training. Decoding has a stream of its own.
        """
        images = torch.empty(tensor.shape(), dtype=torch.uint8, device=stream.device)
        copied: Tensor = feed_ndarray(tensor, images, cuda_stream=stream)
        if len(self._copies) == _MAX_UNREAD:
            self._copies.popleft().synchronize()
        done = torch.cuda.Event(blocking=True)  # whoever waits leaves the core to the decoders
        done.record(stream)
        self._copies.append(done)
        return copied

    def discard(self) -> None:
        """Forget the batches in flight: their outputs are dropped when they come."""
        self._in_flight = deque((False, inputs) for _, inputs in self._in_flight)

    def reset(self) -> None:
        """Drop the pipeline and everything in flight; the next submission builds it again."""
        with self.lock:
            self._pipeline = None  # first: its threads may still be reading inputs
            self._started = False
            self._in_flight.clear()
            self._settled.clear()
            self._copies.clear()

    def _feed(self, inputs: Inputs, wanted: bool) -> None:
        with self.lock:
            if self._pipeline is None:
                self._pipeline = self._build()
                self._pipeline.build()
            for name, data in inputs.items():
                self._pipeline.feed_input(name, data)
            self._in_flight.append((wanted, inputs))
            if self._started:
                self._pipeline.schedule_run()
            elif len(self._in_flight) == self.prefetch:
                self._pipeline.schedule_run()
                self._started = True
            self._last_inputs = inputs


class RoundRobin:
    """Several `PipelineRunner`s as one: each iteration goes to the next of them (see `Division`).

    Args:
        build, prefetch: of each of them, see `PipelineRunner`.
        number: how many.
    """

    def __init__(self, build: Callable[[], Pipeline], prefetch: int, number: int) -> None:
        self.prefetch = prefetch * number
        self._runners = [PipelineRunner(build, prefetch) for _ in range(number)]
        self._start()

    def _start(self) -> None:
        self._next_to_feed = itertools.cycle(self._runners)
        self._next_to_take = itertools.cycle(self._runners)

    def submit(self, inputs: Inputs) -> None:
        """See `PipelineRunner.submit`."""
        next(self._next_to_feed).submit(inputs)

    def take(self) -> Tensor:
        """See `PipelineRunner.take`; after a failure all of them must be reset."""
        return next(self._next_to_take).take()

    def discard(self) -> None:
        """See `PipelineRunner.discard`."""
        for runner in self._runners:
            runner.discard()
        self._start()

    def reset(self) -> None:
        """See `PipelineRunner.reset`."""
        for runner in self._runners:
            runner.reset()
        self._start()

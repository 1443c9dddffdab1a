"""A micro-batch's forward and backward pass as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from dali_rsb.loader.loader import Batch, Mixing

# cuDNN chooses its algorithms and libraries take their workspaces in the first calls; PyTorch's
# notes on CUDA graphs ask for three before a capture.
WARM_UP_CALLS = 3

Function = Callable[[Batch], Tensor]


class Recorder(Protocol):
    """Makes a call that can be made again without the host."""

    def warm_up(self, function: Function, batch: Batch) -> Tensor:
        """Make an ordinary call, and return what the function does."""
        ...

    def record(self, function: Function, batch: Batch) -> tuple[Tensor, Callable[[], None]]:
        """Record a call without making it.

        Returns:
            The tensor that will hold the result, and what makes the call: with `batch`'s tensors
            as they are then.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, function: Function, batch: Batch) -> Tensor:
        # On the stream that captures: gradients remember the stream they first came from.
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            result = function(batch)
        caller.wait_stream(self._stream)
        return result

    def record(self, function: Function, batch: Batch) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # DALI's threads allocate and query events meanwhile: only this thread's calls may not.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = function(batch)
        return result, graph.replay


@dataclass(frozen=True)
class _Recording:
    """A recorded call: what it reads, what it returns, and how to make it."""

    inputs: Batch
    result: Tensor
    replay: Callable[[], None]


class StepGraph:
    """Calls a function of a batch, and from its fourth call on replays what was recorded.

    The recording reads copies of the batch at fixed addresses and adds to the gradients where they
    lie, so whoever zeroes them must keep the tensors (`zero_grad(set_to_none=False)`). Batches with
    and without mixing, and batches of other shapes, have a recording each. Dropout and stochastic
    depth follow the generator's seed at the time of a replay.

    Args:
        function: mixing, forward pass, loss and backward pass of a batch; returns the loss. It
            must not wait for the device, and must do the same work for every batch of one shape.
        recorder: `CudaRecorder`, on a GPU.
    """

    def __init__(self, function: Function, recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """Make the call; the result is overwritten by the next one."""
        kind = tuple(tensor.shape for tensor in _tensors(batch))
        if self._calls[kind] < WARM_UP_CALLS:
            self._calls[kind] += 1
            return self._recorder.warm_up(self._function, batch)
        if kind not in self._recordings:
            inputs = _copy(batch)
            self._recordings[kind] = _Recording(
                inputs, *self._recorder.record(self._function, inputs)
            )
        recording = self._recordings[kind]
        for ours, theirs in zip(_tensors(recording.inputs), _tensors(batch), strict=True):
            ours.copy_(theirs)
        recording.replay()
        return recording.result


def _tensors(batch: Batch) -> list[Tensor]:
    mixing = [] if batch.mixing is None else [getattr(batch.mixing, f.name) for f in fields(Mixing)]
    return [batch.images, batch.labels, *mixing]


def _copy(batch: Batch) -> Batch:
    mixing = batch.mixing
    if mixing is not None:
        mixing = Mixing(*(getattr(mixing, f.name).clone() for f in fields(Mixing)))
    return replace(batch, images=batch.images.clone(), labels=batch.labels.clone(), mixing=mixing)

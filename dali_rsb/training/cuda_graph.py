"""A micro-batch's forward and backward pass as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# cuDNN chooses its algorithms and libraries take their workspaces in the first calls; PyTorch's
# notes on CUDA graphs ask for three before a capture.
WARM_UP_CALLS = 3

BatchT = TypeVar("BatchT")  # a dataclass of tensors


class Recorder(Protocol):
    """Makes a call that can be made again without the host."""

    def warm_up(self, function: Callable[[BatchT], Tensor], batch: BatchT) -> Tensor:
        """Make an ordinary call, and return what the function does."""
        ...

    def record(
        self, function: Callable[[BatchT], Tensor], batch: BatchT
    ) -> tuple[Tensor, Callable[[], None]]:
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

    def warm_up(self, function: Callable[[BatchT], Tensor], batch: BatchT) -> Tensor:
        # On the stream that captures: gradients remember the stream they first came from.
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            result = function(batch)
        caller.wait_stream(self._stream)
        return result

    def record(
        self, function: Callable[[BatchT], Tensor], batch: BatchT
    ) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream the current one: the outer context undoes that.
        # DALI's threads allocate and query events meanwhile: only this thread's calls may not.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = function(batch)
        return result, graph.replay


@dataclass(frozen=True)
class _Recording(Generic[BatchT]):
    """A recorded call: what it reads, what it returns, and how to make it."""

    inputs: BatchT
    result: Tensor
    replay: Callable[[], None]


class StepGraph(Generic[BatchT]):
    """Calls a function of a batch, and from its fourth call on replays what was recorded.

    A batch is a dataclass of tensors, perhaps in dataclasses of their own. The recording reads
    copies of them at fixed addresses and adds to the gradients where they lie, so whoever zeroes
    the gradients must keep the tensors (`zero_grad(set_to_none=False)`). Batches with other tensors
    or shapes have a recording each. Where nothing can be recorded, calls are made as they are, and
    a line of the log says so. Dropout and stochastic depth follow the generator's seed at the time
    of a replay.

    Args:
        function: forward pass, loss and backward pass of a batch; returns the loss. It must not
            wait for the device, and must do the same work for every batch of one shape.
        recorder: `CudaRecorder`, on a GPU.
    """

    def __init__(self, function: Callable[[BatchT], Tensor], recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._recordings: dict[tuple[torch.Size, ...], _Recording[BatchT]] = {}
        self._has_failed = False

    def __call__(self, batch: BatchT) -> Tensor:
        """Make the call; the result is overwritten by the next one."""
        kind = tuple(tensor.shape for tensor in _tensors(batch))
        if self._calls[kind] < WARM_UP_CALLS:
            self._calls[kind] += 1
            return self._recorder.warm_up(self._function, batch)
        if kind not in self._recordings and not self._has_failed:
            self._record(kind, batch)
        if kind not in self._recordings:
            return self._recorder.warm_up(self._function, batch)
        recording = self._recordings[kind]
        for ours, theirs in zip(_tensors(recording.inputs), _tensors(batch), strict=True):
            ours.copy_(theirs)
        recording.replay()
        return recording.result

    def _record(self, kind: tuple[torch.Size, ...], batch: BatchT) -> None:
        inputs = _copy(batch)
        try:
            result, replay = self._recorder.record(self._function, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of CUDA, of a library that waits for the device, ...
            self._has_failed = True
            logger.warning(
                "training goes on without a CUDA graph, which failed (%s: %s); "
                "set run.cuda_graph=false",
                type(error).__name__,
                " ".join(str(error).split())[:120],
            )
        else:
            self._recordings[kind] = _Recording(inputs, result, replay)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a batch, in the order of its fields."""
    if isinstance(value, Tensor):
        return [value]
    if not is_dataclass(value):
        return []
    return [tensor for f in fields(value) for tensor in _tensors(getattr(value, f.name))]


def _copy(value: Any) -> Any:
    """A batch with copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: _copy(getattr(value, f.name)) for f in fields(value)})

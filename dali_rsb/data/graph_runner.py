"""Feeds a DALI pipeline a few batches ahead and takes their outputs: all that touches DALI's
executor stands here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from nvidia.dali import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

Inputs = Mapping[str, Any]  # a numpy array [B, ...] or a list of B arrays for each input name


class GraphRunner:
    """Runs a pipeline with one output asynchronously, in the order of submission.

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
        self._under_way: deque[tuple[bool, Inputs]] = deque()

    def __del__(self) -> None:
        self.reset()

    def submit(self, inputs: Inputs) -> None:
        """Start a batch."""
        self._feed(inputs, wanted=True)

    def take(self) -> Tensor:
        """Wait for the oldest batch that was submitted.

        Returns:
            uint8 [B, H, W, C] on the pipeline's device, ready on the current stream. The tensor
            owns DALI's buffer: later batches never overwrite it.

        Raises:
            RuntimeError: an operator failed; the pipeline is gone and `reset` must be called.
        """
        assert self._pipeline is not None
        while not self._started:
            # DALI's first run schedules a whole queue; fill it up with copies nobody takes.
            self._feed(self._last_inputs, wanted=False)
        while not self._under_way[0][0]:
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()
            self._under_way.popleft()
        on_gpu = self._pipeline.device_id is not None
        stream = torch.cuda.current_stream() if on_gpu else None
        (output,) = self._pipeline.share_outputs(cuda_stream=stream)
        images = from_dlpack(output.as_tensor())
        self._pipeline.release_outputs()
        self._under_way.popleft()
        return images

    def discard(self) -> None:
        """Forget the batches under way: their outputs are dropped when they come."""
        self._under_way = deque((False, inputs) for _, inputs in self._under_way)

    def reset(self) -> None:
        """Drop the pipeline and everything under way; the next submission builds it anew."""
        self._pipeline = None  # first: its threads may still be reading inputs
        self._started = False
        self._under_way.clear()

    def _feed(self, inputs: Inputs, wanted: bool) -> None:
        if self._pipeline is None:
            self._pipeline = self._build()
            self._pipeline.build()
        for name, data in inputs.items():
            self._pipeline.feed_input(name, data)
        self._under_way.append((wanted, inputs))
        if self._started:
            self._pipeline.schedule_run()
        elif len(self._under_way) == self.prefetch:
            self._pipeline.schedule_run()
            self._started = True
        self._last_inputs = inputs

"""The loader: batches of decoded images on the device, a few of them always under way."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor

from dali_rsb.data.bad_images import BadImages
from dali_rsb.data.graph_runner import GraphRunner
from dali_rsb.data.samples import BatchSpec, PreparedBatch, replace_indices

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixing:
    """A batch's mixing on the device; see `dali_rsb.data.mixing.MixDraws` for the fields."""

    partner: Tensor  # int64 [B]
    pixel_lam: Tensor  # float32 [B]
    box: Tensor  # int32 [B, 4]
    lam: Tensor  # float32 [B]


@dataclass(frozen=True)
class Batch:
    """One device batch.

    Attributes:
        images: uint8 [B, H, W, 3], contiguous, owned by this batch.
        labels: int64 [B].
        num_valid: rows from here on are padding (evaluation only).
        mixing: who mixes with whom, or None.
    """

    images: Tensor
    labels: Tensor
    num_valid: int
    mixing: Mixing | None = None


class Samples(Protocol):
    """What the loader loads: `TrainSamples` or `EvalSamples`."""

    def prepare(self, spec: BatchSpec) -> PreparedBatch:
        """Turn indices and positions into the graph's inputs."""
        ...


class Loader:
    """Decodes batches through a DALI graph, `prefetch` of them ahead of the one in use.

    Args:
        samples: says what a batch specification means.
        build_pipeline: makes the graph; its inputs must be those that `samples` prepares.
        device: where labels and draws go; the graph's own device.
        prefetch: batches under way; the pipeline must have been built with the same depth.
        bad_images: what to do about images that cannot be decoded.
    """

    def __init__(
        self,
        samples: Samples,
        build_pipeline: Callable[[], Pipeline],
        device: torch.device,
        prefetch: int,
        bad_images: BadImages,
    ) -> None:
        self._samples = samples
        self._device = device
        self._runner = GraphRunner(build_pipeline, prefetch)
        self._bad_images = bad_images

    @property
    def prefetch(self) -> int:
        """Batches under way."""
        return self._runner.prefetch

    def with_samples(self, samples: Samples) -> Loader:
        """A view of this loader, with its pipeline and its bad images, that loads other samples."""
        view = copy.copy(self)
        view._samples = samples
        return view

    def batches(self, specs: Iterable[BatchSpec]) -> Generator[Batch, None, None]:
        """Yield the batches of `specs` in order. Stopping early is safe.

        Raises:
            UserError: an image cannot be decoded and may not be replaced.
        """
        waiting: deque[tuple[BatchSpec, PreparedBatch]] = deque()
        try:
            for spec in specs:
                waiting.append((spec, self._submit(spec)))
                if len(waiting) == self._runner.prefetch:
                    yield self._take(waiting)
            while waiting:
                yield self._take(waiting)
        finally:
            self._runner.discard()

    def close(self) -> None:
        """Free the pipeline with its threads and buffers; the next batch builds it anew."""
        self._runner.reset()

    def _submit(self, spec: BatchSpec) -> PreparedBatch:
        spec = replace_indices(spec, self._bad_images.replacements)
        prepared = self._samples.prepare(spec)
        self._bad_images.conversions.substitute(prepared.images, spec.indices)
        self._runner.submit(prepared.inputs)
        return prepared

    def _take(self, waiting: deque[tuple[BatchSpec, PreparedBatch]]) -> Batch:
        while True:
            try:
                images = self._runner.take()
            except RuntimeError as error:
                self._recover(waiting, error)
            else:
                spec, prepared = waiting.popleft()
                return self._assemble(images, spec, prepared)

    def _recover(
        self, waiting: deque[tuple[BatchSpec, PreparedBatch]], error: RuntimeError
    ) -> None:
        """Replace the images that made the graph fail and start the batches under way again."""
        specs = [spec for spec, _ in waiting]
        indices = np.unique(np.concatenate([spec.indices for spec in specs]))
        self._bad_images.find(indices, error)
        self._runner.reset()
        waiting.clear()
        waiting.extend((spec, self._submit(spec)) for spec in specs)

    def _assemble(self, images: Tensor, spec: BatchSpec, prepared: PreparedBatch) -> Batch:
        mix = prepared.mix
        mixing = None
        if mix is not None:
            mixing = Mixing(
                partner=self._to_device(mix.partner),
                pixel_lam=self._to_device(mix.pixel_lam),
                box=self._to_device(mix.box),
                lam=self._to_device(mix.lam),
            )
        labels = self._to_device(prepared.labels.astype(np.int64))
        return Batch(images, labels, spec.num_valid, mixing)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

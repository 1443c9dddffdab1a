"""The loader: batches of decoded images on the device, a few of them always in flight."""

from __future__ import annotations

import copy
import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor

from dali_rsb.dataset.raw.reading import WindowReader
from dali_rsb.draws.mixing import MixDraws
from dali_rsb.draws.samples import BatchSpec, PreparedRun, joined_indices, replace_indices
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.batch import Batch, BatchMixing
from dali_rsb.loader.executor import RoundRobin, is_failure_of_device
from dali_rsb.loader.rand_augment import apply_operands
from dali_rsb.loader.transfer import to_device
from pipelines.types import IMAGENET_FILL, PIXELS, RAW_PLACE

logger = logging.getLogger(__name__)


class Samples(Protocol):
    """What the loader loads: `TrainSamples` or `EvalSamples`."""

    def prepare(self, *specs: BatchSpec) -> PreparedRun:
        """Turn indices and positions into the inputs of one iteration of the pipeline."""
        ...


@dataclass(frozen=True)
class _Run:
    """An iteration of a pipeline that is in flight, and the batches that come of it.

    Attributes:
        asked: the batches that were asked for.
        specs: the same with bad images replaced.
    """

    asked: tuple[BatchSpec, ...]
    specs: tuple[BatchSpec, ...]
    prepared: PreparedRun


class Loader:
    """Decodes batches through DALI pipelines, some of them ahead of the one in use.

    An iteration of a pipeline has a fixed cost, operator by operator; where batches are small,
    several of them share one. The images of an iteration are one tensor, freed with the last of its
    batches.

    Args:
        samples: says what a batch specification means.
        build_pipeline: makes a pipeline; its inputs must be those that `samples` prepares, and its
            batch size must suffice for an iteration.
        device: where labels and draws go; the pipeline's own device.
        prefetch: iterations in flight in a pipeline, which must have been built with that depth.
        bad_images: what to do about images that cannot be decoded.
        batches_per_run: how many batches share an iteration.
        pipelines: how many pipelines serve round-robin (see `executor.Division`).
        fill: colour that geometric operations bring in, where they are left to the kernels.
        decodes_on_gpu: whether the pipelines use a decoder of the GPU, which may refuse images.
        reader: reads images that are stored as pixels, where the pipelines take these.
    """

    def __init__(
        self,
        samples: Samples,
        build_pipeline: Callable[[], Pipeline],
        device: torch.device,
        prefetch: int,
        bad_images: BadImages,
        batches_per_run: int = 1,
        pipelines: int = 1,
        fill: tuple[int, int, int] = IMAGENET_FILL,
        decodes_on_gpu: bool = False,
        reader: WindowReader | None = None,
    ) -> None:
        self._samples = samples
        self._device = device
        self._runner = RoundRobin(build_pipeline, prefetch, pipelines)
        self._bad_images = bad_images
        self._batches_per_run = batches_per_run
        self._fill = fill
        self._decodes_on_gpu = decodes_on_gpu
        self._reader = reader

    @property
    def prefetch(self) -> int:
        """Iterations in flight, in all pipelines."""
        return self._runner.prefetch

    @property
    def batches_in_flight(self) -> int:
        """Batches in all iterations in flight."""
        return self.prefetch * self._batches_per_run

    def with_samples(self, samples: Samples) -> Loader:
        """A view of this loader, with its pipelines and bad images, that loads other samples."""
        view = copy.copy(self)
        view._samples = samples
        return view

    def batches(self, specs: Iterable[BatchSpec]) -> Generator[Batch, None, None]:
        """Yield the batches of `specs` in order. Stopping early is safe.

        Raises:
            UserError: an image cannot be decoded and may not be replaced.
        """
        waiting: deque[_Run] = deque()
        specs = iter(specs)
        try:
            while of_run := tuple(itertools.islice(specs, self._batches_per_run)):
                waiting.append(self._submit(of_run))
                if len(waiting) == self.prefetch:
                    yield from self._take(waiting)
            while waiting:
                yield from self._take(waiting)
        finally:
            self._runner.discard()

    def close(self) -> None:
        """Free the pipelines with their threads and buffers; the next batches build them again."""
        self._runner.reset()

    def _submit(self, asked: tuple[BatchSpec, ...]) -> _Run:
        specs = self._replaced(asked)
        if self._bad_images.admit(joined_indices(specs)):
            specs = self._replaced(specs)
        prepared = self._samples.prepare(*specs)
        conversions = self._bad_images.conversions
        copied = conversions.substitute(prepared.images, joined_indices(specs))
        prepared.take_whole_images(copied)
        _check_windows(prepared.inputs)
        self._runner.submit(self._with_pixels(prepared.inputs))
        return _Run(asked, specs, prepared)

    def _with_pixels(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs with windows in place of where they lie, if the pipelines take those."""
        if self._reader is None:
            return inputs
        others = {name: values for name, values in inputs.items() if name != RAW_PLACE}
        return others | {PIXELS: self._reader.read(inputs[RAW_PLACE])}

    def _replaced(self, specs: tuple[BatchSpec, ...]) -> tuple[BatchSpec, ...]:
        return tuple(replace_indices(spec, self._bad_images.replacements) for spec in specs)

    def _take(self, waiting: deque[_Run]) -> Iterator[Batch]:
        is_retried = False
        while True:
            try:
                images = self._runner.take()
            except RuntimeError as error:
                try:
                    self._find_bad_images(waiting, error)
                except RuntimeError:
                    # All images decode now: a file may have been in the middle of being written.
                    if is_retried or is_failure_of_device(error):
                        raise
                    is_retried = True
                self._restart(waiting)
            else:
                return self._assemble(images, waiting.popleft())

    def _find_bad_images(self, waiting: deque[_Run], error: RuntimeError) -> None:
        """Replace the images that made the pipeline fail; raise the error if there are none."""
        indices = np.unique(np.concatenate([joined_indices(run.specs) for run in waiting]))
        gpu = device_id(self._device) if self._decodes_on_gpu else None
        self._bad_images.find(indices, error, gpu)

    def _restart(self, waiting: deque[_Run]) -> None:
        """Start the iterations in flight again."""
        runs = [run.asked for run in waiting]
        self._runner.reset()
        waiting.clear()
        waiting.extend(self._submit(specs) for specs in runs)

    def _assemble(self, images: Tensor, run: _Run) -> Iterator[Batch]:
        if run.prepared.randaugment is not None:
            operands = run.prepared.randaugment
            images = apply_operands(images, operands, self._fill, may_overwrite=True)
        labels = self._to_device(run.prepared.labels.astype(np.int64))
        sizes = [len(spec.indices) for spec in run.specs]
        parts = zip(images.split(sizes), labels.split(sizes), strict=True)
        draws = zip(run.prepared.mixes, run.prepared.erasings, strict=True)
        pairs = zip(run.asked, run.specs, strict=True)
        for (asked, spec), (mix, erasing), (part, of_part) in zip(pairs, draws, parts, strict=True):
            replaced = int((asked.indices != spec.indices).sum())
            yield Batch(part, of_part, spec.num_valid, self._mixing(mix), erasing, replaced)

    def _mixing(self, mix: MixDraws | None) -> BatchMixing | None:
        if mix is None:
            return None
        return BatchMixing(
            partner=self._to_device(mix.partner),
            pixel_lam=self._to_device(mix.pixel_lam),
            box=self._to_device(mix.box),
            lam=self._to_device(mix.lam),
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return to_device(array, self._device)


def device_id(device: torch.device) -> int | None:
    """The GPU's number, or None for a CPU: how DALI's pipelines take it."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _check_windows(inputs: Mapping[str, Any]) -> None:
    """Raise a ValueError where a window leaves its image: DALI's decoder might crash over it."""
    if "anchor" in inputs:
        start, size = inputs["anchor"], inputs["shape"]
        fits = (start >= 0) & (size > 0) & (start + size <= inputs["size"][:, :2])
        if not fits.all():
            row = int(np.argmin(fits.all(axis=1)))
            raise ValueError(
                f"row {row}: the window at {start[row].tolist()} of {size[row].tolist()} leaves an "
                f"image of {inputs['size'][row, :2].tolist()} pixels (y, x)"
            )

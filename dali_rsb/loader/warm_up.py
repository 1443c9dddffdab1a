"""Reaches DALI's peak memory before the first update, with the largest batches of a run.

DALI's buffers grow to the largest batch that they have met and do not shrink: a run that fits at
first may run out of memory hours later. As the order of an epoch is a pure function, the largest
batches are known before the first one. They go through the graphs once, and nobody looks at them.

Not the largest images of the dataset all in one batch: that would take many times the memory of any
batch that a run meets, and keep it.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace

import numpy as np

from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.windows import Windows
from dali_rsb.draws.samples import (
    BatchSpec,
    EvalSamples,
    PreparedRun,
    TrainSamples,
    image_inputs,
    joined_indices,
)
from dali_rsb.errors import UserError
from dali_rsb.loader.loader import Loader

# Positions of the coming epochs that are searched for the largest batches: thirteen epochs of
# ImageNet. With made-up heavy-tailed sizes, the largest batch of a hundred epochs was 5 % larger;
# but whole images are fed, not their crop windows.
_MAX_POSITIONS = 2**24

_OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|MemoryAllocation|OUT_OF_MEMORY")


class WholeImages:
    """Training samples with whole images as crop windows: the most that a batch may take.

    Args:
        samples: the training samples; their other draws stay.
    """

    def __init__(self, samples: TrainSamples) -> None:
        self._samples = samples

    def prepare(self, *specs: BatchSpec) -> PreparedRun:
        index, indices = self._samples.index, joined_indices(specs)
        prepared = self._samples.prepare(*specs)
        size = np.stack([index.heights[indices], index.widths[indices]], axis=1)
        nothing = np.zeros(len(indices), np.int64)
        whole = Windows(nothing, nothing, *size.astype(np.int64).T)
        # Not the images of `prepared`, which may be no larger than their windows.
        inputs = prepared.inputs | image_inputs(index, index.window_images(indices, whole, True))
        inputs |= {"start": np.zeros(size.shape, np.float32), "end": size.astype(np.float32)}
        if "anchor" in inputs:
            inputs |= {"anchor": np.zeros(size.shape, np.int32), "shape": size.astype(np.int32)}
        return replace(prepared, inputs=inputs, origins=None)


def warm_up_training(
    loader: Loader,
    samples: TrainSamples,
    epoch: int,
    end_epoch: int,
    first_update: int = 0,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Run the largest batches of the coming epochs, and the largest image, through the graph.

    Args:
        loader: the training loader, at work on nothing.
        epoch, first_update: where training begins.
        end_epoch: epoch before which it ends.
        is_asked_to_stop: asked after each batch; if so, the rest is left out.

    Returns:
        Pixels of the largest batch.

    Raises:
        UserError: they do not fit into memory, or an image cannot be decoded and may not be
            replaced.
    """
    last_epoch = epoch + max(1, _MAX_POSITIONS // len(samples.index))
    specs = samples.stream(epoch, min(end_epoch, last_epoch), first_update)
    largest = largest_batches(specs, _pixels(samples.index), loader.batches_in_flight)
    return _run(loader.with_samples(WholeImages(samples)), largest, samples.index, is_asked_to_stop)


def warm_up_evaluation(
    loader: Loader, samples: EvalSamples, is_asked_to_stop: Callable[[], bool] = lambda: False
) -> int:
    """The same with the largest batches of an evaluation, which are the same each time.

    Raises:
        UserError: they do not fit into memory, or an image cannot be decoded.
    """
    largest = largest_batches(samples.specs(), _pixels(samples.index), loader.batches_in_flight)
    return _run(loader, largest, samples.index, is_asked_to_stop)


def largest_batches(specs: Iterable[BatchSpec], pixels: np.ndarray, number: int) -> list[BatchSpec]:
    """The batches with the most pixels, the largest first; the largest image joins it.

    Args:
        pixels: int64 [N], of each image.
    """
    largest = heapq.nlargest(number, specs, key=lambda spec: int(pixels[spec.indices].sum()))
    if largest:
        indices, largest_image = largest[0].indices.copy(), np.argmax(pixels)
        if largest_image not in indices:
            indices[np.argmin(pixels[indices])] = largest_image
            largest[0] = replace(largest[0], indices=indices)
    return largest


def _pixels(index: DatasetIndex) -> np.ndarray:
    return index.widths.astype(np.int64) * index.heights


def _run(
    loader: Loader,
    specs: list[BatchSpec],
    index: DatasetIndex,
    is_asked_to_stop: Callable[[], bool],
) -> int:
    try:
        with closing(loader.batches(specs)) as batches:
            for _ in batches:
                if is_asked_to_stop():
                    break
    except RuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise UserError(
            f"the largest batches of {index.origin} do not fit into memory; lower "
            "run.batch_per_device, data.prefetch or evaluation.batch_per_device"
        ) from error
    pixels = _pixels(index)
    return max((int(pixels[spec.indices].sum()) for spec in specs), default=0)

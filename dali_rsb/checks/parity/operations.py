"""The operations of RandAugment by the DALI pipeline, one at a time and at chosen magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from PIL import Image

from dali_rsb.draws.randaugment import OPERATIONS, RandAugmentDraws, RandAugmentPolicy
from dali_rsb.system.cpus import threads_per_process
from pipelines.inputs import external_inputs
from pipelines.randaugment import rand_augment, randaugment_inputs

BATCH_SIZE = 8  # few, for the memory that very large images take


@pipeline_def(enable_conditionals=True)
def _operation_graph(device: str, size_px: int, fill: tuple[int, int, int]) -> DataNode:
    images = fn.external_source(name="images", layout="HWC", dtype=types.UINT8, ndim=3)
    return rand_augment(
        images.gpu() if device == "gpu" else images,
        external_inputs(randaugment_inputs(1)),
        num_layers=1,
        size_px=(size_px, size_px),
        fill=fill,
        device=device,
    )


class Operations:
    """Applies operations to square images.

    Args:
        size_px: side of the images.
        device_id: the GPU, or None for the CPU pipeline.
        fill: colour of what geometric operations bring in.
    """

    def __init__(self, size_px: int, device_id: int | None, fill: tuple[int, int, int]) -> None:
        self._size_px = size_px
        self._device_id = device_id
        self._fill = fill

    def apply(
        self,
        images: Sequence[Image.Image],
        name: str,
        magnitude: float,
        negate: bool,
        increasing: bool,
    ) -> Iterator[np.ndarray]:
        """Yield the results, uint8 [size_px, size_px, 3]; see `pillow.apply_operation`."""
        policy = replace(RandAugmentPolicy(), num_layers=1, increasing=increasing)
        for start in range(0, len(images), BATCH_SIZE):
            batch = np.stack([np.asarray(image) for image in images[start : start + BATCH_SIZE]])
            shape = (len(batch), 1)
            draws = RandAugmentDraws(
                operation=np.full(shape, OPERATIONS.index(name), np.int8),
                magnitude=np.full(shape, magnitude),
                negate=np.full(shape, negate),
                increasing=increasing,
            )
            operands = policy.to_operands(draws, (self._size_px, self._size_px))
            (output,) = self._pipeline.run(images=batch, **operands)
            yield from output.as_cpu().as_array()

    @cached_property
    def _pipeline(self) -> Pipeline:
        return _operation_graph(
            "cpu" if self._device_id is None else "gpu",
            self._size_px,
            self._fill,
            batch_size=BATCH_SIZE,
            prefetch_queue_depth=1,
            num_threads=threads_per_process(1),
            device_id=self._device_id,
        )

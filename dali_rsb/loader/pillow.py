"""Evaluation images by Pillow instead of DALI: the reference that DALI's pixels are judged by."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.samples import BatchSpec, EvalSamples
from dali_rsb.errors import UserError
from dali_rsb.loader.batch import Batch
from dali_rsb.loader.transfer import to_device
from dali_rsb.system.names import printable

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BATCHES_AHEAD = 2


def eval_transform(image: Image.Image, geometry: EvalGeometry, interpolation: str) -> Image.Image:
    """Resize the shorter edge to `geometry.resize_px`, then take the centre."""
    shorter = min(image.size)
    width, height = (int(geometry.resize_px * side / shorter) for side in image.size)
    image = image.resize((width, height), FILTERS[interpolation])
    size = geometry.size_px
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


class PillowLoader:
    """Batches of evaluation images, decoded and resized by Pillow in threads.

    Args:
        samples: the images and their geometry.
        interpolation: filter of the resize, "bilinear" or "bicubic".
        device: where the batches are.
        num_threads: of Pillow's, which lets go of the interpreter while it decodes.
    """

    def __init__(
        self, samples: EvalSamples, interpolation: str, device: torch.device, num_threads: int
    ) -> None:
        self._samples = samples
        self._interpolation = interpolation
        self._device = device
        self._num_threads = num_threads

    def batches(self, specs: Iterable[BatchSpec]) -> Generator[Batch, None, None]:
        """Yield the batches of `specs` in order; see `Loader.batches`.

        Raises:
            UserError: an image cannot be decoded.
        """
        waiting: deque[tuple[BatchSpec, list[Future[npt.NDArray[np.uint8]]]]] = deque()
        with ThreadPoolExecutor(self._num_threads) as pool:
            try:
                for spec in specs:
                    waiting.append((spec, [pool.submit(self._pixels, i) for i in spec.indices]))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield self._batch(*waiting.popleft())
                while waiting:
                    yield self._batch(*waiting.popleft())
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def close(self) -> None:
        """Nothing is left to free."""

    def _batch(self, spec: BatchSpec, futures: list[Future[npt.NDArray[np.uint8]]]) -> Batch:
        images = np.stack([future.result() for future in futures])
        labels = np.asarray(self._samples.index.labels[spec.indices], np.int64)
        return Batch(
            to_device(images, self._device), to_device(labels, self._device), spec.num_valid
        )

    def _pixels(self, row: np.int64) -> npt.NDArray[np.uint8]:
        index = self._samples.index
        try:
            with index.open(int(row)) as file:
                image = Image.open(file).convert("RGB")
        except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
            raise UserError(
                f"Pillow cannot decode {printable(index.name(int(row)))}: {index.store.repair}"
            ) from error
        return np.asarray(eval_transform(image, self._samples.geometry, self._interpolation))

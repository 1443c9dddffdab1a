"""Draws of random erasing: which boxes of which images are erased, as timm draws them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dali_rsb.draws.philox import Stream, uniforms
from dali_rsb.kernels.random_erasing import EraseMode

NUM_ATTEMPTS = 10  # timm gives a box up after ten that do not fit
# Numbers of one box: (area, log aspect ratio) for each attempt, then top and left.
_BOX_UNIFORMS = 2 * NUM_ATTEMPTS + 2


@dataclass(frozen=True)
class ErasingDraws:
    """Boxes to erase, in this order.

    Attributes:
        rows: int64 [n], the image of each box.
        boxes: int64 [n, 4], top, bottom, left, right; bottom and right exclusive.
    """

    rows: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class ErasingPolicy:
    """Random erasing (Zhong et al. 2020) with the names and defaults of timm's RandomErasing.

    Attributes:
        probability: of erasing anything in an image.
        mode: what the boxes are filled with, see `dali_rsb.kernels.random_erasing.erase`.
        max_count: up to so many boxes in one image; they share the area of one.
        num_splits: above 1, the first 1 / num_splits of a batch stays whole.
        min_area, max_area: range of the erased share of the image.
        min_aspect: lower end of the boxes' height / width; the upper end is its inverse.
    """

    probability: float
    mode: EraseMode = "const"
    max_count: int = 1
    num_splits: int = 0
    min_area: float = 0.02
    max_area: float = 1 / 3
    min_aspect: float = 0.3

    def draw(self, seed: int, epoch: int, positions: range, size_px: int) -> ErasingDraws:
        """Draw the boxes of one device batch; each image's depend on its position alone.

        Args:
            positions: positions in the epoch.
            size_px: side of the square images, in pixels.
        """
        width = 2 + self.max_count * _BOX_UNIFORMS
        numbers = uniforms(seed, epoch, Stream.ERASING, positions, width)
        erased = numbers[:, 0] < self.probability
        if self.num_splits > 1:
            erased[: len(positions) // self.num_splits] = False
        count = 1 + np.floor(numbers[:, 1] * self.max_count)
        of_boxes = numbers[:, 2:].reshape(len(positions), self.max_count, _BOX_UNIFORMS)
        boxes, fits = self._boxes(of_boxes, count[:, None, None], size_px)
        wanted = np.arange(self.max_count) < count[:, None]
        rows, which = np.nonzero(erased[:, None] & wanted & fits)
        return ErasingDraws(rows, boxes[rows, which])

    def _boxes(
        self, numbers: np.ndarray, count: np.ndarray, size_px: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes int64 [batch, max_count, 4], and whether one was found: bool [batch, max_count]."""
        share = self.min_area + numbers[..., 0:-2:2] * (self.max_area - self.min_area)
        area = share * size_px**2 / count
        aspect = np.exp((2 * numbers[..., 1:-2:2] - 1) * -np.log(self.min_aspect))
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (height < size_px) & (width < size_px)
        first = fits.argmax(axis=-1)[..., None]
        height = np.take_along_axis(height, first, axis=-1)[..., 0].astype(np.int64)
        width = np.take_along_axis(width, first, axis=-1)[..., 0].astype(np.int64)
        top = np.floor(numbers[..., -2] * (size_px - height + 1)).astype(np.int64)
        left = np.floor(numbers[..., -1] * (size_px - width + 1)).astype(np.int64)
        return np.stack([top, top + height, left, left + width], axis=-1), fits.any(axis=-1)

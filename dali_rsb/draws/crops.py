"""Windows of the training crop and of the evaluation crop, vectorised over the batch, as timm
chooses them: the rounding, the ten attempts and the fallback are timm's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_ATTEMPTS = 10  # torchvision's and timm's RandomResizedCrop give up after ten rejected windows
CROP_UNIFORMS = 2 * NUM_ATTEMPTS + 2  # (area, log ratio) for each attempt, then top and left


@dataclass(frozen=True)
class Windows:
    """Windows in pixels of the stored image: int64 [B] each."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray


def random_resized_crop(
    widths: np.ndarray,
    heights: np.ndarray,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Windows:
    """Choose RandomResizedCrop windows (timm's RandomResizedCropAndInterpolation.get_params).

    Args:
        widths, heights: int [B], image sizes in pixels.
        numbers: float64 [B, CROP_UNIFORMS], uniforms in [0, 1).
        scale: range of the window's share of the image area.
        ratio: range of the window's width / height, drawn log-uniformly.
    """
    image_width = widths.astype(np.int64)[:, None]
    image_height = heights.astype(np.int64)[:, None]
    area = (image_width * image_height) * _between(numbers[:, 0 : 2 * NUM_ATTEMPTS : 2], *scale)
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(_between(numbers[:, 1 : 2 * NUM_ATTEMPTS : 2], low, high))
    # rint rounds halves to even, as Python's round() does.
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    # timm does not ask for a positive size; it never meets an empty window on real photographs,
    # and on images of a few pixels one would be an error.
    fits = (width <= image_width) & (height <= image_height) & (width > 0) & (height > 0)

    rows = np.arange(len(widths))
    first = fits.argmax(axis=1)
    found = fits[rows, first]
    fallback = _central_window(image_width[:, 0], image_height[:, 0], ratio)
    width = np.where(found, width[rows, first], fallback.width)
    height = np.where(found, height[rows, first], fallback.height)
    top = np.floor(numbers[:, -2] * (image_height[:, 0] - height + 1)).astype(np.int64)
    left = np.floor(numbers[:, -1] * (image_width[:, 0] - width + 1)).astype(np.int64)
    return Windows(
        top=np.where(found, top, fallback.top),
        left=np.where(found, left, fallback.left),
        height=height,
        width=width,
    )


def _between(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + numbers * (high - low)


def _central_window(widths: np.ndarray, heights: np.ndarray, ratio: tuple[float, float]) -> Windows:
    """The whole image, or its centre cut to the nearest allowed aspect ratio."""
    image_ratio = widths / heights
    width = np.where(image_ratio > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    height = np.where(image_ratio < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    width, height = np.maximum(width, 1), np.maximum(height, 1)
    return Windows((heights - height) // 2, (widths - width) // 2, height, width)


@dataclass(frozen=True)
class EvalGeometry:
    """Size of the evaluation image and of the resize before its centre crop, in pixels."""

    size_px: int
    crop_ratio: float

    @property
    def resize_px(self) -> int:
        """Shorter edge after the resize: floor(size / crop ratio), e.g. 224 / 0.95 -> 235."""
        return int(np.floor(self.size_px / self.crop_ratio))

    def source_windows(
        self, widths: np.ndarray, heights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where resize-then-centre-crop looks in the stored image.

        timm resizes the shorter edge to `resize_px` (the longer to int(resize * long / short)) and
        takes the centre. Resizing only the part of the image that the crop keeps is the same
        mapping, and makes one operator of two.

        Args:
            widths, heights: int [B], image sizes in pixels.

        Returns:
            Start and end of the window, float32 [B, 2] each, as (y, x) in source pixels; not
            whole numbers in general.
        """
        sizes = np.stack([heights, widths], axis=1).astype(np.int64)
        shorter = sizes.min(axis=1, keepdims=True)
        # The shorter edge comes out as resize_px itself: (r * s) // s.
        resized = self.resize_px * sizes // shorter
        # round() of a half goes to the even neighbour: 225 -> 0.5 -> 0.
        first = np.rint((resized - self.size_px) / 2.0)
        scale = sizes / resized
        start = first * scale
        end = (first + self.size_px) * scale
        return start.astype(np.float32), end.astype(np.float32)

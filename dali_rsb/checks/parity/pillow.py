"""The training transforms with Pillow alone, one image at a time: what `dali_rsb.parity` compares
the DALI pipelines with, beside `loader.pillow`. The tests compare these functions with timm's."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dali_rsb.draws.operations import OPERATIONS, RECORDS, Strength
from dali_rsb.loader.pillow import FILTERS


def crop_resize_flip(
    image: Image.Image,
    box: tuple[int, int, int, int],
    size_px: int,
    interpolation: str,
    flip: bool,
) -> Image.Image:
    """RandomResizedCrop once its window is chosen, then the mirroring.

    Args:
        box: left, top, right, bottom.
        interpolation: "bilinear" or "bicubic".
    """
    image = image.crop(box).resize((size_px, size_px), FILTERS[interpolation])
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def apply_operation(
    image: Image.Image,
    name: str,
    magnitude: float,
    negate: bool,
    increasing: bool,
    fill: tuple[int, int, int],
    interpolation: str = "bilinear",
) -> Image.Image:
    """One operation of timm's RandAugment; `name` is one of `randaugment.OPERATIONS`.

    Args:
        magnitude: after noise and clipping.
        negate: take the negative direction, where there are two.
        increasing: of the increasing set (`inc1`).
        fill: colour of what geometric operations bring in.
        interpolation: of the geometric operations.
    """
    record = RECORDS[OPERATIONS.index(name)]
    strength = Strength.drawn(np.array([magnitude]), np.array([negate]), increasing)
    return record.pillow(image, strength, fill, FILTERS[interpolation])

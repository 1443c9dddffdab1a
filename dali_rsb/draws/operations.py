"""The operations of RandAugment, one record each: what a drawn magnitude means, and Pillow's way.

A record and its branch in `pipelines.randaugment` are all there is to an operation. Levels are
magnitudes in tenths: 1 is the end of an operation's range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipelines.operands import Branch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Strength:
    """How strongly operations act on some samples.

    Attributes:
        level: float64 [n], magnitude / 10, at least 0.
        signed: float64 [n], the level, negative where the negative direction was drawn.
        increasing: whether Posterize, Solarize and the enhancing operations grow stronger with
            the level (timm's `inc1`).
    """

    level: Floats
    signed: Floats
    increasing: bool


# Matrix elements (xx, xy, x1, yx, yy, y1) that map output to input positions in pixels, whole
# numbers at the corners of pixels, as Pillow's Image.transform takes them: numbers or [n] each.
Affine = tuple[Any, Any, Any, Any, Any, Any]


@dataclass(frozen=True)
class Operation:
    """One operation of RandAugment.

    Attributes:
        name: timm's, of the set that does not increase.
        branch: of the DALI pipeline.
        pillow: applies the operation with Pillow, as timm does: (image, strength of this one
            image, fill colour, filter of geometric operations) -> image.
        value: the branch's argument for some samples, or None.
        warp: the matrices of some samples for images of a height and width, or None.
        has_magnitude: whether the magnitude matters.
        has_direction: whether the sign of the magnitude matters.
        sets: which sets of operations it belongs to; a policy names one.
    """

    name: str
    branch: Branch
    pillow: Callable[[Image.Image, Strength, tuple[int, int, int], Image.Resampling], Image.Image]
    value: Callable[[Strength], Floats] | None = None
    warp: Callable[[Strength, int, int], Affine] | None = None
    has_magnitude: bool = True
    has_direction: bool = False
    sets: tuple[str, ...] = ("timm",)


def _num_bits(strength: Strength) -> NDArray[np.int64]:
    # `int` truncates in timm, as the conversions to integers do here.
    num_bits = (strength.level * 4).astype(np.int64)
    return 4 - num_bits if strength.increasing else num_bits


def _bit_mask(strength: Strength) -> Floats:
    return np.asarray(256 - 2 ** (8 - np.clip(_num_bits(strength), 0, 8)), np.float64)


def _posterize(image: Image.Image, strength: Strength, *_: object) -> Image.Image:
    num_bits = int(_num_bits(strength)[0])
    # No bit left: black, as in Pillow 12 and older; Pillow 13 raises.
    return ImageOps.posterize(image, num_bits) if num_bits > 0 else Image.new("RGB", image.size)


def _threshold(strength: Strength) -> Floats:
    threshold = np.minimum(256, (strength.level * 256).astype(np.int64))
    return np.asarray(256 - threshold if strength.increasing else threshold, np.float64)


def _addend(strength: Strength) -> Floats:
    return np.minimum(128, (strength.level * 110).astype(np.int64)).astype(np.float64)


def _solarize_add(image: Image.Image, strength: Strength, *_: object) -> Image.Image:
    addend = int(_addend(strength)[0])
    return image.point([min(255, v + addend) if v < 128 else v for v in range(256)] * 3)


def _factor(strength: Strength) -> Floats:
    if strength.increasing:
        return np.maximum(0.1, 1 + 0.9 * strength.signed)
    return strength.level * 1.8 + 0.1


def _enhancing(name: str, branch: Branch) -> Operation:
    """One of Pillow's four enhancers; the sign matters in the increasing set only."""

    def enhance(image: Image.Image, strength: Strength, *_: object) -> Image.Image:
        enhancer: ImageEnhance._Enhance = getattr(ImageEnhance, name)(image)
        return enhancer.enhance(float(_factor(strength)[0]))

    return Operation(name, branch, enhance, value=_factor, has_direction=True)


def _rotation(strength: Strength, height: int, width: int) -> Affine:
    """About the middle of the image."""
    radians = -np.radians(strength.signed * 30)
    cosine, sine = np.cos(radians), np.sin(radians)
    middle_x, middle_y = width / 2, height / 2
    return (
        cosine,
        sine,
        middle_x - cosine * middle_x - sine * middle_y,
        -sine,
        cosine,
        middle_y + sine * middle_x - cosine * middle_y,
    )


def _rotate(
    image: Image.Image, strength: Strength, fill: tuple[int, int, int], resample: Image.Resampling
) -> Image.Image:
    return image.rotate(30 * float(strength.signed[0]), resample, fillcolor=fill)


def _affine(name: str, warp: Callable[[Strength, int, int], Affine]) -> Operation:
    """A shear, about the top-left corner, or a translation."""

    def transform(
        image: Image.Image,
        strength: Strength,
        fill: tuple[int, int, int],
        resample: Image.Resampling,
    ) -> Image.Image:
        width, height = image.size
        matrix = tuple(float(np.ravel(element)[0]) for element in warp(strength, height, width))
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    return Operation(name, Branch.WARP, transform, warp=warp, has_direction=True)


# timm's set comes first, in timm's order. The draws hold positions in this tuple: add to its end.
RECORDS = (
    Operation(
        "AutoContrast",
        Branch.AUTO_CONTRAST,
        lambda image, *_: ImageOps.autocontrast(image),
        has_magnitude=False,
    ),
    Operation(
        "Equalize", Branch.EQUALIZE, lambda image, *_: ImageOps.equalize(image), has_magnitude=False
    ),
    # The value of an Invert is a threshold of 0.
    Operation(
        "Invert", Branch.SOLARIZE, lambda image, *_: ImageOps.invert(image), has_magnitude=False
    ),
    Operation("Rotate", Branch.WARP, _rotate, warp=_rotation, has_direction=True),
    Operation("Posterize", Branch.POSTERIZE, _posterize, value=_bit_mask),
    Operation(
        "Solarize",
        Branch.SOLARIZE,
        lambda image, strength, *_: ImageOps.solarize(image, int(_threshold(strength)[0])),
        value=_threshold,
    ),
    Operation("SolarizeAdd", Branch.SOLARIZE_ADD, _solarize_add, value=_addend),
    _enhancing("Color", Branch.COLOR),
    _enhancing("Contrast", Branch.CONTRAST),
    _enhancing("Brightness", Branch.BRIGHTNESS),
    _enhancing("Sharpness", Branch.SHARPNESS),
    _affine("ShearX", lambda s, height, width: (1, s.signed * 0.3, 0, 0, 1, 0)),
    _affine("ShearY", lambda s, height, width: (1, 0, 0, s.signed * 0.3, 1, 0)),
    _affine("TranslateXRel", lambda s, height, width: (1, 0, s.signed * 0.45 * width, 0, 1, 0)),
    _affine("TranslateYRel", lambda s, height, width: (1, 0, 0, 0, 1, s.signed * 0.45 * height)),
)

# Their names, in the same order.
OPERATIONS = tuple(record.name for record in RECORDS)

# Positions in RECORDS, by the name of the set.
OPERATION_SETS = {
    name: tuple(i for i, record in enumerate(RECORDS) if name in record.sets)
    for name in dict.fromkeys(name for record in RECORDS for name in record.sets)
}

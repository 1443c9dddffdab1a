"""What the host tells the RandAugment of a DALI pipeline: one branch, value and matrix a layer.

Apart from the operators, so that whoever draws need not import DALI.
"""

from __future__ import annotations

import enum


class Branch(enum.IntEnum):
    """What one layer does to a sample, and what the layer's `value` input then means.

    Neighbours share a subtree of the pipeline's decisions: see `pipelines.randaugment._layer`.
    """

    SKIP = 0
    WARP = 1  # value unused; the matrix input is used by this branch only
    EQUALIZE = 2  # value unused
    AUTO_CONTRAST = 3  # value unused
    SOLARIZE = 4  # threshold: pixels at or above it are inverted (0 inverts all)
    BRIGHTNESS = 5  # factor
    SOLARIZE_ADD = 6  # addend for pixels below 128, at most 128
    POSTERIZE = 7  # bit mask
    CONTRAST = 8  # factor, as in the two below
    COLOR = 9
    SHARPNESS = 10


def branch_input(layer: int) -> str:
    """Return the name of the input that holds the layer's `Branch` codes: uint8 [batch]."""
    return f"randaugment{layer}_branch"


def value_input(layer: int) -> str:
    """Return the name of the layer's one operation argument (see `Branch`): float32 [batch]."""
    return f"randaugment{layer}_value"


def matrix_input(layer: int) -> str:
    """Return the name of the layer's warp matrices: float32 [batch, 3, 3].

    They map output to input positions (x, y, 1), where whole numbers are centres of pixels.
    """
    return f"randaugment{layer}_matrix"

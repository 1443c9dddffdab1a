"""Where the rows of windows lie in the files that hold images as pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Columns of a place: an open file, its byte at which the window's first row begins (the row of the
# image, from its left edge on), bytes of a row, and the window in there in pixels.
DESCRIPTOR, START, ROW_BYTES, LEFT, HEIGHT, WIDTH = range(6)
NUM_COLUMNS = 6


@dataclass(frozen=True, eq=False)
class RawWindows:
    """Windows of a batch's images that are stored as pixels.

    Attributes:
        is_raw: bool [B], which images are.
        places: int64 [B, NUM_COLUMNS], where theirs lie; -1 for the others.
    """

    is_raw: npt.NDArray[np.bool_]
    places: npt.NDArray[np.int64]

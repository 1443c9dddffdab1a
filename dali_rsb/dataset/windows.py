"""Windows of images: what the loader decodes of them, and what a store can give instead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.raw.places import RawWindows


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows in pixels of the stored image: int64 [B] each."""

    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> Windows:
        """Some of the windows."""
        return Windows(*(values[rows] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class WindowImages:
    """Encoded images that hold windows of a store's images.

    Attributes:
        arrays: [B], as of `ImageStore.arrays`.
        origins: int64 [B, 2] as (y, x), the pixel of the stored image that is their first.
        sizes: int32 [B, 3], what their headers state: height, width and 3 channels.
        raw: the windows that are read as pixels; `arrays` has a placeholder for each. None where
            no image of the store is stored so.
    """

    arrays: list[npt.NDArray[np.uint8]]
    origins: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    raw: RawWindows | None = None

"""Tar shards of which some images are pixels: the rows of their windows are read as they are."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.raw.layout import BYTES_PER_PIXEL, num_bytes
from dali_rsb.dataset.raw.places import NUM_COLUMNS, RawWindows
from dali_rsb.dataset.shard_file import ShardFile
from dali_rsb.dataset.store import DatasetKind, Keys, Rows
from dali_rsb.dataset.tiles.store import TILED_SHARDS, TiledStore
from dali_rsb.dataset.windows import WindowImages, Windows
from dali_rsb.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

_IS_RAW = "is_raw"
# What the decoder's input has of an image that is not decoded.
_NOTHING = np.zeros(1, np.uint8)


@dataclass(frozen=True, eq=False)
class RawStore(TiledStore):
    """Images in tar files, and which of them are pixels: bool [N]. The others may have tiles.

    A shard in use must stay as it is: pixels do not tell when they are others'.
    """

    is_raw: npt.NDArray[np.bool_]

    kind: ClassVar[str] = "raw shards"
    has_raw: ClassVar[bool] = True

    def window_images(
        self,
        rows: Rows,
        widths: npt.NDArray[np.integer[Any]],
        heights: npt.NDArray[np.integer[Any]],
        windows: Windows,
        whole: bool = False,
    ) -> WindowImages:
        is_raw = self.is_raw[rows]
        (raw,), (others,) = is_raw.nonzero(), (~is_raw).nonzero()
        origins, sizes = np.zeros((len(rows), 2), np.int64), np.full((len(rows), 3), 3, np.int32)
        encoded = super().window_images(
            rows[others], widths[others], heights[others], windows.take(others), whole
        )
        origins[others], sizes[others] = encoded.origins, encoded.sizes
        arrays = [_NOTHING] * len(rows)
        for place, array in zip(others.tolist(), encoded.arrays, strict=True):
            arrays[place] = array
        of_raw = windows.take(raw)
        origins[raw, 0], origins[raw, 1] = of_raw.top, of_raw.left
        sizes[raw, 0], sizes[raw, 1] = of_raw.height, of_raw.width
        places = np.full((len(rows), NUM_COLUMNS), -1, np.int64)
        files = [file for file, _, _ in self.places(rows[raw])]
        descriptors = np.array([file.descriptor for file in files], np.int64)
        places[raw] = self._places(rows[raw], widths[raw], heights[raw], of_raw, descriptors)
        # They are read later: the files stay open as long as someone has the places.
        weakref.finalize(places, _let_go, files)
        return WindowImages(arrays, origins, sizes, RawWindows(is_raw, places))

    def _places(
        self,
        rows: Rows,
        widths: npt.NDArray[np.integer[Any]],
        heights: npt.NDArray[np.integer[Any]],
        windows: Windows,
        descriptors: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        row_bytes = BYTES_PER_PIXEL * widths.astype(np.int64)
        # The pixels end the image, whatever precedes them.
        pixels = self.offsets[rows] + self.lengths[rows] - num_bytes(widths, heights)
        starts = pixels + windows.top * row_bytes
        lengths = windows.height * row_bytes
        # The kernel is told of all that is needed before the first byte is waited for.
        for place in zip(descriptors.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            os.posix_fadvise(*place, os.POSIX_FADV_WILLNEED)
        return np.stack(
            [descriptors, starts, row_bytes, windows.left, windows.height, windows.width], axis=1
        )

    def current_stamps(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """None.

        Raises:
            UserError: a shard has become shorter, or has been written to, since it was opened.
        """
        super().current_stamps(rows)
        for number in np.unique(self.numbers[rows]).tolist():
            file = self._files[number]
            if file.current_stamp() != file.stamp:
                raise UserError(
                    f"{file.path} has been written to while in use: restore the shard and resume"
                )
        return None

    def decoded_before(self, rows: Rows) -> npt.NDArray[np.bool_]:
        return super().decoded_before(rows) | self.is_raw[rows]

    def select(self, rows: Rows) -> Self:
        return replace(super().select(rows), is_raw=self.is_raw[rows])

    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        meta, arrays = super().saved()
        return meta, arrays | {_IS_RAW: self.is_raw}


def _let_go(files: list[ShardFile]) -> None:
    pass


def _restore(
    root: Path, keys: Keys, meta: Mapping[str, Any], array: Callable[[str], npt.NDArray[Any]]
) -> RawStore:
    tiled = TILED_SHARDS.restore(root, keys, meta, array)
    return RawStore(**vars(tiled), is_raw=array(_IS_RAW))


# Only `dali_rsb.pack` makes such an index; a folder alone does not tell which images are pixels.
RAW_SHARDS = DatasetKind(
    name=RawStore.kind,
    holds=lambda _: False,
    find=TILED_SHARDS.find,
    restore=_restore,
    fingerprint=TILED_SHARDS.fingerprint,
)

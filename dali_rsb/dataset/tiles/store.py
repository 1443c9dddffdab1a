"""Tar shards whose JPEGs are cut into tiles: windows are put together, whole images are as ever."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.shard_file import ShardFile
from dali_rsb.dataset.shards import SHARDS, ShardStore
from dali_rsb.dataset.store import DatasetKind, Keys, Rows
from dali_rsb.dataset.tiles.assembly import cut
from dali_rsb.dataset.tiles.layout import TILE_ARRAYS, Tiles
from dali_rsb.dataset.windows import WindowImages, Windows

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class TiledStore(ShardStore):
    """Images in tar files, with the places of their tiles."""

    tiles: Tiles

    kind: ClassVar[str] = "tiled shards"

    def window_images(
        self,
        rows: Rows,
        widths: npt.NDArray[np.integer[Any]],
        heights: npt.NDArray[np.integer[Any]],
        windows: Windows,
        whole: bool = False,
    ) -> WindowImages:
        if whole:
            return super().window_images(rows, widths, heights, windows)
        found = cut(self.tiles, rows, widths, heights, windows)
        is_cut = np.zeros(len(rows), np.bool_)
        is_cut[found.rows] = True
        # The kernel is told of all that is needed before the first byte is waited for.
        readers = []
        for (shard, start, _), parts in zip(
            self.places(rows[is_cut]), found.parts.tolist(), strict=True
        ):
            for part_start, part_end in parts:
                shard.will_need(start + part_start, start + part_end)
            readers.append(functools.partial(_read_into, shard, start))
        uncut = self.arrays(rows[~is_cut])
        cut_out = found.assemble(readers, self._memory.lend(int(found.bounds[-1])))
        arrays: list[npt.NDArray[np.uint8]] = [*cut_out, *uncut]
        places = np.argsort(np.concatenate([found.rows, np.flatnonzero(~is_cut)]))
        arrays = [arrays[place] for place in places.tolist()]
        return WindowImages(arrays, found.origins, found.sizes)

    def decoded_before(self, rows: Rows) -> npt.NDArray[np.bool_]:
        return self.tiles.tile_widths[rows] > 0  # see `transcoding.transcode`

    def select(self, rows: Rows) -> Self:
        return replace(super().select(rows), tiles=self.tiles.take(rows))

    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        meta, arrays = super().saved()
        return meta, arrays | {name: getattr(self.tiles, name) for name in TILE_ARRAYS}


def _read_into(shard: ShardFile, image_start: int, target: memoryview, start: int) -> None:
    shard.read_into(target, image_start + start)


def _restore(
    root: Path, keys: Keys, meta: Mapping[str, Any], array: Callable[[str], npt.NDArray[Any]]
) -> TiledStore:
    shards = SHARDS.restore(root, keys, meta, array)
    return TiledStore(**vars(shards), tiles=Tiles(*map(array, TILE_ARRAYS)))


# Only `dali_rsb.pack` makes such an index; a folder alone does not tell where tiles lie.
TILED_SHARDS = DatasetKind(
    name=TiledStore.kind,
    holds=lambda _: False,
    find=SHARDS.find,
    restore=_restore,
    fingerprint=SHARDS.fingerprint,
)

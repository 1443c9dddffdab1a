"""Puts the tiles of windows together to small JPEGs, for a whole batch at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.tiles.layout import EOI, RST0, SOI, Tiles
from dali_rsb.dataset.windows import Windows

# A decoder upsamples chroma with a filter that looks at the next sample, two pixels away.
MARGIN_PX = 2

_NUM_RST = 8  # restart markers are numbered modulo this

_Ints = npt.NDArray[np.int64]
Reader = Callable[[memoryview, int], None]


@dataclass(frozen=True, eq=False)
class Cut:
    """Which bytes of a batch's images make the small JPEGs that hold their windows.

    The images in `rows` are cut; the others stay whole: those without tiles, and those that a
    window needs all of. A small JPEG is the head of its image, with another size, and runs of
    tiles, with other numbers in the restart markers between them.

    Attributes:
        rows: int64 [C], rows of the batch.
        origins: int64 [B, 2] as (y, x), pixel of the image at which the small one begins; 0 of
            whole ones.
        sizes: int32 [B, 3], height, width and channels of what is decoded, small or whole.
        runs_per_image: int64 [C], how many runs of bytes each small JPEG is copied from.
        run_starts, run_ends: int64 [runs], the runs in their image; each begins with a head.
        run_targets: int64 [runs], where they go in the buffer of all small JPEGs.
        bounds: int64 [C + 1], of the small JPEGs in that buffer.
        patch_places: int64 [patches], where that buffer holds other bytes than were copied.
        patches: uint8 [patches], which.
    """

    rows: _Ints
    origins: _Ints
    sizes: npt.NDArray[np.int32]
    runs_per_image: _Ints
    run_starts: _Ints
    run_ends: _Ints
    run_targets: _Ints
    bounds: _Ints
    patch_places: _Ints
    patches: npt.NDArray[np.uint8]

    @property
    def parts(self) -> _Ints:
        """Of each image in `rows` the bytes of its head and those from its first run to its last.

        int64 [C, 2, 2]: for either the first byte, and the one after the last.
        """
        last = np.cumsum(self.runs_per_image) - 1
        head = last - self.runs_per_image + 1
        starts, ends = self.run_starts, self.run_ends
        edges = np.stack([starts[head], ends[head], starts[head + 1], ends[last]], axis=1)
        return edges.reshape(-1, 2, 2)

    def assemble(
        self, images: Sequence[Reader], buffer: npt.NDArray[np.uint8]
    ) -> list[npt.NDArray[np.uint8]]:
        """Write the small JPEGs.

        Args:
            images: [C], what fills memory with bytes of an encoded image in `rows`, from a place
                in it on; only the runs are read.
            buffer: uint8 [bounds[-1]], memory to write to.

        Returns:
            uint8 [num_bytes] for each, views of the buffer.
        """
        view = buffer.data
        of_runs = itertools.chain.from_iterable(
            map(itertools.repeat, images, self.runs_per_image.tolist())
        )
        target_ends = self.run_targets + (self.run_ends - self.run_starts)
        columns = (self.run_starts, self.run_targets, target_ends)
        runs = zip(of_runs, *(column.tolist() for column in columns), strict=True)
        for read_into, start, target, target_end in runs:
            read_into(view[target:target_end], start)
        buffer[self.patch_places] = self.patches
        return [buffer[start:end] for start, end in itertools.pairwise(self.bounds.tolist())]


def cut(
    tiles: Tiles,
    images: npt.NDArray[np.integer[Any]],
    widths: npt.NDArray[np.integer[Any]],
    heights: npt.NDArray[np.integer[Any]],
    windows: Windows,
) -> Cut:
    """Find the tiles that hold windows and the margin that decoding them exactly takes.

    Args:
        images: [B], numbers of the images.
        widths, heights: [B], their sizes in pixels.
        windows: [B], inside the images.
    """
    tile_widths = tiles.tile_widths[images].astype(np.int64)
    tile_heights = tiles.tile_heights[images].astype(np.int64)
    across = _Span.around(windows.left, windows.width, widths.astype(np.int64), tile_widths)
    down = _Span.around(windows.top, windows.height, heights.astype(np.int64), tile_heights)
    rows = np.flatnonzero((tile_widths > 0) & ~(across.is_whole & down.is_whole))
    across, down = across.take(rows), down.take(rows)
    origins = np.zeros((len(widths), 2), np.int64)
    origins[rows, 0], origins[rows, 1] = down.first_px, across.first_px
    sizes = np.stack([heights, widths, np.full(len(widths), 3)], axis=1).astype(np.int32)
    sizes[rows, 0] = down.end_px - down.first_px
    sizes[rows, 1] = across.end_px - across.first_px
    return Cut(rows, origins, sizes, *_pieces(tiles, images[rows].astype(np.int64), across, down))


@dataclass(frozen=True, eq=False)
class _Span:
    """Tiles along one axis, from `first` to before `end` of `count`, and their pixels.

    int64 [B] each; the pixels reach from `first_px` to before `end_px`.
    """

    first: _Ints
    end: _Ints
    count: _Ints
    first_px: _Ints
    end_px: _Ints

    @classmethod
    def around(cls, start: _Ints, length: _Ints, size: _Ints, tile: _Ints) -> _Span:
        tile = np.maximum(tile, 1)  # 0 where an image has none; nobody looks at the result
        first = np.maximum(start - MARGIN_PX, 0) // tile
        end = -(-np.minimum(start + length + MARGIN_PX, size) // tile)
        return cls(first, end, -(-size // tile), first * tile, np.minimum(end * tile, size))

    @property
    def is_whole(self) -> npt.NDArray[np.bool_]:
        whole: npt.NDArray[np.bool_] = (self.first == 0) & (self.end == self.count)
        return whole

    def take(self, rows: _Ints) -> _Span:
        return _Span(*(values[rows] for values in vars(self).values()))


def _pieces(
    tiles: Tiles, images: _Ints, across: _Span, down: _Span
) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints, _Ints, npt.NDArray[np.uint8]]:
    """The fields of `Cut` from `runs_per_image` on."""
    # A run for each row of tiles.
    num_rows, num_columns = down.end - down.first, across.end - across.first
    image, number = _ragged(num_rows)
    row = down.first[image] + number
    first_tile = (tiles.tile_places[images] + across.first)[image] + row * across.count[image]
    row_start = tiles.row_starts[tiles.row_places[images][image] + row].astype(np.int64)
    tiles_per_row = num_columns[image]
    # Bytes of a row ahead of the first tile that is taken.
    ahead = np.where(across.first[image] > 0, tiles.tile_ends[first_tile - 1], 0)
    row_bytes = tiles.tile_ends[first_tile + tiles_per_row - 1]

    # The head of an image is a run too, ahead of those of tiles.
    heads = np.cumsum(num_rows + 1) - (num_rows + 1)
    others = np.arange(len(image)) + image + 1
    starts, ends = np.empty((2, len(heads) + len(others)), np.int64)
    starts[heads] = tiles.head_starts[images]
    ends[heads] = starts[heads] + tiles.head_lengths[images]
    starts[others], ends[others] = row_start + ahead, row_start + row_bytes

    # In the buffer two bytes, SOI, stand ahead of each head.
    gaps = np.zeros(len(starts), np.int64)
    gaps[heads] = len(SOI)
    target_ends = np.cumsum(ends - starts + gaps)
    targets = target_ends - (ends - starts)
    bounds = np.concatenate([[0], target_ends[heads + num_rows]])

    # A marker ends each tile: RST0 to RST7 in turn and, after the last tile, EOI.
    num_tiles = np.cumsum(num_columns * num_rows)
    each = np.arange(num_tiles[-1] if len(num_tiles) else 0)
    tiles_before = np.cumsum(tiles_per_row) - tiles_per_row
    tile_end = tiles.tile_ends[each + np.repeat(first_tile - tiles_before, tiles_per_row)]
    marker_place = np.repeat(targets[others] - ahead - 1, tiles_per_row) + tile_end
    in_image = each - np.repeat(num_tiles - num_columns * num_rows, num_columns * num_rows)
    markers = RST0 + in_image % _NUM_RST
    markers[num_tiles - 1] = EOI[1]

    height, width = down.end_px - down.first_px, across.end_px - across.first_px
    size = targets[heads] + tiles.size_offsets[images]
    places = [bounds[:-1], bounds[:-1] + 1, size, size + 1, size + 2, size + 3, marker_place]
    soi = np.full((2, len(images)), [[SOI[0]], [SOI[1]]])
    patches = [*soi, height >> 8, height & 255, width >> 8, width & 255, markers]
    return (
        num_rows + 1,
        starts,
        ends,
        targets,
        bounds,
        np.concatenate(places),
        np.concatenate(patches).astype(np.uint8),
    )


def _ragged(counts: _Ints) -> tuple[_Ints, _Ints]:
    """For groups of some sizes, one after the other: of each element its group and number in it."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]

"""Where the tiles of a JPEG lie: read off its restart markers, and kept for a whole dataset."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

# ITU-T T.81, table B.1.
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
RST0, RST7 = 0xD0, 0xD7
SOF0, SOF1 = 0xC0, 0xC1  # baseline and extended sequential
_DHT, _DQT, _DRI, _SOS, _APP0, _APP14 = 0xC4, 0xDB, 0xDD, 0xDA, 0xE0, 0xEE
FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, 0xCC}
_BLOCK_PX = 8

_LONGEST_ROW = 0xFFFF  # bytes; places in a row are stored in 16 bits


class CannotTileError(Exception):
    """A JPEG is of a kind that has no tiles; the message says which."""


@dataclass(frozen=True)
class Segment:
    """A marker segment: marker code, and the whole segment from its 0xFF on."""

    marker: int
    data: bytes

    @property
    def is_needed(self) -> bool:
        """Whether pixels depend on it: tables, frame, scan, and what tells the colour space."""
        return (
            self.marker in (_DQT, _DHT, _DRI, _SOS)
            or self.marker in FRAMES
            or (self.marker == _APP0 and self.data[4:9] == b"JFIF\0")
            or (self.marker == _APP14 and self.data[4:9] == b"Adobe")
        )


def split_header(encoded: bytes) -> tuple[list[Segment], int]:
    """The segments of a JPEG from SOI to its first scan, and where the scan's data start.

    Raises:
        CannotTileError: the header is damaged.
    """
    segments: list[Segment] = []
    position = 2
    while not segments or segments[-1].marker != _SOS:
        while encoded[position : position + 2] == b"\xff\xff":
            position += 1  # a fill byte; any number may precede a marker
        try:
            prefix, marker, length = struct.unpack_from(">BBH", encoded, position)
        except struct.error:
            raise CannotTileError("damaged header") from None
        end = position + 2 + length
        if prefix != 0xFF or length < 2 or end > len(encoded):
            raise CannotTileError("damaged header")
        segments.append(Segment(marker, encoded[position:end]))
        position = end
    return segments, position


@dataclass(frozen=True)
class Frame:
    """Size in pixels, and size of a minimum coded unit (MCU) in pixels."""

    width: int
    height: int
    mcu_width: int
    mcu_height: int

    @property
    def mcus_per_row(self) -> int:
        return -(-self.width // self.mcu_width)


def read_frame(segments: Sequence[Segment]) -> Frame:
    """The frame of a header, as it is when all components share one scan.

    Raises:
        CannotTileError: not of 8 bits, or neither grey nor of three components.
    """
    frames = [segment.data for segment in segments if segment.marker in FRAMES]
    if len(frames) != 1:
        raise CannotTileError("no frame before the scan")
    bits, height, width, num_components = struct.unpack_from(">BHHB", frames[0], 4)
    if bits != 8:
        raise CannotTileError(f"{bits} bits a sample")
    if num_components not in (1, 3):
        raise CannotTileError(f"{num_components} colour components")
    if width == 0 or height == 0:
        raise CannotTileError("height comes after the scan")
    # Of a single component an MCU is one block, whatever its sampling factors.
    factors = [divmod(frames[0][11 + 3 * i], 16) for i in range(num_components)]
    horizontal, vertical = map(max, zip(*factors, strict=True)) if num_components > 1 else (1, 1)
    return Frame(width, height, _BLOCK_PX * horizontal, _BLOCK_PX * vertical)


@dataclass(frozen=True)
class TileLayout:
    """Where the tiles of one JPEG lie: row by row, from the header on.

    Attributes:
        tile_width, tile_height: in pixels; the last ones of a row and a column may be cut.
        head_start, head_length: the header's part that decoding needs, in bytes of the file.
        size_offset: in that part, where height and width stand.
        row_starts: uint32 [rows], first byte of each row of tiles.
        tile_ends: uint16 [rows * columns], bytes from there to the end of each tile, which is the
            end of the marker that follows it.
    """

    tile_width: int
    tile_height: int
    head_start: int
    head_length: int
    size_offset: int
    row_starts: npt.NDArray[np.uint32]
    tile_ends: npt.NDArray[np.uint16]


def read_layout(encoded: bytes) -> TileLayout:
    """The tiles of a JPEG whose restart intervals divide its rows of MCUs.

    What decoding does not need of the header must stand before what it needs, as
    `transcoding.transcode` writes it.

    Raises:
        CannotTileError: it has no such intervals, or a row of too many bytes.
    """
    segments, data_start = split_header(encoded)
    frame = read_frame(segments)
    needed = [segment for segment in segments if segment.is_needed]
    head = b"".join(segment.data for segment in needed)
    if encoded[data_start - len(head) : data_start] != head:
        raise CannotTileError("other bytes between the tables")
    if any(segment.marker in FRAMES - {SOF0, SOF1} for segment in needed):
        raise CannotTileError("not baseline")
    interval = [struct.unpack(">H", s.data[4:])[0] for s in needed if s.marker == _DRI]
    if len(interval) != 1 or interval[0] == 0 or frame.mcus_per_row % interval[0]:
        raise CannotTileError("no restart intervals that divide a row")
    num_columns = frame.mcus_per_row // interval[0]
    num_rows = -(-frame.height // frame.mcu_height)
    ends = data_start + _interval_ends(np.frombuffer(encoded, np.uint8)[data_start:])
    if len(ends) != num_rows * num_columns or not encoded.endswith(EOI):
        raise CannotTileError("data between or after the intervals")
    row_starts = np.concatenate([[data_start], ends[num_columns - 1 : -1 : num_columns]])
    in_row = ends - np.repeat(row_starts, num_columns)
    if in_row.max() > _LONGEST_ROW:
        raise CannotTileError(f"a row of more than {_LONGEST_ROW} bytes")
    before_frame = next(i for i, s in enumerate(needed) if s.marker in FRAMES)
    return TileLayout(
        tile_width=interval[0] * frame.mcu_width,
        tile_height=frame.mcu_height,
        head_start=data_start - len(head),
        head_length=len(head),
        size_offset=sum(len(segment.data) for segment in needed[:before_frame]) + 5,
        row_starts=row_starts.astype(np.uint32),
        tile_ends=in_row.astype(np.uint16),
    )


def _interval_ends(scan: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """End of each restart interval with the marker behind it: RSTn, or EOI after the last."""
    # In entropy-coded data a zero follows each 0xFF that is no marker.
    marks = np.flatnonzero((scan[:-1] == 0xFF) & (scan[1:] >= RST0) & (scan[1:] <= RST7))
    return np.concatenate([marks + 2, [len(scan)]])


@dataclass(frozen=True, eq=False)
class Tiles:
    """The layouts of a dataset's images, column by column. Images are numbered from 0 to N - 1.

    Attributes:
        tile_widths, tile_heights: uint16 [N], in pixels; 0 where an image has no tiles.
        head_starts: uint32 [N].
        head_lengths, size_offsets: uint16 [N].
        row_places, tile_places: int64 [N + 1], where the two below have the values of image i:
            from `row_places[i]` to before `row_places[i + 1]`.
        row_starts: uint32, of the rows of all images.
        tile_ends: uint16, of the tiles of all images.
    """

    tile_widths: npt.NDArray[np.uint16]
    tile_heights: npt.NDArray[np.uint16]
    head_starts: npt.NDArray[np.uint32]
    head_lengths: npt.NDArray[np.uint16]
    size_offsets: npt.NDArray[np.uint16]
    row_places: npt.NDArray[np.int64]
    tile_places: npt.NDArray[np.int64]
    row_starts: npt.NDArray[np.uint32]
    tile_ends: npt.NDArray[np.uint16]

    @classmethod
    def of_layouts(cls, layouts: Sequence[TileLayout | None]) -> Tiles:
        """Put layouts together; None stands for an image without tiles."""
        nothing = TileLayout(0, 0, 0, 0, 0, np.zeros(0, np.uint32), np.zeros(0, np.uint16))
        known = [layout or nothing for layout in layouts]
        return cls(
            np.array([layout.tile_width for layout in known], np.uint16),
            np.array([layout.tile_height for layout in known], np.uint16),
            np.array([layout.head_start for layout in known], np.uint32),
            np.array([layout.head_length for layout in known], np.uint16),
            np.array([layout.size_offset for layout in known], np.uint16),
            _places([layout.row_starts for layout in known]),
            _places([layout.tile_ends for layout in known]),
            np.concatenate([nothing.row_starts, *(layout.row_starts for layout in known)]),
            np.concatenate([nothing.tile_ends, *(layout.tile_ends for layout in known)]),
        )

    def __len__(self) -> int:
        return len(self.tile_widths)

    @classmethod
    def joined(cls, parts: Sequence[Tiles]) -> Tiles:
        """The layouts of several datasets, one after the other."""
        columns = {name: [getattr(part, name) for part in parts] for name in TILE_ARRAYS}
        for name in ("row_places", "tile_places"):
            counts = np.concatenate([np.diff(places) for places in columns[name]])
            columns[name] = [np.cumsum([0, *counts.tolist()], dtype=np.int64)]
        return cls(**{name: np.concatenate(arrays) for name, arrays in columns.items()})

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Tiles:
        """The layouts of some images."""
        row_starts = _parts(self.row_starts, self.row_places, rows)
        tile_ends = _parts(self.tile_ends, self.tile_places, rows)
        return Tiles(
            self.tile_widths[rows],
            self.tile_heights[rows],
            self.head_starts[rows],
            self.head_lengths[rows],
            self.size_offsets[rows],
            _places(row_starts),
            _places(tile_ends),
            np.concatenate([self.row_starts[:0], *row_starts]),
            np.concatenate([self.tile_ends[:0], *tile_ends]),
        )


TILE_ARRAYS = tuple(field.name for field in fields(Tiles))


def _places(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Where each part begins when all stand one after the other, and where the last one ends."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _parts(
    values: npt.NDArray[Any], places: npt.NDArray[np.int64], rows: npt.NDArray[np.integer[Any]]
) -> list[npt.NDArray[Any]]:
    ends = zip(places[rows].tolist(), places[rows + 1].tolist(), strict=True)
    return [values[start:end] for start, end in ends]

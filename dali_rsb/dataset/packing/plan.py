"""What a pack will take, before it is written."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_rsb.constants import MAX_PIXELS
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.packing.options import PackOptions
from dali_rsb.dataset.packing.samples import read_sample
from dali_rsb.dataset.raw import layout as raw_layout
from dali_rsb.errors import UserError

# Of an image that is stored as it is the size is known; of the others so many are encoded to see.
_NUM_ENCODED = 64
_TAR_BLOCK = 512
_BLOCKS_BESIDE = 3  # the headers of an image and of its label, and the label
_TILE_INDEX_BYTES = 1000  # of an image's tiles


@dataclass(frozen=True)
class PackPlan:
    """What a pack will take.

    Attributes:
        num_images, num_raw: all of them, and those stored as pixels.
        raw_bytes, other_bytes: of the images that are stored as pixels, and of the others.
        num_bytes: of the whole pack.
        source_bytes: of the images that are packed; None where their sizes are not known.
        is_estimate: whether images are encoded again, whose sizes are estimated.
    """

    num_images: int
    num_raw: int
    raw_bytes: int
    other_bytes: int
    num_bytes: int
    source_bytes: int | None
    is_estimate: bool

    def __str__(self) -> str:
        about = "about " if self.is_estimate else ""
        text = f"{self.num_images:,} images will take {about}{gigabytes(self.num_bytes)}"
        if self.source_bytes is not None:
            text += f", now {gigabytes(self.source_bytes)}"
        if self.num_raw:
            text += f"; {self.num_raw:,} of them are pixels, {gigabytes(self.raw_bytes)}"
        return text


def plan(index: DatasetIndex, options: PackOptions) -> PackPlan:
    """Work out what a pack of a dataset will take; nothing is written.

    Raises:
        UserError: an image cannot be read.
    """
    is_raw = raw_layout.chosen(index.store.keys.all(), options.seed, options.raw)
    widths, heights = index.widths.astype(np.int64), index.heights.astype(np.int64)
    is_raw &= (widths * heights <= MAX_PIXELS) & (index.formats != ImageFormat.UNREADABLE)
    stored = options.stored_sizes(widths, heights)
    is_large = (stored != [widths, heights]).any(axis=0)
    known = index.encoded_bytes
    is_encoded = ~is_raw & (is_large | (options.quality is not None))
    lengths = np.zeros(len(index), np.int64) if known is None else known.copy()
    if known is None:
        is_encoded = ~is_raw
    rows = np.flatnonzero(is_encoded)
    if len(rows):
        per_pixel = _bytes_per_pixel(index, rows, options)
        lengths[rows] = (per_pixel * stored[:, rows].prod(axis=0)).astype(np.int64)
    lengths[is_raw] = raw_layout.num_bytes(*stored[:, is_raw])
    blocks = -(-lengths // _TAR_BLOCK) + _BLOCKS_BESIDE
    beside = _TILE_INDEX_BYTES * int((~is_raw).sum()) if options.tiles else 0
    return PackPlan(
        num_images=len(index),
        num_raw=int(is_raw.sum()),
        raw_bytes=int(lengths[is_raw].sum()),
        other_bytes=int(lengths[~is_raw].sum()),
        num_bytes=int(blocks.sum()) * _TAR_BLOCK + beside,
        source_bytes=None if known is None else int(known.sum()),
        is_estimate=bool(len(rows)),
    )


def check_room(needed: PackPlan, target: Path) -> None:
    """Refuse a pack that the disk has no room for; an unfinished one needs what is missing.

    Raises:
        UserError: gives the figures.
    """
    target = target.expanduser().absolute()
    written = sum(path.stat().st_size for path in target.glob("*.tar"))
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed.num_bytes - written <= free:
        return
    fix = "give a folder on another disk, or a smaller --max-side"
    if needed.num_raw:
        fix += f" or --raw ({needed.num_raw:,} raw images are {gigabytes(needed.raw_bytes)} of it)"
    raise UserError(
        f"the pack needs {'about ' if needed.is_estimate else ''}"
        f"{gigabytes(needed.num_bytes - written)}, and {existing} has room for {gigabytes(free)}: "
        f"{fix}"
    )


def gigabytes(num_bytes: float) -> str:
    """A number of bytes for people: 147.2 GB, 12.3 MB."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:,.1f} MB"
    return f"{num_bytes / 1e9:,.1f} GB"


def _bytes_per_pixel(
    index: DatasetIndex, rows: npt.NDArray[np.int64], options: PackOptions
) -> float:
    """Of images that are encoded again, of some of which this is done."""
    alone = dataclasses.replace(options, tiles=False, raw=0.0)
    picked = np.random.Generator(np.random.Philox(options.seed)).permutation(rows)[:_NUM_ENCODED]
    samples = [read_sample(index, row, alone) for row in picked.tolist()]
    pixels = sum(sample.width * sample.height for sample in samples)
    return sum(len(sample.data) for sample in samples) / max(pixels, 1)

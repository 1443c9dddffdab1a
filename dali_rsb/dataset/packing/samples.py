"""Reads the images that are packed, ahead and in parallel; encodes or tiles them if asked to."""

from __future__ import annotations

import dataclasses
import io
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.packing.options import DEFAULT_QUALITY, PackOptions
from dali_rsb.dataset.tiles.layout import CannotTileError, TileLayout
from dali_rsb.dataset.tiles.transcoding import transcode
from dali_rsb.errors import UserError
from dali_rsb.system.names import printable

_READ_AHEAD = 4  # images in flight for each thread


@dataclass(frozen=True)
class Sample:
    """One image as it goes into a shard.

    Attributes:
        row: number in the index that is packed.
        data: the encoded image.
        width, height: in pixels.
        format: an `ImageFormat`.
        bytes_before: size of the encoded image before it was packed.
        layout: where its tiles lie, if it has any.
        not_tiled: why it has none though it should.
    """

    row: int
    data: bytes
    width: int
    height: int
    format: int
    bytes_before: int
    is_reencoded: bool = False
    is_undecodable: bool = False
    layout: TileLayout | None = None
    not_tiled: str = ""


def read_ahead(
    index: DatasetIndex, rows: npt.NDArray[np.int64], options: PackOptions, num_workers: int
) -> Generator[Sample, None, None]:
    """Yield the samples of some rows, in their order, read (and encoded) in parallel.

    Raises:
        UserError: an image cannot be read.
    """
    Image.init()  # threads that load plugins at the same time get in each other's way
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[Sample]] = deque()
        try:
            for row in rows.tolist():
                waiting.append(pool.submit(_read, index, row, options))
                if len(waiting) == _READ_AHEAD * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(index: DatasetIndex, row: int, options: PackOptions) -> Sample:
    sample = _encoded(index, row, options)
    if not options.tiles:
        return sample
    try:
        data, layout = transcode(sample.data)
    except CannotTileError as error:
        return dataclasses.replace(sample, not_tiled=str(error))
    return dataclasses.replace(sample, data=data, layout=layout)


def _encoded(index: DatasetIndex, row: int, options: PackOptions) -> Sample:
    try:
        with index.open(row) as file:
            data = file.read()
    except OSError as error:
        raise UserError(
            f"cannot read {printable(index.name(row))} ({error.strerror}): restore it and give the "
            "same command again, it goes on with the shards that are missing"
        ) from error
    width, height = int(index.widths[row]), int(index.heights[row])
    sample = Sample(row, data, width, height, int(index.formats[row]), len(data))
    is_large = options.max_side is not None and max(width, height) > options.max_side
    if not is_large and options.quality is None:
        return sample
    try:
        return _reencoded(sample, options)
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return dataclasses.replace(sample, is_undecodable=True)


def _reencoded(sample: Sample, options: PackOptions) -> Sample:
    with Image.open(io.BytesIO(sample.data)) as opened:
        image = opened if opened.mode == "L" else opened.convert("RGB")
        image.load()
    size = image.size
    if options.max_side is not None and max(size) > options.max_side:
        scale = options.max_side / max(size)
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality or DEFAULT_QUALITY)
    data = buffer.getvalue()
    if size == (sample.width, sample.height) and len(data) >= len(sample.data):
        return sample  # nothing is gained
    return dataclasses.replace(
        sample,
        data=data,
        width=size[0],
        height=size[1],
        format=int(ImageFormat.JPEG),
        is_reencoded=True,
    )

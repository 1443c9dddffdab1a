"""Reads the images that are packed, ahead and in parallel; encodes, decodes or tiles them."""

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

from dali_rsb.constants import MAX_PIXELS
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.packing.options import DEFAULT_QUALITY, PackOptions
from dali_rsb.dataset.raw import layout as raw_layout
from dali_rsb.dataset.raw.layout import chosen
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
        is_raw: whether `data` are pixels.
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
    is_raw: bool = False
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
                waiting.append(pool.submit(read_sample, index, row, options))
                if len(waiting) == _READ_AHEAD * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_sample(index: DatasetIndex, row: int, options: PackOptions) -> Sample:
    """One image, encoded again, decoded or tiled as `options` say.

    Raises:
        UserError: it cannot be read.
    """
    sample = _encoded(index, row, options)
    if not options.tiles or sample.is_raw:
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
    is_raw = bool(chosen([index.store.keys[row]], options.seed, options.raw)[0])
    is_large = options.stored_size(width, height) != (width, height)
    if not is_large and not is_raw and options.quality is None:
        return sample
    if width * height > MAX_PIXELS and is_raw:
        return sample  # no loader decodes it
    try:
        return _as_pixels(sample, options) if is_raw else _reencoded(sample, options)
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return dataclasses.replace(sample, is_undecodable=True)


def _as_pixels(sample: Sample, options: PackOptions) -> Sample:
    image = raw_layout.decode(sample.data)
    size = options.stored_size(*image.size)
    is_smaller = size != image.size
    if is_smaller:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return dataclasses.replace(
        sample,
        data=raw_layout.encode(image),
        width=size[0],
        height=size[1],
        format=int(ImageFormat.PNM),
        is_reencoded=is_smaller,
        is_raw=True,
    )


def _reencoded(sample: Sample, options: PackOptions) -> Sample:
    with Image.open(io.BytesIO(sample.data)) as opened:
        image = opened if opened.mode == "L" else opened.convert("RGB")
        image.load()
    size = options.stored_size(*image.size)
    if size != image.size:
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

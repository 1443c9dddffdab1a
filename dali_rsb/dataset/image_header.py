"""Width, height and format of an image, read from the header of its file or of its bytes.

The format says who decodes: DALI those whose header is entirely in order, Pillow all others. DALI
must not meet a header that it refuses only after having begun (see `pipelines.decoding.decode`).
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from dali_rsb.dataset.plain_forms import is_plain
from dali_rsb.errors import UserError
from dali_rsb.system.names import printable


class ImageFormat(IntEnum):
    """Format of an image file by its content, whatever its name says. Values are stored on disk.

    OTHER is none of the formats before it, or one of them in a form that is not on the white list
    of those that DALI decodes as Pillow does, such as a PNG of 16 bits (see `plain_forms`), or a
    JPEG with garbage between its segments.
    """

    JPEG = 0
    PNG = 1
    WEBP = 2
    BMP = 3
    TIFF = 4
    GIF = 5
    PNM = 6
    OTHER = 7
    UNREADABLE = 8


_PILLOW_FORMATS = {
    "PNG": ImageFormat.PNG,
    "WEBP": ImageFormat.WEBP,
    "BMP": ImageFormat.BMP,
    "TIFF": ImageFormat.TIFF,
    "GIF": ImageFormat.GIF,
    "PPM": ImageFormat.PNM,
}

# ITU-T T.81, table B.1. Start of frame: 0xC0-0xCF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PLAIN_FRAMES = frozenset([0xC0, 0xC1, 0xC2])  # sequential and progressive, with Huffman codes
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_END_BYTES = bytes([0xFF, _END_OF_IMAGE])

# Length of a segment and, of a frame, precision, height, width and number of components.
_SEGMENT = struct.Struct(">HBHHB")

_CUT_SHORT = (0, 0)
NO_STAMP = (-1, -1)  # of a file that is missing

_READ_BYTES = 4096  # one page holds the header unless EXIF or colour profiles precede the frame


def read_header(path: bytes | str) -> tuple[int, int, ImageFormat]:
    """Size of the pixels that Pillow decodes (it rotates TIFF only) and format of an image file.

    Returns (width, height, format): `(0, 0, ImageFormat.UNREADABLE)` for a file that is missing, is
    no image, or whose header is damaged.

    Raises:
        UserError: see `read_stamped_header`.
    """
    return read_stamped_header(path)[:3]


def read_stamped_header(path: bytes | str) -> tuple[int, int, ImageFormat, int, int]:
    """`read_header`, and the file's mtime in nanoseconds and size in bytes before it was read.

    They are -1 for a file that is missing.

    Raises:
        UserError: this process may open no more files, which says nothing of the image.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(
                f"cannot open {printable(os.fsdecode(path), 130)} ({error.strerror}): allow more "
                "open files (ulimit -n) or take smaller batches"
            ) from error
        return 0, 0, ImageFormat.UNREADABLE, *NO_STAMP
    try:
        status = os.fstat(descriptor)
        stamp = (status.st_mtime_ns, status.st_size)
        size = _jpeg_size(lambda n, start: os.pread(descriptor, n, start), status.st_size)
    except OSError:
        return 0, 0, ImageFormat.UNREADABLE, *NO_STAMP
    finally:
        os.close(descriptor)
    if size == _CUT_SHORT:
        return 0, 0, ImageFormat.UNREADABLE, *stamp
    if size is None:
        try:
            with Path(os.fsdecode(path)).open("rb") as file:
                return *_read_with_pillow(file), *stamp
        except OSError:
            return 0, 0, ImageFormat.UNREADABLE, *NO_STAMP
    return *size, ImageFormat.JPEG, *stamp


def read_header_of_bytes(encoded: npt.NDArray[np.uint8]) -> tuple[int, int, ImageFormat]:
    """`read_header` of an encoded image in memory, uint8 [num_bytes]."""
    return read_header_by(lambda n, start: encoded[start : start + n].tobytes(), len(encoded))


def read_header_by(
    read: Callable[[int, int], bytes], num_bytes: int
) -> tuple[int, int, ImageFormat]:
    """`read_header` of an encoded image of which only some parts are read.

    Args:
        read: gives up to so many bytes from a position on.
        num_bytes: of the image.
    """
    size = _jpeg_size(read, num_bytes)
    if size == _CUT_SHORT:
        return 0, 0, ImageFormat.UNREADABLE
    if size is None:
        return _read_with_pillow(io.BytesIO(read(num_bytes, 0)))
    return *size, ImageFormat.JPEG


def _jpeg_size(read: Callable[[int, int], bytes], num_bytes: int) -> tuple[int, int] | None:
    """Width and height from the start-of-frame segment of a JPEG that is in order.

    In order are one frame of 8 bits in one or three components, complete segments up to the start
    of scan, and an end of the image. `_CUT_SHORT` for a file that ends before the scan, None for
    all others.

    Args:
        read: gives up to so many bytes from a position on.
        num_bytes: of the file.
    """
    buffer, start = read(_READ_BYTES, 0), 0
    size = None
    if not buffer.startswith(b"\xff\xd8\xff"):
        return None
    position = 2
    while True:
        at = position - start
        if at + 2 + _SEGMENT.size > len(buffer):
            buffer, start, at = read(_READ_BYTES, position), position, 0
            if len(buffer) < 2 + _SEGMENT.size:  # a scan is longer
                return _CUT_SHORT
        if buffer[at] != 0xFF:
            return None
        marker = buffer[at + 1]
        if marker == 0xFF:  # a fill byte; any number may precede a marker
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in (0x00, _END_OF_IMAGE):
            return None
        else:
            length, precision, height, width, components = _SEGMENT.unpack_from(buffer, at + 2)
            if marker == _START_OF_SCAN:
                end = at + 2 + length
                # Coded data follow: of a scan without any DALI makes pixels, Pillow refuses it.
                if buffer[end : end + 1] == b"\xff" and buffer[end + 1 : end + 2] != b"\0":
                    return None
                if end > len(buffer) and len(read(length, position + 2)) < length:
                    return _CUT_SHORT
                # Without an end the data are cut short: DALI makes pixels of windows before the
                # cut, Pillow refuses it. The end's two bytes never stand inside of coded data.
                tail = max(start + end, num_bytes - _READ_BYTES)
                return size if _END_BYTES in read(_READ_BYTES, tail) else None
            if marker in _START_OF_FRAME:
                is_plain = marker in _PLAIN_FRAMES and precision == 8 and components in (1, 3)
                if not is_plain or not width or not height or size is not None:
                    return None
                size = (width, height)
            elif length < 2:
                return None
            position += 2 + length


def _read_with_pillow(file: BinaryIO) -> tuple[int, int, ImageFormat]:
    try:
        with open_with_pillow(file) as image:
            width, height = image.size
            image_format = _PILLOW_FORMATS.get(image.format or "", ImageFormat.OTHER)
            if image_format != ImageFormat.GIF and not is_plain(image):
                image_format = ImageFormat.OTHER
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return 0, 0, ImageFormat.UNREADABLE
    if width < 1 or height < 1:
        return 0, 0, ImageFormat.UNREADABLE
    return width, height, image_format


def open_with_pillow(file: BinaryIO) -> ImageFile.ImageFile:
    """`Image.open` without its limit of pixels: the loaders have one of their own.

    Raises:
        Exception: of nearly every type; no plugin can read the header.
    """
    # All plugins at once: while one thread is about to load the rare ones, Pillow tells another
    # that their formats cannot be identified.
    Image.init()
    prefix = file.read(16)
    for name in Image.ID:
        plugin, accepts = Image.OPEN[name]
        answer = accepts is None or accepts(prefix)
        if not answer or isinstance(answer, str):  # a text says what is missing
            continue
        file.seek(0)
        try:
            return plugin(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # as Image.open does: another plugin may read it
    raise UnidentifiedImageError("no plugin of Pillow's reads the header")

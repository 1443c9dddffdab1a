"""Width, height and format of an image, read from the header of its file or of its bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from enum import IntEnum
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile


class ImageFormat(IntEnum):
    """Format of an image file by its content, whatever its name says. Values are stored on disk.

    OTHER is none of the formats before it, or one of them in a form whose pixels DALI does not
    decode as Pillow does, such as a PNG of 16 bits.
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
    "JPEG": ImageFormat.JPEG,
    "MPO": ImageFormat.JPEG,  # several JPEG images in one file; a decoder takes the first
    "PNG": ImageFormat.PNG,
    "WEBP": ImageFormat.WEBP,
    "BMP": ImageFormat.BMP,
    "TIFF": ImageFormat.TIFF,
    "GIF": ImageFormat.GIF,
    "PPM": ImageFormat.PNM,
}

# ITU-T T.81, table B.1. Start of frame: 0xC0-0xCF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9

_READ_BYTES = 4096  # one page holds the start of frame unless EXIF or colour profiles precede it


def read_header(path: bytes | str) -> tuple[int, int, ImageFormat]:
    """Size of the pixels that Pillow decodes (it rotates TIFF only) and format of an image file.

    Returns (width, height, format). Never raises: a file that is missing, is no image, or whose
    header is damaged gives `(0, 0, ImageFormat.UNREADABLE)`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = _jpeg_size(lambda length, start: os.pread(descriptor, length, start))
        finally:
            os.close(descriptor)
    except OSError:
        return 0, 0, ImageFormat.UNREADABLE
    if size is None:
        return _read_with_pillow(os.fsdecode(path))
    return *size, ImageFormat.JPEG


def read_header_of_bytes(encoded: npt.NDArray[np.uint8]) -> tuple[int, int, ImageFormat]:
    """`read_header` of an encoded image in memory, uint8 [num_bytes]."""
    size = _jpeg_size(lambda length, start: encoded[start : start + length].tobytes())
    if size is None:
        return _read_with_pillow(io.BytesIO(encoded.tobytes()))
    return *size, ImageFormat.JPEG


def _jpeg_size(read: Callable[[int, int], bytes]) -> tuple[int, int] | None:
    """Width and height from the start-of-frame segment; None for anything out of the ordinary.

    Args:
        read: gives up to so many bytes from a position on.
    """
    buffer, start = read(_READ_BYTES, 0), 0
    if not buffer.startswith(b"\xff\xd8\xff"):
        return None
    position = 2
    while True:
        at = position - start
        if at + 10 > len(buffer):  # marker 2, length 2, precision 1, height 2, width 2, channels 1
            buffer, start, at = read(_READ_BYTES, position), position, 0
            if len(buffer) < 9:
                return None
        if buffer[at] != 0xFF:
            return None
        marker = buffer[at + 1]
        if marker == 0xFF:  # a fill byte; any number may precede a marker
            position += 1
        elif marker in _START_OF_FRAME:
            height = buffer[at + 5] << 8 | buffer[at + 6]
            width = buffer[at + 7] << 8 | buffer[at + 8]
            is_cmyk = buffer[at + 9 : at + 10] == b"\x04"
            return (width, height) if width and height and not is_cmyk else None
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in (0x00, _START_OF_SCAN, _END_OF_IMAGE):
            return None
        else:
            length = buffer[at + 2] << 8 | buffer[at + 3]
            if length < 2:
                return None
            position += 2 + length


def _read_with_pillow(file: str | BinaryIO) -> tuple[int, int, ImageFormat]:
    # All plugins at once: while one thread is about to load the rare ones, Pillow tells another
    # that their formats cannot be identified.
    Image.init()
    try:
        with Image.open(file) as image:
            width, height = image.size
            image_format = _PILLOW_FORMATS.get(image.format or "", ImageFormat.OTHER)
            if _needs_pillow(image, image_format):
                image_format = ImageFormat.OTHER
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return 0, 0, ImageFormat.UNREADABLE
    if width < 1 or height < 1:
        return 0, 0, ImageFormat.UNREADABLE
    return width, height, image_format


def _needs_pillow(image: ImageFile.ImageFile, image_format: ImageFormat) -> bool:
    """Whether DALI 2.4 decodes such a file to other pixels than Pillow 13, or not at all.

    tests/loader/test_odd_inputs.py holds what was measured. CMYK JPEG are equal only where an Adobe
    marker tells that they are inverted, and GPU decoders treat them in their own ways.
    """
    layout = str(image.tile[:1])  # decoder and raw mode, such as "RGB;16B"
    if ";16" in layout or ";15" in layout:
        return True
    if image_format == ImageFormat.JPEG:
        return image.mode == "CMYK"
    if image_format == ImageFormat.TIFF:
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return rotated or image.mode not in ("L", "RGB")
    if image_format == ImageFormat.PNM:
        return "'raw'" not in layout  # plain text, or other than 255 levels
    return False

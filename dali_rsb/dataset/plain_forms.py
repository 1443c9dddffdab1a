"""The forms of image files that DALI decodes to Pillow's pixels: a white list.

A form is on the list because both were made to decode it: DALI 2.4 and Pillow 13, on the CPU, with
the files of Pillow's own tests and mutations of them (`benchmarks.pillow_pixels`) and those of
tests/loader/test_odd_inputs.py. What is not on it is decoded by Pillow, whether or not DALI could.

JPEG is not here: `image_header` reads its header without Pillow, and is as strict.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from PIL import ExifTags, ImageFile

# What may stand before the pixels of a PNG. With an `acTL` it is an animated one: DALI takes the
# first frame, Pillow the picture of those that cannot animate, or frames that it has blended.
_PNG_CHUNKS = frozenset(
    b"IHDR PLTE tRNS gAMA cHRM sRGB iCCP sBIT bKGD hIST pHYs sPLT tIME tEXt zTXt iTXt eXIf".split()
)
_PNG_ONCE = (b"IHDR", b"PLTE", b"tRNS")
_PNG_MAX_BITS = 8  # of a sample; Pillow clips or drops what is beyond, DALI scales

# What may stand before the pixels of a WebP. With an `ANIM` it is an animated one. Nothing may be
# behind: where the pixels' data are damaged, DALI reads on into EXIF data, and Pillow does not.
_WEBP_CHUNKS, _WEBP_PIXELS = (b"VP8X", b"ICCP", b"ALPH"), (b"VP8 ", b"VP8L")

# Windows 3, 4 and 5. BI_RGB, and BI_BITFIELDS where Pillow knows the masks as one of the modes.
_BMP_HEADER_BYTES, _BMP_COMPRESSIONS = (40, 108, 124), (0, 3)
_BMP_MODES = ("BGR", "BGRX", "BGRA")

# TIFF 6.0: what has one of these tags has one of these values. Only without compression: of damaged
# LZW or JPEG data DALI makes pixels where Pillow refuses.
_TIFF_VALUES = {
    258: ((8,), (8, 8, 8)),  # BitsPerSample
    259: (1,),  # Compression
    262: (1, 2),  # PhotometricInterpretation: black is zero, RGB
    266: (1,),  # FillOrder
    274: (1,),  # Orientation
    284: (1,),  # PlanarConfiguration: a pixel's samples lie together
    339: ((1,), (1, 1, 1)),  # SampleFormat: unsigned
}
_TIFF_NEEDED = (258, 259, 262)
_TIFF_STRIP_OFFSETS, _TIFF_STRIP_BYTES, _TIFF_SAMPLES = 273, 279, 277

_WHOLE_BYTES = ("L", "RGB")


def is_plain(image: ImageFile.ImageFile) -> bool:
    """Whether DALI decodes a file to Pillow's pixels.

    Args:
        image: as Pillow opened it, with its file open; it is not decoded.
    """
    check = _CHECKS.get(image.format or "")
    try:
        return check is not None and check(image)
    except Exception:  # the header is damaged where Pillow has not looked at it yet
        return False


def _is_raw_and_whole(image: ImageFile.ImageFile, modes: tuple[str, ...]) -> bool:
    """Whether the pixels follow one another in one of some raw modes, and the file has them all."""
    if len(image.tile) != 1 or image.tile[0].codec_name != "raw":
        return False
    tile = image.tile[0]
    mode, stride = (tile.args, 0) if isinstance(tile.args, str) else (tile.args or ())[:2]
    row_bytes = stride or image.width * len(mode)  # a letter for each byte
    return mode in modes and tile.offset + row_bytes * image.height <= _num_bytes(image)


def _num_bytes(image: ImageFile.ImageFile) -> int:
    """The length of the file."""
    return int(image.fp.seek(0, os.SEEK_END))  # type: ignore[union-attr]


def _read(image: ImageFile.ImageFile, start: int, length: int) -> bytes:
    file = image.fp
    assert file is not None
    file.seek(start)
    return bytes(file.read(length))


def _is_plain_png(image: ImageFile.ImageFile) -> bool:
    seen: list[bytes] = []
    position = 8
    while True:
        # Length, name, and of the first one width, height and bits a sample.
        chunk = _read(image, position, 17)
        length, name = int.from_bytes(chunk[:4], "big"), chunk[4:8]
        if name == b"IDAT":
            return seen[0] == b"IHDR" and all(seen.count(once) < 2 for once in _PNG_ONCE)
        if name not in _PNG_CHUNKS or (name == b"IHDR" and chunk[16] > _PNG_MAX_BITS):
            return False
        seen.append(name)
        position += 12 + length


def _is_plain_webp(image: ImageFile.ImageFile) -> bool:
    num_bytes = _num_bytes(image)
    is_whole = int.from_bytes(_read(image, 4, 4), "little") + 8 == num_bytes
    position = 12
    while is_whole:
        chunk = _read(image, position, 8)
        name, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        position += 8 + length + length % 2
        if name in _WEBP_PIXELS:
            return position == num_bytes
        if name not in _WEBP_CHUNKS:
            return False
    return False


def _is_plain_bmp(image: ImageFile.ImageFile) -> bool:
    return (
        int.from_bytes(_read(image, 14, 4), "little") in _BMP_HEADER_BYTES
        and image.info.get("compression") in _BMP_COMPRESSIONS
        and _is_raw_and_whole(image, _BMP_MODES)
    )


def _is_plain_tiff(image: ImageFile.ImageFile) -> bool:
    tags = image.tag_v2  # type: ignore[attr-defined]
    offsets, lengths = tags[_TIFF_STRIP_OFFSETS], tags[_TIFF_STRIP_BYTES]
    num_samples = len(image.getbands())
    return (
        image.mode in _WHOLE_BYTES
        and all(tag in tags for tag in _TIFF_NEEDED)
        and all(tags[tag] in values for tag, values in _TIFF_VALUES.items() if tag in tags)
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        and tags.get(_TIFF_SAMPLES, 1) == num_samples
        and sum(lengths) == image.width * image.height * num_samples
        and max(map(sum, zip(offsets, lengths, strict=True))) <= _num_bytes(image)
    )


def _is_plain_pnm(image: ImageFile.ImageFile) -> bool:
    return _read(image, 0, 2) in (b"P5", b"P6") and _is_raw_and_whole(image, _WHOLE_BYTES)


_CHECKS: dict[str, Callable[[ImageFile.ImageFile], bool]] = {
    "PNG": _is_plain_png,
    "WEBP": _is_plain_webp,
    "BMP": _is_plain_bmp,
    "TIFF": _is_plain_tiff,
    "PPM": _is_plain_pnm,
}

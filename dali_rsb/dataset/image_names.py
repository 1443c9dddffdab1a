"""Which files are images by their names: those with an extension of a format that Pillow reads."""

from __future__ import annotations

import functools
import os

from PIL import Image

# Pillow knows these, but decodes them with other programs, or not at all.
_NOT_DECODED = frozenset(["BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"])


@functools.cache
def image_extensions() -> frozenset[str]:
    """The extensions in lower case, with their dots: .jpg, .jfif, .avif, ...

    Which optional formats are among them depends on how Pillow was built.
    """
    known = Image.registered_extensions()
    return frozenset(
        extension.lower()
        for extension, name in known.items()
        if name in Image.OPEN and name not in _NOT_DECODED
    )


def is_image_name(name: str) -> bool:
    """Whether a file's name ends in the extension of an image."""
    return extension_of(name) in image_extensions()


def extension_of(name: str) -> str:
    """The last suffix of a file's name in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 -- a million times, and names of any bytes

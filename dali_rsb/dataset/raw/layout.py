"""An image as pixels in a shard: a binary PPM; and which images become one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_rsb.dataset.image_header import open_with_pillow

BYTES_PER_PIXEL = 3  # RGB


def encode(pixels: Image.Image) -> bytes:
    """An RGB image as a PPM."""
    width, height = pixels.size
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def decode(encoded: bytes) -> Image.Image:
    """An image of any format as RGB, as Pillow decodes it; raises nearly every type."""
    with open_with_pillow(io.BytesIO(encoded)) as image:
        return image.convert("RGB")


def num_bytes(
    widths: npt.NDArray[np.integer], heights: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Bytes of the pixels of images of some sizes: int64 [n]."""
    return BYTES_PER_PIXEL * widths.astype(np.int64) * heights


def chosen(keys: Sequence[bytes], seed: int, share: float) -> npt.NDArray[np.bool_]:
    """Which images are kept as pixels: bool [n].

    It depends on the seed and on the image's key alone, and whoever is chosen for a share is chosen
    for a larger one.
    """
    if share <= 0:
        return np.zeros(len(keys), np.bool_)
    salt = seed.to_bytes(8, "little")
    digests = b"".join(hashlib.blake2b(key, digest_size=8, salt=salt).digest() for key in keys)
    return np.frombuffer(digests, "<u8") < share * 2.0**64

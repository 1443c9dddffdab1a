"""JPEGs of the kinds that a decoder treats each in its own way: chroma, sizes, markers, processes.

For tests and measurements that must hold for any JPEG; the pictures are noise on a gradient, so
that a wrong block, a shifted row or another chroma filter changes pixels everywhere.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
from typing import Any

import numpy as np
from PIL import Image

# Width and height: whole units and odd ones, prime numbers of units, less than a unit, one tile.
SIZES = (
    (500, 375),
    (375, 500),
    (499, 333),
    (256, 256),
    (257, 129),
    (64, 48),
    (61, 47),
    (33, 200),
    (200, 33),
    (17, 16),
    (7, 9),
    (1, 1),
)


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """An RGB picture of a width and height in pixels."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    slopes, phases = rng.uniform(-0.08, 0.08, (3, 2)), rng.uniform(0, 6, 3)
    waves = [np.sin(x * a + y * b + phase) for (a, b), phase in zip(slopes, phases, strict=True)]
    levels = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def jpegs(size: tuple[int, int], seed: int) -> dict[str, bytes]:
    """Name -> JPEG of one size in pixels, all of which can be tiled. Needs jpegtran and cjpeg."""
    rgb = picture(size, seed)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    exif[0x010E] = "described" * 50
    grey = encoded(rgb.convert("L"))
    turned = rgb.transpose(Image.Transpose.TRANSPOSE)
    return {
        "4:2:0": encoded(rgb, subsampling="4:2:0"),
        "4:2:2": encoded(rgb, subsampling="4:2:2"),
        "4:4:4": encoded(rgb, subsampling="4:4:4", quality=95),
        "4:4:0": jpegtran(encoded(turned, subsampling="4:2:2"), "-transpose"),
        "4:1:1": _sampled(rgb, "4x1"),
        "chroma finer than luma": _sampled(rgb, "1x1,2x2,1x1"),
        "grey": grey,
        "grey with sampling factors": grey.replace(b"\1\1\x11\0\xff", b"\1\1\x22\0\xff"),
        "stored as RGB": encoded(rgb, keep_rgb=True),
        "restart markers": encoded(rgb, restart_marker_blocks=3),
        "a restart marker a row": encoded(rgb, subsampling="4:2:2", restart_marker_rows=1),
        "EXIF and ICC": encoded(rgb, exif=exif, icc_profile=bytes(range(256)) * 300, comment=b"c"),
        "fill bytes": with_fill_bytes(encoded(rgb, restart_marker_blocks=2)),
        "progressive": encoded(rgb, progressive=True),
        "arithmetic": jpegtran(encoded(rgb), "-arithmetic"),
        "a scan a component": _scan_a_component(encoded(rgb)),
    }


def encoded(image: Image.Image, **options: Any) -> bytes:
    """A JPEG by Pillow."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 85, **options})
    return stream.getvalue()


def with_fill_bytes(jpeg: bytes) -> bytes:
    """The same JPEG with 0xFF in front of each marker of its header and each restart marker."""
    scan = jpeg.index(b"\xff\xda")
    header = jpeg[:scan]
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xdd"):
        header = header.replace(marker, b"\xff\xff" + marker, 1)
    body = jpeg[scan:]
    for number in range(8):
        marker = bytes([0xFF, 0xD0 + number])
        body = body.replace(marker, b"\xff\xff" + marker)
    return header + b"\xff" + body


def jpegtran(jpeg: bytes, *arguments: str) -> bytes:
    """What jpegtran makes of a JPEG."""
    command = ["jpegtran", "-copy", "all", *arguments]
    return subprocess.run(command, input=jpeg, capture_output=True, check=True).stdout


def _scan_a_component(jpeg: bytes) -> bytes:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as script:
        script.write("0;\n1;\n2;\n")
        script.flush()
        return jpegtran(jpeg, "-scans", script.name)


def _sampled(image: Image.Image, factors: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PPM")
    command = ["cjpeg", "-sample", factors]
    return subprocess.run(command, input=stream.getvalue(), capture_output=True, check=True).stdout

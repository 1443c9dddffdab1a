"""Compares the pixels of a pack, whole and in windows, with those of the images it was made of."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.opening import open_index
from dali_rsb.dataset.packing.note import read_pack
from dali_rsb.dataset.raw.reading import read_window
from dali_rsb.dataset.windows import WindowImages, Windows
from dali_rsb.errors import UserError
from dali_rsb.system.cpus import available_cpus
from dali_rsb.system.names import printable

_CHUNK = 256  # images that wait for a thread


def verify_pixels(source: DatasetIndex, target: Path, progress: bool = True) -> int:
    """Decode every image of a pack, whole and in four windows, and compare it with its original.

    Args:
        source: what was packed.
        target: the pack.

    Returns:
        How many images there are.

    Raises:
        UserError: the pack is of other images, was to change pixels, or did.
    """
    target = target.expanduser().absolute()
    note, _ = read_pack(target, "pack again")
    packed = open_index(target)
    if note.effect is not None:
        raise UserError(
            f"the pixels in {target} are not those of the originals ({note.effect}): verify it "
            "without SRC, which compares checksums"
        )
    if packed.store.keys.all() != source.store.keys.all():
        raise UserError(f"{target} was not packed from {source.origin}: give what was")
    show = progress and sys.stderr.isatty()
    different: list[int] = []
    Image.init()  # threads that load plugins at the same time get in each other's way
    with (
        ThreadPoolExecutor(available_cpus()) as pool,
        tqdm(total=len(source), desc="comparing pixels", unit="img", disable=not show) as bar,
    ):
        for start in range(0, len(source), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source)))
            same = pool.map(partial(_has_pixels_of, packed, source), rows)
            different += [row for row, is_same in zip(rows, same, strict=True) if not is_same]
            bar.update(len(rows))
    if different:
        names = ", ".join(printable(packed.name(row)) for row in different[:2])
        more = ", ..." if len(different) > 2 else ""
        raise UserError(
            f"{len(different)} of {len(source)} images have other pixels than their originals: "
            f"{names}{more}; pack again"
        )
    return len(source)


def _has_pixels_of(packed: DatasetIndex, source: DatasetIndex, row: int) -> bool:
    with source.open(row) as file, packed.open(row) as other:
        original, copy = file.read(), other.read()
    try:
        pixels = _decoded(original)
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return original == copy
    windows = _quarters(pixels.shape[1], pixels.shape[0])
    none = np.zeros(2, np.int64)
    try:
        images = packed.window_images(np.full(4, row), windows)
        return np.array_equal(_decoded(copy), pixels) and all(
            np.array_equal(
                _part(_pixels_of(images, number), windows, number, images.origins[number]),
                _part(pixels, windows, number, none),
            )
            for number in range(4)
        )
    except Exception:  # Pillow's, or NumPy's on a damaged index
        return False


def _pixels_of(images: WindowImages, number: int) -> npt.NDArray[np.uint8]:
    if images.raw is not None and images.raw.is_raw[number]:
        return read_window(images.raw.places[number].tolist())
    return _decoded(images.arrays[number].tobytes())


def _decoded(encoded: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def _quarters(width: int, height: int) -> Windows:
    """Four windows that make up an image; of a single row or column, two of them are the whole."""
    top, left = height // 2, width // 2
    return Windows(
        np.array([0, 0, top, top]),
        np.array([0, left, 0, left]),
        np.array([max(1, top), max(1, top), height - top, height - top]),
        np.array([max(1, left), width - left, max(1, left), width - left]),
    )


def _part(
    pixels: npt.NDArray[np.uint8], windows: Windows, number: int, origin: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    top, left = int(windows.top[number] - origin[0]), int(windows.left[number] - origin[1])
    return pixels[top:, left:][: windows.height[number], : windows.width[number]]

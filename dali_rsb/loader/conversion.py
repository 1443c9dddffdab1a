"""Images that DALI cannot decode, or decodes to other pixels than Pillow: Pillow decodes each once,
into a copy that the loader reads from then on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, __version__

from dali_rsb.constants import MAX_PIXELS
from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.image_header import ImageFormat, open_with_pillow
from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.names import printable
from dali_rsb.system.user_cache import user_cache

logger = logging.getLogger(__name__)

# GIF is not decoded by DALI. By `ImageFormat`, as a table to index.
_NEEDS_PILLOW = np.isin(np.arange(256), [ImageFormat.GIF, ImageFormat.OTHER])

_VERSION = 1  # of the copies' pixels: raise it when `_convert` makes others of the same file

_NUM_THREADS = 8  # Pillow releases the interpreter lock while it decodes


class Conversions:
    """Keeps the converted copies of one dataset's images.

    A copy is a PPM file: DALI decodes it exactly, in half the time of a JPEG of that size and a
    tenth of the time of a PNG. It is made when an image is first used, named after all that decides
    its pixels (name, time and size of the original or of its shard, Pillow's version, whether
    Pillow may decode truncated files), and kept for later runs in `converted` inside the stored
    index, or in `converted` of the user's cache if the index is not stored, or not writable. Any
    number of processes may convert the same image at once.

    Args:
        index: the dataset.
        max_pixels: of an image that Pillow decodes, by the file and not by the index, which may
            hold another size.
    """

    def __init__(self, index: DatasetIndex, max_pixels: int = MAX_PIXELS) -> None:
        self._index = index
        self._max_pixels = max_pixels
        self._copies: dict[int, Path] = {}
        self._undecodable: set[int] = set()  # by Pillow
        self._announced = False

    def substitute(
        self, arrays: list[npt.NDArray[np.uint8]], indices: npt.NDArray[np.int64]
    ) -> list[int]:
        """Replace images that Pillow must decode by their copies: the paths or the bytes.

        An image that Pillow cannot decode either stays as it is. Returns the replaced rows.

        Args:
            arrays: `DatasetIndex.image_arrays` of the images, or small ones; changed in place.
            indices: int64 [len(arrays)], the images' numbers in the index.

        Raises:
            UserError: no folder for the copies is writable, or it is full.
        """
        odd = _NEEDS_PILLOW[self._index.formats[indices]]
        if odd.any():
            self._convert_all(set(indices[odd].tolist()) - self._copies.keys() - self._undecodable)
        if not self._copies:
            return []
        rows = [row for row, image in enumerate(indices.tolist()) if image in self._copies]
        for row in rows:
            arrays[row] = self._array_of_copy(int(indices[row]))
        return rows

    def forget(self, image: int) -> None:
        """The image has changed: what was found out about it does not hold any more."""
        self._copies.pop(image, None)
        self._undecodable.discard(image)

    def image_array(self, image: int) -> npt.NDArray[np.uint8]:
        """The input of a DALI pipeline for one image; see `DatasetIndex.image_arrays`."""
        array: npt.NDArray[np.uint8] = self.image_inputs(image)[self._index.image_source][0]
        return array

    def image_inputs(self, image: int) -> dict[str, Any]:
        """The inputs of a DALI pipeline for one image; see `DatasetIndex.image_inputs`."""
        inputs = self._index.image_inputs(np.array([image]))
        self.substitute(inputs[self._index.image_source], np.array([image]))
        return inputs

    def _array_of_copy(self, image: int) -> npt.NDArray[np.uint8]:
        if self._index.image_source == "path":
            return np.frombuffer(os.fsencode(self._copies[image]), np.uint8)
        try:
            return np.fromfile(self._copies[image], np.uint8)
        except FileNotFoundError:  # deleted since
            self._convert(image)
            return np.fromfile(self._copies[image], np.uint8)

    def convert_rejected(self, image: int, reason: str = "DALI rejects it") -> bool:
        """Convert an image that DALI rejects; return False if Pillow cannot decode it either, or
        if it was a copy, and still is there, that DALI rejected.

        Args:
            reason: why DALI does not decode it, for the log.
        """
        copy = self._copies.get(image)
        if copy is not None and copy.exists():
            return False
        if not self._convert(image):
            return False
        logger.info(
            "%s is decoded by Pillow, as %s; copy in %s",
            printable(self._index.name(image)),
            reason,
            self._folder,
        )
        return True

    def _convert_all(self, images: Iterable[int]) -> None:
        images = list(images)
        if not images:
            return
        if not self._announced:
            self._announce()
        Image.init()  # threads that load plugins at the same time get in each other's way
        with ThreadPoolExecutor(min(_NUM_THREADS, len(images))) as pool:
            list(pool.map(self._convert, images))

    def _announce(self) -> None:
        odd = np.flatnonzero(_NEEDS_PILLOW[self._index.formats])
        logger.info(
            "%d of %d images in %s are decoded by Pillow, as DALI does not decode them to the same "
            "pixels: %s%s; copies in %s",
            len(odd),
            len(self._index),
            self._index.origin,
            ", ".join(printable(self._index.store.name(i)) for i in odd[:3].tolist()),
            ", ..." if len(odd) > 3 else "",
            self._folder,
        )
        self._announced = True

    def _convert(self, image: int) -> bool:
        """Make the copy of one image unless there is one; False if Pillow cannot decode it."""
        try:
            copy = self._folder / f"{self._key(image)}.ppm"
            pixels = None
            if not copy.exists():
                with self._index.open(image) as file:
                    opened = open_with_pillow(file)
                    if opened.width * opened.height > self._max_pixels:
                        raise ValueError(f"{opened.width} x {opened.height} pixels")
                    pixels = opened.convert("RGB")
        except UserError:
            raise
        except Exception:  # Pillow's plugins raise nearly every type on damaged files
            self._undecodable.add(image)
            return False
        if pixels is not None:
            _write(copy, pixels)
        self._copies[image] = copy
        return True

    def _key(self, image: int) -> str:
        """Names the copy of an image by all that decides its pixels.

        Raises:
            FileNotFoundError: the file is gone.
        """
        # The limit of pixels is not among it: what is beyond is refused before it comes here.
        facts = (
            self._index.stamp(image),
            f"conversion {_VERSION}",
            f"Pillow {__version__}",
            f"truncated files allowed: {bool(ImageFile.LOAD_TRUNCATED_IMAGES)}",
        )
        return hashlib.sha256(os.fsencode("\n".join(facts))).hexdigest()[:32]

    @property
    def _folder(self) -> Path:
        place = self._index.place
        if place is not None and os.access(place, os.W_OK | os.X_OK):
            return place / "converted"
        try:
            return user_cache() / "converted"
        except RuntimeError as error:
            raise UserError(
                f"this user has no home directory for converted copies of images of "
                f"{self._index.origin}: set data.index to a writable folder"
            ) from error


def _write(target: Path, image: Image.Image) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file:
            image.save(file, "PPM")
    except OSError as error:
        raise UserError(
            f"cannot write a converted copy of an image to {target.parent} ({error.strerror}): "
            "make room there, or set data.index to a writable folder"
        ) from error

"""The dataset index: label, size and format of every image, and the store that holds it.

A dataset is a folder of class folders, a list of images or a folder of tar shards. The index is
built once, by listing them and reading each image's header, stored beside the data and
memory-mapped from then on. A stored index is used as long as no directory, list or shard has
changed; an image that was overwritten in place, with its name kept, is noticed when it is used
(see `changes`). Shards that `dali_rsb.pack` wrote bring their index along.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.store import ImageStore, Rows
from dali_rsb.dataset.windows import WindowImages, Windows

if TYPE_CHECKING:
    from pipelines.types import ImageSource


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The images of a dataset, in a fixed order. Images are numbered from 0 to N - 1.

    Attributes:
        classes: class names; a label is a position in it.
        labels: int64 [N].
        widths, heights: int32 [N], pixels as stored (no EXIF rotation); with `formats` and `stamps`
            what alone may change, in place, when a file has (see `changes`).
        formats: uint8 [N], `ImageFormat` by content.
        store: where the encoded images lie.
        stamps: int64 [N, 2], those of the files when their headers were read; see
            `ImageStore.stamped_header`.
        place: folder that the index is stored in, None if it is stored nowhere.
        empty: classes whose folders hold no image and that nobody has declared.
        left_out: number of the entries that were seen and not used, by reason.
    """

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    formats: npt.NDArray[np.uint8]
    store: ImageStore
    stamps: npt.NDArray[np.int64] | None = None
    place: Path | None = None
    empty: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Rows) -> DatasetIndex:
        """Some of the images, in the order of `rows`; classes keep their labels."""
        columns = ("labels", "widths", "heights", "formats")
        chosen = {name: getattr(self, name)[rows] for name in columns}
        stamps = None if self.stamps is None else self.stamps[rows]
        return replace(self, store=self.store.select(rows), stamps=stamps, **chosen)

    def digest(self) -> str:
        """16 hexadecimal digits that change with the names, order, labels or classes of the images.

        What the files hold is not looked at. It takes 0.05 s for ImageNet's 1.28 million images.
        """
        keys = self.store.keys
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for array in (self.labels, keys.data, np.diff(keys.offsets)):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def root(self) -> Path:
        """Absolute folder that the images' paths are relative to; of shards, their folder."""
        return self.store.root

    @property
    def origin(self) -> Path:
        """The folder or list file that the dataset is known by."""
        return self.store.origin

    def path(self, i: int) -> Path:
        """Absolute path of image i; in shards there is no such file, see `name` and `open`."""
        return self.root / os.fsdecode(self.store.keys[i])

    def name(self, i: int) -> str:
        """What messages call image i: its path, or that of its shard and its own in there."""
        return f"{str(self.root).rstrip('/')}/{self.store.name(i)}"

    def open(self, i: int) -> BinaryIO:
        """Open the encoded image i; raises as `ImageStore.open`."""
        return self.store.open(i)

    def stamp(self, i: int) -> str:
        """Text that changes when image i does: its name, and time and size of its file.

        Raises:
            FileNotFoundError: the file is gone.
        """
        numbers = self.store.stamp(i)
        if not numbers:
            raise FileNotFoundError(self.name(i))
        return "\n".join([self.name(i), *map(str, numbers)])

    @property
    def encoded_bytes(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each image as it is stored, int64 [N], without a look at it; None if unknown."""
        if self.stamps is None:
            return self.store.num_bytes
        return np.maximum(self.stamps[:, 1], 0)  # of a file that is missing there is none

    @property
    def image_source(self) -> ImageSource:
        """Which image input of a DALI pipeline `image_arrays` is for."""
        return self.store.image_source

    def image_arrays(self, indices: Rows) -> list[npt.NDArray[np.uint8]]:
        """What that input takes of some images: see `ImageStore.arrays`."""
        return self.store.arrays(indices)

    def image_sizes(self, indices: Rows) -> npt.NDArray[np.int32]:
        """What the headers of some images state: int32 [n, 3], height, width and 3 channels."""
        sizes = np.full((len(indices), 3), 3, np.int32)
        sizes[:, 0], sizes[:, 1] = self.heights[indices], self.widths[indices]
        return sizes

    def image_inputs(self, indices: Rows) -> dict[str, Any]:
        """The inputs of a DALI pipeline for whole images: `image_arrays` and their sizes."""
        return {self.image_source: self.image_arrays(indices), "size": self.image_sizes(indices)}

    def window_images(self, indices: Rows, windows: Windows, whole: bool = False) -> WindowImages:
        """What that input takes of some images to decode windows: see `ImageStore`."""
        widths, heights = self.widths[indices], self.heights[indices]
        return self.store.window_images(indices, widths, heights, windows, whole)

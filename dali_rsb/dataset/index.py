"""The dataset index: path or place in a shard, label, size and format of every image.

A dataset is a folder of class folders, a list of images or a folder of tar shards. The index is
built once, by listing them and reading each image's header, stored beside the data and
memory-mapped from then on. A stored index is used as long as no directory, list or shard has
changed; an image that was overwritten in place, with its name kept, is noticed when it is used
(see `changes`). Shards that `dali_rsb.pack` wrote bring their index along.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.shards import Shards
from dali_rsb.errors import UserError

if TYPE_CHECKING:
    from pipelines.inputs import ImageSource


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The images of a dataset, in a fixed order. Images are numbered from 0 to N - 1.

    Attributes:
        root: absolute folder that the paths are relative to; of shards, the folder they lie in,
            while the paths are those in the shards or those of the files that were packed.
        classes: class names; a label is a position in it.
        labels: int64 [N].
        widths, heights: int32 [N], pixels as stored (no EXIF rotation); with `formats` and `stamps`
            what alone may change, in place, when a file has (see `changes`).
        formats: uint8 [N], `ImageFormat` by content.
        path_bytes: uint8, the relative paths in UTF-8, one after the other.
        path_offsets: int64 [N + 1], path i is `path_bytes[path_offsets[i]:path_offsets[i + 1]]`.
        stamps: int64 [N, 2], mtime in nanoseconds and size in bytes of each file when its header
            was read; None in shards.
        place: folder that the index is stored in, None if it is stored nowhere.
        shards: where the images lie, if they are no files of their own.
        listing: the list file that names the images, if one does.
    """

    root: Path
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    formats: npt.NDArray[np.uint8]
    path_bytes: npt.NDArray[np.uint8]
    path_offsets: npt.NDArray[np.int64]
    stamps: npt.NDArray[np.int64] | None = None
    place: Path | None = None
    shards: Shards | None = None
    listing: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def origin(self) -> Path:
        """The folder or list file that the dataset is known by."""
        return self.listing or self.root

    @functools.cached_property
    def _path_prefix(self) -> bytes:
        return directory_prefix(self.root)

    def path(self, i: int) -> Path:
        """Absolute path of image i; in shards there is no such file, see `name` and `open`."""
        return Path(os.fsdecode(self.path_array(i).tobytes()))

    def name(self, i: int) -> str:
        """What messages call image i: its path, or that of its shard and its own in there."""
        if self.shards is None:
            return str(self.path(i))
        return f"{self.shards.path(i)}:{self.path(i).relative_to(self.root)}"

    def open(self, i: int) -> BinaryIO:
        """Open the encoded image i.

        Raises:
            OSError: the file cannot be opened.
            UserError: the shard cannot be opened.
        """
        if self.shards is None:
            return self.path(i).open("rb")
        return io.BytesIO(self.shards.views(np.array([i]))[0].tobytes())

    def stamp(self, i: int) -> str:
        """Text that changes when image i does: its name, and time and size of its file.

        Raises:
            OSError: the file is gone.
        """
        status = (self.path(i) if self.shards is None else self.shards.path(i)).stat()
        return f"{self.name(i)}\n{status.st_mtime_ns}\n{status.st_size}"

    @property
    def image_source(self) -> ImageSource:
        """Which of a graph's image inputs `image_arrays` are for."""
        return "path" if self.shards is None else "encoded"

    def image_arrays(self, indices: npt.NDArray[np.integer[Any]]) -> list[npt.NDArray[np.uint8]]:
        """What a graph's image input takes: `path_arrays`, or bytes of shards, read-only.

        Raises:
            UserError: a shard cannot be opened.
        """
        return self.path_arrays(indices) if self.shards is None else self.shards.views(indices)

    def image_inputs(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
        """A graph's inputs for images: `image_arrays`, and the size that each header must state.

        Raises:
            UserError: a shard cannot be opened.
        """
        size = np.full((len(indices), 3), 3, np.int32)  # height, width, channels
        size[:, 0], size[:, 1] = self.heights[indices], self.widths[indices]
        return {self.image_source: self.image_arrays(indices), "size": size}

    def path_array(self, i: int) -> npt.NDArray[np.uint8]:
        """Absolute path of image i as uint8 [num_bytes], read-only: DALI's `fn.io.file.read`."""
        return self.path_arrays(np.array([i]))[0]

    def path_arrays(self, indices: npt.NDArray[np.integer[Any]]) -> list[npt.NDArray[np.uint8]]:
        """`path_array` of each index."""
        return [np.frombuffer(path, np.uint8) for path in self.path_strings(indices)]

    def path_strings(self, indices: npt.NDArray[np.integer[Any]]) -> list[bytes]:
        """Absolute path of each image."""
        starts, ends = self.path_offsets[indices].tolist(), self.path_offsets[indices + 1].tolist()
        prefix, names = self._path_prefix, self.path_bytes
        return [
            prefix + names[start:end].tobytes() for start, end in zip(starts, ends, strict=True)
        ]


def check_same_classes(train: DatasetIndex, val: DatasetIndex) -> None:
    """Raise a `UserError` that names the first difference if two datasets' classes differ."""
    pairs = itertools.zip_longest(train.classes, val.classes)
    for label, (train_class, val_class) in enumerate(pairs):
        if train_class != val_class:
            raise UserError(
                f"class {label} is {train_class or 'missing'} in {train.origin} but "
                f"{val_class or 'missing'} in {val.origin} ({train.num_classes} and "
                f"{val.num_classes} classes): give both the same classes"
            )


def directory_prefix(root: Path) -> bytes:
    """What stands before a relative path to make it absolute."""
    return os.fsencode(root).rstrip(b"/") + b"/"

"""The seam between a dataset's index and where its encoded images lie.

An `ImageStore` gives the images to the loader: files of a folder or list, places in tar shards. A
`DatasetKind` finds them: whether a path is such a dataset, which images are in it, and whether an
index that was stored still holds. A new source of images is one module with both, and an entry in
`kinds.KINDS`; nothing else in the package asks what kind a dataset is.
"""

from __future__ import annotations

import abc
import io
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.image_header import NO_STAMP, ImageFormat, read_header_of_bytes
from dali_rsb.dataset.windows import WindowImages, Windows

if TYPE_CHECKING:
    from typing_extensions import Self

    from dali_rsb.dataset.reading import Reading
    from pipelines.types import ImageSource

Rows: TypeAlias = npt.NDArray[np.integer[Any]]
# Some numbers that change when a file or an image does; none if it is gone.
Stamp: TypeAlias = list[int]


@dataclass(frozen=True, eq=False)
class Keys:
    """The key of each image, one after the other, as arrays that can be memory-mapped.

    A key is the image's path relative to the dataset's root, or what it is called in its container.

    Attributes:
        data: uint8, the keys as bytes of the file system (UTF-8 as a rule).
        offsets: int64 [N + 1], key i is `data[offsets[i]:offsets[i + 1]]`.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[str]) -> Keys:
        encoded = [os.fsencode(name) for name in names]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def all(self) -> list[bytes]:
        """All keys; faster than one by one."""
        data = self.data.tobytes()
        return [data[start:end] for start, end in itertools.pairwise(self.offsets.tolist())]

    def select(self, rows: Rows) -> Keys:
        """The keys of some images."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        return Keys.of(os.fsdecode(self[row]) for row in rows.tolist())


class ImageStore(abc.ABC):
    """The encoded images of a dataset, numbered from 0 to N - 1.

    Several threads call its methods at the same time. A store can be pickled; whoever unpickles it
    opens its files again.

    Attributes:
        kind: name of the `DatasetKind` that restores the store from a stored index.
        has_raw: whether images may be stored as pixels (see `WindowImages.raw`).
        root: absolute folder or file that the keys are relative to.
        keys: what each image is called in there.
    """

    kind: ClassVar[str]
    has_raw: ClassVar[bool] = False
    root: Path
    keys: Keys

    # What the loader takes.

    @property
    def image_source(self) -> ImageSource:
        """Which image input of a DALI pipeline `arrays` is for: "path" or "encoded"."""
        return "encoded"

    @abc.abstractmethod
    def arrays(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The encoded images, or the absolute paths of their files: uint8 [num_bytes] each.

        They are read-only. DALI reads them in place, later: they must stay valid as long as
        someone holds them.

        Raises:
            UserError: a file that holds them cannot be opened.
        """

    def window_images(
        self,
        rows: Rows,
        widths: npt.NDArray[np.integer[Any]],
        heights: npt.NDArray[np.integer[Any]],
        windows: Windows,
        whole: bool = False,
    ) -> WindowImages:
        """Encoded images that hold windows: those of `arrays`, or smaller ones if that is cheaper.

        Their pixels in the windows are the same. Raises as `arrays`.

        Args:
            rows: [B].
            widths, heights: of the images in pixels, [B] each.
            windows: [B], inside the images.
            whole: encoded images are not to be smaller ones.
        """
        sizes = np.stack([heights, widths, np.full(len(rows), 3)], axis=1).astype(np.int32)
        return WindowImages(self.arrays(rows), np.zeros((len(rows), 2), np.int64), sizes)

    # What messages, Pillow, packing and the index take, one image at a time.

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def origin(self) -> Path:
        """The folder or file by which the user knows the dataset."""
        return self.root

    @property
    def repair(self) -> str:
        """What a user can do about an image that cannot be decoded."""
        return "repair or remove it"

    @property
    def num_bytes(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each encoded image, int64 [N]; None if they are not known here."""
        return None

    def name(self, row: int) -> str:
        """What messages call an image, relative to the root."""
        return os.fsdecode(self.keys[row])

    def open(self, row: int) -> BinaryIO:
        """Open an encoded image.

        Raises:
            OSError: it cannot be read.
            UserError: the file that holds it cannot be opened.
        """
        return io.BytesIO(self.arrays(np.array([row]))[0].tobytes())

    def stamped_header(self, row: int) -> tuple[int, int, ImageFormat, int, int]:
        """Width and height in pixels, and format, see `image_header.read_header`; and a stamp.

        That is the file's mtime in nanoseconds and its size in bytes before it was read, `NO_STAMP`
        where an image is no file of its own, or the file is missing.
        """
        return *read_header_of_bytes(self.arrays(np.array([row]))[0]), *NO_STAMP

    def current_stamps(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """The stamps of images' files as they are now, int64 [n, 2]; None if no image is one.

        Raises:
            UserError: a file that holds them can no longer be used.
        """
        return None

    def decoded_before(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which images Pillow has decoded to their end when they were stored: bool [n]."""
        return np.zeros(len(rows), np.bool_)

    @abc.abstractmethod
    def stamp(self, row: int) -> Stamp:
        """The stamp of an image, or of the file that holds it."""

    def claims(self, path: Path) -> bool:
        """Whether a folder of shards at a path would become, or destroy, a part of the dataset."""
        return path.resolve() == self.root.resolve()

    # What the stored index takes.

    @abc.abstractmethod
    def select(self, rows: Rows) -> Self:
        """A store of some of the images."""

    @abc.abstractmethod
    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """What a stored index keeps of it beside the keys: JSON values, and arrays by name."""


class Fingerprint(Protocol):
    """What listing a dataset depended on, to tell later whether it still holds; a dataclass."""

    @property
    def unreadable(self) -> dict[str, Stamp]:
        """The stamp of each image that could not be read, by key; a field."""

    def difference(self, store: ImageStore) -> str | None:
        """What has changed since, in words; None if nothing has."""


@dataclass(frozen=True)
class Contents:
    """The images of a dataset, before their headers are read.

    Attributes:
        store: where they lie.
        labels: int64 [N].
        classes: class names; a label is a position in it.
        fingerprint: makes the fingerprint from the stamps of unreadable images.
        empty: classes whose folders hold no image.
        left_out: number of the entries that were seen and are not among the images, by reason.
    """

    store: ImageStore
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: Callable[[dict[str, Stamp]], Fingerprint]
    empty: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetKind:
    """A way in which datasets lie on a disk.

    Attributes:
        name: stands in stored indices.
        holds: whether the folder or file at a path, which exists, is of this kind. May raise a
            `UserError` where the user has all but meant this kind.
        find: lists a dataset, given its path, whether to show a progress bar, and how it is to be
            read. Raises `UserError` if it cannot be used.
        restore: makes the store from the dataset's path, the keys, the JSON values of
            `ImageStore.saved`, and what loads one of its arrays by name.
        fingerprint: makes the stored fingerprint from its fields.
    """

    name: str
    holds: Callable[[Path], bool]
    find: Callable[[Path, bool, Reading], Contents]
    restore: Callable[
        [Path, Keys, Mapping[str, Any], Callable[[str], npt.NDArray[Any]]], ImageStore
    ]
    fingerprint: Callable[..., Fingerprint]


def file_stamp(path: Path) -> Stamp:
    """`[mtime in ns, size in bytes]` of a file; empty if it has none, as a broken link."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size]

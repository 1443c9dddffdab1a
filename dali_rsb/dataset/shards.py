"""Images inside tar shards in WebDataset's layout: find them, and read their bytes."""

from __future__ import annotations

import collections
import concurrent.futures
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dali_rsb.dataset.classes import checked_names
from dali_rsb.dataset.image_header import NO_STAMP, ImageFormat, read_header_by
from dali_rsb.dataset.label_texts import labels_of_texts
from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.dataset.ordering import path_order
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.shard_choice import ALL, ShardChoice, check_names, choose, is_choice
from dali_rsb.dataset.shard_file import BatchMemory, ShardFile, read_parts
from dali_rsb.dataset.store import (
    Contents,
    DatasetKind,
    ImageStore,
    Keys,
    Rows,
    Stamp,
    file_stamp,
)
from dali_rsb.dataset.tar_samples import list_samples
from dali_rsb.errors import UserError
from dali_rsb.system.files import read_text

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

CLASS_NAMES = "classes.txt"  # beside shards: the name of class i in line i

_NUM_THREADS = 8
_DEFAULT = Reading()


@dataclass(frozen=True, eq=False)
class ShardStore(ImageStore):
    """Images in tar files. Their keys are their paths in there, or before they were packed.

    Attributes:
        root: folder of the shards.
        names: of the shards.
        numbers: int32 [N], the shard of each image, a position in `names`.
        offsets, lengths: int64 [N], the bytes of each image in its shard.
        pattern: which of the folder's shards were asked for.
    """

    root: Path
    keys: Keys
    names: tuple[str, ...]
    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    pattern: str = field(default=ALL, kw_only=True)

    kind: ClassVar[str] = "shards"

    @property
    def choice(self) -> ShardChoice:
        """The shards as the user asked for them."""
        return ShardChoice(self.root, self.pattern)

    @property
    def origin(self) -> Path:
        return self.choice.origin

    def arrays(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The encoded images, uint8 [num_bytes] each.

        Raises:
            UserError: a shard cannot be opened, or read.
        """
        return read_parts(self._memory, list(self.places(rows)))

    def places(self, rows: Rows) -> Iterator[tuple[ShardFile, int, int]]:
        """The shard of each image, and from which byte to which the image lies in it.

        Raises:
            UserError: a shard cannot be opened.
        """
        columns = (self.numbers, self.offsets, self.lengths)
        for number, start, length in zip(
            *(column[rows].tolist() for column in columns), strict=True
        ):
            yield self._files.get(number) or self._open(number), start, start + length

    @property
    def num_bytes(self) -> npt.NDArray[np.int64]:
        return self.lengths

    @property
    def repair(self) -> str:
        return "repair or remove it in the images that were packed, and pack again"

    def shard(self, row: int) -> Path:
        """The tar file of an image."""
        return self.root / self.names[self.numbers[row]]

    def name(self, row: int) -> str:
        return f"{self.names[self.numbers[row]]}:{super().name(row)}"

    def stamped_header(self, row: int) -> tuple[int, int, ImageFormat, int, int]:
        # Of the image's bytes only those of the header are read from the disk.
        ((shard, start, end),) = self.places(np.array([row]))

        def read(num_bytes: int, place: int) -> bytes:
            return shard.read(start + place, min(start + place + num_bytes, end))

        return *read_header_by(read, end - start), *NO_STAMP

    def stamp(self, row: int) -> Stamp:
        return file_stamp(self.shard(row))

    def current_stamps(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """None: a shard that grows or is replaced is not noticed.

        Raises:
            UserError: a shard has become shorter since it was opened.
        """
        for number in np.unique(self.numbers[rows]).tolist():
            (self._files.get(number) or self._open(number)).check_size()
        return None

    def select(self, rows: Rows) -> Self:
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, keys=self.keys.select(rows), **columns)

    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        return {"shards": self.names, "pattern": self.pattern}, {
            name: getattr(self, name) for name in _COLUMNS
        }

    def __getstate__(self) -> dict[str, Any]:
        # Whoever unpickles opens the shards again.
        own = ("_files", "_memory")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    @functools.cached_property
    def _files(self) -> dict[int, ShardFile]:
        return {}

    @functools.cached_property
    def _memory(self) -> BatchMemory:
        return BatchMemory()

    def _open(self, number: int) -> ShardFile:
        path = self.root / self.names[number]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            fix = "restore the shard"
            if error.errno == errno.EMFILE:
                fix = "allow more open files (ulimit -n) or pack larger shards (--shard-size)"
            raise UserError(f"cannot open {path} ({error.strerror}): {fix}") from error
        self._files[number] = ShardFile(path, descriptor)
        return self._files[number]


_COLUMNS = ("numbers", "offsets", "lengths")  # the arrays with a row for each image


@dataclass(frozen=True)
class ShardListing:
    """The images of a folder of shards, with the label of each, sorted by their paths in there."""

    store: ShardStore
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    stamps: dict[str, Stamp]
    left_out: dict[str, int]


@dataclass(frozen=True)
class ShardsFingerprint:
    """What listing a folder of shards depended on, to tell later whether it still holds.

    Attributes:
        stamps: mtime in nanoseconds and size of each shard and of the class names, by file name.
        unreadable: the members that are no readable images, by path; `stamps` tells of their
            changes.
    """

    stamps: dict[str, Stamp]
    unreadable: dict[str, Stamp]

    def difference(self, store: ImageStore) -> str | None:
        """What has changed since, in words; None if nothing has."""
        assert isinstance(store, ShardStore)
        try:
            stamps = _stamps(store.choice)
        except UserError as error:
            return str(error)
        for name in natural_sorted({*stamps, *self.stamps}):
            if stamps.get(name) != self.stamps.get(name):
                return f"{name} was added, removed or changed"
        return None


def holds_shards(path: Path) -> bool:
    """Whether a path is of a shard or a pattern of shards, or a folder where tar files lie and no
    folders that may hold images."""
    if is_choice(path):
        return True
    if not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if not any(name.endswith((".tar", ".tar.gz", ".tgz")) for name in names):
        return False
    return not any(entry.is_dir() for entry in path.iterdir() if not entry.name.startswith("."))


def list_shards(
    choice: ShardChoice, reading: Reading = _DEFAULT, progress: bool = True
) -> ShardListing:
    """Find the images in tar shards that any program wrote; see `tar_samples`.

    A label is a class name or, where all labels are integers, a class number; then `classes.txt`
    beside the shards may name the classes.

    Args:
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: no shards, or of several sets; or as `list_samples`.
    """
    folder, names = choice.folder, choice.names()
    check_names(choice, names)
    if not names:
        raise UserError(f"{choice.origin} stands for no file: give a pattern of shards' names")
    stamps = _stamps(choice)  # before reading: what changes meanwhile makes them differ later
    show = progress and sys.stderr.isatty()
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        listed = pool.map(lambda name: list_samples(folder / name, reading.label_key), names)
        bar = tqdm(listed, "listing", len(names), unit="shard", disable=not show)
        listings = list(bar)
    left_out: collections.Counter[str] = collections.Counter()
    for listing in listings:
        left_out.update(listing.left_out)
    members = [(image, i) for i, listing in enumerate(listings) for image in listing.images]
    if not members:
        raise UserError(
            f"no samples KEY.jpg with KEY.cls in the {len(names)} tar files of {choice.origin}; "
            "write shards with: python -m dali_rsb.pack FOLDER SHARDS"
        )
    order = path_order([image.name for image, _ in members], reading.class_order)
    images, numbers = zip(*(members[i] for i in order), strict=True)
    what = ".cls files" if reading.label_key is None else f"{reading.label_key!r} in .json files"
    texts = [image.label for image in images]
    where = f"the {what} in {choice.origin}"
    classes, labels = labels_of_texts(texts, where, reading.class_order, padded=True)
    dotted = sum(listing.dotted for listing in listings)
    if dotted:
        logger.info(
            "%d images in %s have dots in their keys, which end at the last one here; webdataset "
            "ends a key at the first",
            dotted,
            choice.origin,
        )
    store = ShardStore(
        folder,
        Keys.of(image.name for image in images),
        tuple(names),
        np.array(numbers, np.int32),
        np.array([image.offset for image in images], np.int64),
        np.array([image.size for image in images], np.int64),
        pattern=choice.pattern,
    )
    return ShardListing(store, labels, _named(classes, folder), stamps, dict(left_out))


def _named(classes: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    listing = folder / CLASS_NAMES
    if not listing.exists():
        return classes
    fix = "give it the name of class i in line i, in UTF-8, or remove it"
    if classes != tuple(map(str, range(len(classes)))):
        return classes
    names = checked_names(read_text(listing, fix).rstrip("\r\n").splitlines(), str(listing))
    if len(classes) > len(names):
        raise UserError(
            f"{listing} names {len(names)} classes, but the shards have labels up to "
            f"{len(classes) - 1}: complete or remove it"
        )
    return names


def _stamps(choice: ShardChoice) -> dict[str, Stamp]:
    folder = choice.folder
    stamps = {name: file_stamp(folder / name) for name in choice.names()}
    if (folder / CLASS_NAMES).exists():
        stamps[CLASS_NAMES] = file_stamp(folder / CLASS_NAMES)
    return stamps


def _find(root: Path, progress: bool, reading: Reading) -> Contents:
    found = list_shards(choose(root), reading, progress)
    fingerprint = functools.partial(ShardsFingerprint, found.stamps)
    return Contents(found.store, found.labels, found.classes, fingerprint, left_out=found.left_out)


def _restore(
    root: Path, keys: Keys, meta: Mapping[str, Any], array: Callable[[str], npt.NDArray[Any]]
) -> ShardStore:
    choice = choose(root)
    return ShardStore(
        choice.folder, keys, tuple(meta["shards"]), *map(array, _COLUMNS), pattern=choice.pattern
    )


SHARDS = DatasetKind(
    name=ShardStore.kind,
    holds=holds_shards,
    find=_find,
    restore=_restore,
    fingerprint=ShardsFingerprint,
)

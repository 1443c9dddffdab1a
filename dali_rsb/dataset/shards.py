"""Images inside tar shards in WebDataset's layout: find them, and give their bytes as views of
memory maps."""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import mmap
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dali_rsb.dataset.folder import IMAGE_EXTENSIONS
from dali_rsb.dataset.image_header import ImageFormat, read_header_of_bytes
from dali_rsb.dataset.list_file import labels_of_texts
from dali_rsb.dataset.natural_order import natural_key, natural_sorted
from dali_rsb.dataset.store import (
    Contents,
    DatasetKind,
    ImageStore,
    Keys,
    Rows,
    Stamp,
    file_stamp,
)
from dali_rsb.errors import UserError
from dali_rsb.system.files import read_text

if TYPE_CHECKING:
    from typing_extensions import Self

CLASS_NAMES = "classes.txt"  # beside shards: the name of class i in line i

_NUM_THREADS = 8
_MAX_LABEL_BYTES = 1000  # of a .cls file: a class number or name


@dataclass(frozen=True, eq=False)
class ShardStore(ImageStore):
    """Images in tar files. Their keys are their paths in there, or before they were packed.

    Attributes:
        root: folder of the shards.
        names: of the shards.
        numbers: int32 [N], the shard of each image, a position in `names`.
        offsets, lengths: int64 [N], the bytes of each image in its shard.
    """

    root: Path
    keys: Keys
    names: tuple[str, ...]
    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    kind: ClassVar[str] = "shards"

    def arrays(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The encoded images, uint8 [num_bytes] each: read-only views of the shards' memory maps.

        The kernel is told at once which parts to read, if they are not in memory. Page by page it
        would guess what comes next: at random places that read three times as many bytes and took
        three times as long.

        Raises:
            UserError: a shard cannot be opened.
        """
        views = []
        for shard, start, end in self.places(rows):
            shard.will_need(start, end)
            views.append(shard.data[start:end])
        return views

    def places(self, rows: Rows) -> Iterator[tuple[ShardMap, int, int]]:
        """The shard of each image, and from which byte to which the image lies in it.

        Raises:
            UserError: a shard cannot be opened.
        """
        columns = (self.numbers, self.offsets, self.lengths)
        for number, start, length in zip(
            *(column[rows].tolist() for column in columns), strict=True
        ):
            yield self._maps.get(number) or self._open(number), start, start + length

    @property
    def repair(self) -> str:
        return "repair or remove it in the images that were packed, and pack again"

    def shard(self, row: int) -> Path:
        """The tar file of an image."""
        return self.root / self.names[self.numbers[row]]

    def name(self, row: int) -> str:
        return f"{self.names[self.numbers[row]]}:{super().name(row)}"

    def header(self, row: int) -> tuple[int, int, ImageFormat]:
        # Of the image's bytes only those of the header are read from the disk.
        ((shard, start, end),) = self.places(np.array([row]))
        return read_header_of_bytes(shard.data[start:end])

    def stamp(self, row: int) -> Stamp:
        return file_stamp(self.shard(row))

    def current_stamps(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """None: a shard that grows or is replaced is not noticed.

        Raises:
            UserError: a shard has become shorter than its memory map. To look at what is gone
                would be a bus error.
        """
        for number in np.unique(self.numbers[rows]).tolist():
            shard = self._maps.get(number) or self._open(number)
            if shard.pages.size() < len(shard.data):
                raise UserError(
                    f"{self.root / self.names[number]} has been cut short while in use: restore "
                    "the shard and resume"
                )
        return None

    def select(self, rows: Rows) -> Self:
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, keys=self.keys.select(rows), **columns)

    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        return {"shards": self.names}, {name: getattr(self, name) for name in _COLUMNS}

    def __getstate__(self) -> dict[str, Any]:
        # Whoever unpickles opens the memory maps again.
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    @functools.cached_property
    def _maps(self) -> dict[int, ShardMap]:
        return {}

    def _open(self, number: int) -> ShardMap:
        path = self.root / self.names[number]
        try:
            with path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            fix = "restore the shard"
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                fix = "allow more open files (ulimit -n) or pack larger shards (--shard-size)"
            raise UserError(f"cannot open {path} ({reason}): {fix}") from error
        self._maps[number] = ShardMap(pages, np.frombuffer(pages, np.uint8))
        return self._maps[number]


_COLUMNS = ("numbers", "offsets", "lengths")  # the arrays with a row for each image


@dataclass(frozen=True, eq=False)
class ShardMap:
    """A shard as a memory map, and its bytes as an array: uint8 [num_bytes], read-only."""

    pages: mmap.mmap
    data: npt.NDArray[np.uint8]

    def will_need(self, start: int, end: int) -> None:
        """Have the kernel read some bytes from the disk, if they are not in memory."""
        page_start = start - start % mmap.PAGESIZE
        self.pages.madvise(mmap.MADV_WILLNEED, page_start, end - page_start)


@dataclass(frozen=True)
class ShardListing:
    """The images of a folder of shards, with the label of each, sorted by their paths in there."""

    store: ShardStore
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    stamps: dict[str, Stamp]


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
        stamps = _stamps(store.root)
        for name in natural_sorted({*stamps, *self.stamps}):
            if stamps.get(name) != self.stamps.get(name):
                return f"{name} was added, removed or changed"
        return None


def holds_shards(path: Path) -> bool:
    """Whether tar files lie in a folder, and no folders that may hold images.

    Raises:
        UserError: it is a shard itself.
    """
    if path.suffix == ".tar" and path.is_file():
        raise UserError(f"{path} is one shard: give the folder that holds the shards")
    if not shard_names(path):
        return False
    return not any(entry.is_dir() for entry in path.iterdir() if not entry.name.startswith("."))


def shard_names(folder: Path) -> list[str]:
    """Names of the tar files in a folder, in natural order."""
    names = [path.name for path in folder.glob("*.tar") if not path.name.startswith(".")]
    return natural_sorted(names)


def list_shards(folder: Path, progress: bool = True) -> ShardListing:
    """Find the images in tar shards that any program wrote: KEY.jpg (or .png, ...) and KEY.cls.

    A label is a class name or, where all labels are integers, a class number; then `classes.txt`
    beside the shards may name the classes.

    Args:
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: a shard is no tar file, or an image has no label.
    """
    stamps = _stamps(folder)  # before reading: what changes meanwhile makes them differ later
    names = shard_names(folder)
    show = progress and sys.stderr.isatty()
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        listed = pool.map(_list_shard, [folder / name for name in names])
        bar = tqdm(listed, "listing", len(names), unit="shard", disable=not show)
        members = [(number, *member) for number, found in enumerate(bar) for member in found]
    if not members:
        raise UserError(
            f"no samples KEY.jpg with KEY.cls in the {len(names)} tar files of {folder}; write "
            "shards with: python -m dali_rsb.pack FOLDER SHARDS"
        )
    members.sort(key=lambda member: (natural_key(member[1]), member[1], member[0]))
    numbers, paths, offsets, lengths, texts = zip(*members, strict=True)
    classes, labels = labels_of_texts(texts, f"the .cls files in {folder}")
    store = ShardStore(
        folder,
        Keys.of(paths),
        tuple(names),
        np.array(numbers, np.int32),
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
    )
    return ShardListing(store, labels, _named(classes, folder), stamps)


def _named(classes: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    listing = folder / CLASS_NAMES
    if not listing.exists():
        return classes
    fix = "give it the name of class i in line i, in UTF-8, or remove it"
    names = tuple(read_text(listing, fix).splitlines())
    if classes == tuple(map(str, range(len(classes)))) and len(classes) <= len(names):
        return names
    return classes


def _stamps(folder: Path) -> dict[str, Stamp]:
    stamps = {name: file_stamp(folder / name) for name in shard_names(folder)}
    if (folder / CLASS_NAMES).exists():
        stamps[CLASS_NAMES] = file_stamp(folder / CLASS_NAMES)
    return stamps


def _list_shard(path: Path) -> list[tuple[str, int, int, str]]:
    """Path, offset, length and label text of each image of one shard."""
    images: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, str] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key, extension = f"{folder}/{stem}", f".{extension.lower()}"
                if not member.isreg() or not stem:
                    continue
                if extension == ".cls":
                    text = os.pread(file.fileno(), _MAX_LABEL_BYTES + 1, member.offset_data)
                    texts[key] = _label(text[: member.size], member.name, path)
                elif extension in IMAGE_EXTENSIONS:
                    images.setdefault(key, (member.name, member.offset_data, member.size))
    # Numbers and chains of headers in a damaged file end in a ValueError or RecursionError.
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar file ({error}); restore or remove it"
        ) from error
    for key, (name, _, _) in images.items():
        if not texts.get(key):
            raise UserError(
                f"{name} in {path} has no label: a sample is KEY.jpg (or .png, ...) and KEY.cls"
            )
    return [(*image, texts[key]) for key, image in images.items()]


def _label(text: bytes, name: str, path: Path) -> str:
    label = text.decode("utf-8", "replace").strip()
    if len(text) > _MAX_LABEL_BYTES or not label.isprintable():
        raise UserError(
            f"{name} in {path} holds no label, but more than a line: a .cls file holds a class "
            "number or name"
        )
    return label


def _find(root: Path, progress: bool) -> Contents:
    found = list_shards(root, progress)
    fingerprint = functools.partial(ShardsFingerprint, found.stamps)
    return Contents(found.store, found.labels, found.classes, fingerprint)


def _restore(
    root: Path, keys: Keys, meta: Mapping[str, Any], array: Callable[[str], npt.NDArray[Any]]
) -> ShardStore:
    return ShardStore(root, keys, tuple(meta["shards"]), *map(array, _COLUMNS))


SHARDS = DatasetKind(
    name=ShardStore.kind,
    holds=holds_shards,
    find=_find,
    restore=_restore,
    fingerprint=ShardsFingerprint,
)

"""Images inside tar shards in WebDataset's layout: where each lies, and its bytes as a view of a
memory map."""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import mmap
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dali_rsb.dataset.list_file import labels_of_texts
from dali_rsb.dataset.scan import IMAGE_EXTENSIONS, file_stamp, natural_key, natural_sorted
from dali_rsb.errors import UserError

CLASS_NAMES = "classes.txt"  # beside shards: the name of class i in line i

_NUM_THREADS = 8


@dataclass(frozen=True, eq=False)
class Shards:
    """Where images lie in tar files. Images are numbered from 0 to N - 1.

    Attributes:
        folder: where the shards are.
        names: of the shards.
        numbers: int32 [N], the shard of each image, a position in `names`.
        offsets, lengths: int64 [N], the bytes of each image in its shard.
    """

    folder: Path
    names: tuple[str, ...]
    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def path(self, image: int) -> Path:
        """The shard of an image."""
        return self.folder / self.names[self.numbers[image]]

    def view(self, image: int) -> npt.NDArray[np.uint8]:
        """One of `views`; what is not in memory is read when it is looked at."""
        number, start = int(self.numbers[image]), int(self.offsets[image])
        shard = self._maps.get(number) or self._open(number)
        return shard.data[start : start + int(self.lengths[image])]

    def views(self, images: npt.NDArray[np.integer[Any]]) -> list[npt.NDArray[np.uint8]]:
        """The encoded images, uint8 [num_bytes] each: read-only views of the shards' memory maps.

        The kernel is told at once which parts to read, if they are not in memory. Page by page it
        would guess what comes next: at random places that read three times as many bytes and took
        three times as long.

        Raises:
            UserError: a shard cannot be opened.
        """
        views = []
        columns = (self.numbers, self.offsets, self.lengths)
        places = zip(*(column[images].tolist() for column in columns), strict=True)
        for number, start, length in places:
            shard = self._maps.get(number) or self._open(number)
            page_start = start - start % mmap.PAGESIZE
            shard.pages.madvise(mmap.MADV_WILLNEED, page_start, start + length - page_start)
            views.append(shard.data[start : start + length])
        return views

    def check_lengths(self, images: npt.NDArray[np.integer[Any]]) -> None:
        """Raise a `UserError` if a shard of these images has become shorter than its memory map.

        To look at what is gone would be a bus error.
        """
        for number in np.unique(self.numbers[images]).tolist():
            shard = self._maps.get(number) or self._open(number)
            if shard.pages.size() < len(shard.data):
                raise UserError(
                    f"{self.folder / self.names[number]} has been cut short while in use: restore "
                    "the shard and resume"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps are opened anew by whoever unpickles.
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    @functools.cached_property
    def _maps(self) -> dict[int, _Map]:
        return {}

    def _open(self, number: int) -> _Map:
        path = self.folder / self.names[number]
        try:
            with path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            mend = "restore the shard"
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                mend = "allow more open files (ulimit -n) or pack larger shards (--shard-size)"
            raise UserError(f"cannot open {path} ({reason}): {mend}") from error
        self._maps[number] = _Map(pages, np.frombuffer(pages, np.uint8))
        return self._maps[number]


@dataclass(frozen=True, eq=False)
class _Map:
    pages: mmap.mmap
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ShardListing:
    """The images of a folder of shards, with the label of each, sorted by their paths in there."""

    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    shards: Shards
    stamps: dict[str, list[int]]


@dataclass(frozen=True)
class ShardsFingerprint:
    """What listing a folder of shards depended on, to tell later whether it still holds.

    Attributes:
        stamps: mtime in nanoseconds and size of each shard and of the class names, by file name.
        unreadable: the members that are no readable images, by path; their values mean nothing.
    """

    stamps: dict[str, list[int]]
    unreadable: dict[str, list[int]]

    def difference(self, folder: Path) -> str | None:
        """What has changed since, in words; None if nothing has."""
        stamps = _stamps(folder)
        for name in natural_sorted(list({*stamps, *self.stamps})):
            if stamps.get(name) != self.stamps.get(name):
                return f"{name} was added, removed or changed"
        return None


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
    shards = Shards(
        folder,
        tuple(names),
        np.array(numbers, np.int32),
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
    )
    return ShardListing(list(paths), labels, _named(classes, folder), shards, stamps)


def _named(classes: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    listing = folder / CLASS_NAMES
    if not listing.is_file():
        return classes
    names = tuple(listing.read_text(encoding="utf-8").splitlines())
    if classes == tuple(map(str, range(len(classes)))) and len(classes) <= len(names):
        return names
    return classes


def _stamps(folder: Path) -> dict[str, list[int]]:
    stamps = {name: file_stamp(folder / name) for name in shard_names(folder)}
    if (folder / CLASS_NAMES).is_file():
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
                    text = os.pread(file.fileno(), member.size, member.offset_data)
                    texts[key] = text.decode("utf-8", "replace").strip()
                elif extension in IMAGE_EXTENSIONS:
                    images.setdefault(key, (member.name, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar file ({error}); restore or remove it"
        ) from error
    for key, (name, _, _) in images.items():
        if not texts.get(key):
            raise UserError(
                f"{name} in {path} has no label: a sample is KEY.jpg (or .png, ...) and KEY.cls"
            )
    return [(*image, texts[key]) for key, image in images.items()]

"""Folders of class folders: find their images in timm's order, and notice when they change."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.file_store import FileStore, changed_since_unreadable
from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.dataset.store import Contents, DatasetKind, ImageStore, Keys, Stamp
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
)

_NUM_THREADS = 32  # they wait for the file system
# Ticks of the clock behind mtime are 1 to 10 ms apart on Linux.
_MTIME_TICK_S = 0.02


@dataclass(frozen=True, eq=False)
class FolderStore(FileStore):
    """The image files of a folder of class folders."""

    kind: ClassVar[str] = "folder"

    def claims(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())


@dataclass(frozen=True)
class FolderFingerprint:
    """What a scan depended on, to tell later whether it still holds.

    Attributes:
        root_entries: names of the class folders (and images) that lie directly in the root. They
            stand for its mtime, which also changes with files that do not matter here.
        directory_mtime_ns: mtime of each other directory, by path relative to the root.
        unreadable: mtime in nanoseconds and size in bytes of each image that could not be read, by
            relative path: one that is repaired in place is noticed.
    """

    root_entries: list[str]
    directory_mtime_ns: dict[str, int]
    unreadable: dict[str, Stamp]

    def difference(self, store: ImageStore) -> str | None:
        """What has changed under the store's root since, in words; None if nothing has."""
        root = store.root
        try:
            if self.root_entries != _root_entries(*_list_directory(root)):
                return "class folders were added, removed or renamed"
        except OSError as error:
            return f"the folder cannot be listed ({error.strerror})"
        for directory, mtime_ns in self.directory_mtime_ns.items():
            try:
                if (root / directory).stat().st_mtime_ns != mtime_ns:
                    return f"folder {directory} has changed"
            except OSError:
                return f"folder {directory} is gone"
        return changed_since_unreadable(root, self.unreadable)


@dataclass(frozen=True)
class FolderListing:
    """The images under a root: `paths` relative to it, with the label of each."""

    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root_entries: list[str]
    directory_mtime_ns: dict[str, int]


def list_images(root: Path) -> FolderListing:
    """Find all images under `root`, their classes and the order of both, as timm's folder reader.

    An image's class is the name of the folder it lies in. Symbolic links are followed, except into
    a directory that contains the link. Hidden files and folders are skipped.

    Raises:
        UserError: no class folders, no images, images outside class folders, class folders
            without images, or a folder that cannot be listed.
    """
    directories = _walk(root)
    top = directories.pop("")
    _check_layout(root, top, directories)

    folders = [path for path, directory in directories.items() if directory.images]
    classes = natural_sorted({_last_name(path) for path in folders})
    if len(classes) < len(folders):
        _warn_of_merged_folders(root, folders)
    label_of_class = {name: label for label, name in enumerate(classes)}
    label_of_folder = {path: label_of_class[_last_name(path)] for path in folders}
    paths = natural_sorted(
        [f"{folder}/{image}" for folder in folders for image in directories[folder].images]
    )
    labels = np.fromiter(
        (label_of_folder[path.rpartition("/")[0]] for path in paths), np.int64, len(paths)
    )
    return FolderListing(
        paths=paths,
        labels=labels,
        classes=tuple(classes),
        root_entries=_root_entries(top.subdirectories, top.images),
        directory_mtime_ns={path: directory.mtime_ns for path, directory in directories.items()},
    )


@dataclass(frozen=True)
class _Directory:
    mtime_ns: int
    chain: frozenset[tuple[int, int]]  # device and inode of it and of the directories around it
    subdirectories: list[str]
    images: list[str]


def _walk(root: Path) -> dict[str, _Directory]:
    """List the tree level by level, by path relative to the root ("" is the root itself)."""
    found: dict[str, _Directory] = {}

    def visit(task: tuple[str, frozenset[tuple[int, int]]]) -> _Directory | None:
        return _visit(root / task[0], task[1])

    level: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        while level:
            next_level = []
            for (path, _), directory in zip(level, pool.map(visit, level), strict=True):
                if directory is not None:
                    found[path] = directory
                    for name in directory.subdirectories:
                        child = f"{path}/{name}" if path else name
                        next_level.append((child, directory.chain))
            level = next_level
    return found


def _visit(path: Path, chain: frozenset[tuple[int, int]]) -> _Directory | None:
    """List one directory; None if a symbolic link has led back to a directory around it."""
    try:
        status = path.stat()
        if (status.st_dev, status.st_ino) in chain:
            return None
        if 0 <= time.time() - status.st_mtime < _MTIME_TICK_S:
            # A change right after the listing would leave the same mtime: let its tick pass.
            time.sleep(_MTIME_TICK_S)
            status = path.stat()
        # The mtime is read first, so that what changes during the listing makes it differ later.
        subdirectories, images = _list_directory(path)
    except OSError as error:
        raise UserError(f"cannot list {path}: {error.strerror}; make it readable") from error
    chain = chain | {(status.st_dev, status.st_ino)}
    return _Directory(status.st_mtime_ns, chain, subdirectories, images)


def _list_directory(path: Path) -> tuple[list[str], list[str]]:
    """Names of the subdirectories and of the images in a directory, hidden ones left out."""
    subdirectories, images = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_directory(entry):
                subdirectories.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                images.append(entry.name)
    return subdirectories, images


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _root_entries(subdirectories: list[str], images: list[str]) -> list[str]:
    return sorted([*subdirectories, *images])


def _last_name(path: str) -> str:
    return path.rpartition("/")[2]


def _warn_of_merged_folders(root: Path, folders: list[str]) -> None:
    folders_of_class: dict[str, list[str]] = {}
    for path in natural_sorted(folders):
        folders_of_class.setdefault(_last_name(path), []).append(path)
    several = [paths for paths in folders_of_class.values() if len(paths) > 1]
    logger.warning(
        "%d class names occur in more than one folder of %s and count as one class each, "
        "the first in %s and %s",
        len(several),
        root,
        several[0][0],
        several[0][1],
    )


def _check_layout(root: Path, top: _Directory, directories: Mapping[str, _Directory]) -> None:
    layout = f"expected class folders: {root}/CLASS/IMAGE.jpg"
    if top.images:
        raise UserError(f"{len(top.images)} images lie directly in {root}; {layout}")
    if not top.subdirectories:
        raise UserError(f"{root} has no class folders; {layout}")
    if not any(directory.images for directory in directories.values()):
        extensions = " ".join(IMAGE_EXTENSIONS)
        raise UserError(f"no images ({extensions}) in the folders of {root}; {layout}")
    empty = natural_sorted(
        [
            path
            for path, directory in directories.items()
            if not directory.images and not directory.subdirectories
        ]
    )
    if empty:
        names = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise UserError(
            f"{len(empty)} class folders without images in {root}: {names}; "
            "put their images there or remove them"
        )


def _find(root: Path, progress: bool) -> Contents:
    listing = list_images(root)
    fingerprint = functools.partial(
        FolderFingerprint, listing.root_entries, listing.directory_mtime_ns
    )
    store = FolderStore(root, Keys.of(listing.paths))
    return Contents(store, listing.labels, listing.classes, fingerprint)


def _restore(
    root: Path, keys: Keys, meta: Mapping[str, Any], array: Callable[[str], npt.NDArray[Any]]
) -> FolderStore:
    return FolderStore(root, keys)


FOLDER = DatasetKind(
    name=FolderStore.kind,
    holds=Path.is_dir,
    find=_find,
    restore=_restore,
    fingerprint=FolderFingerprint,
)

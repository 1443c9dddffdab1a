"""Find the images of a class-folder tree in timm's order, and read their headers in parallel."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

Image = TypeVar("Image")

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

# Ticks of the clock behind mtime are 1 to 10 ms apart on Linux.
_MTIME_TICK_S = 0.02
# Threads, though the parsing holds the interpreter lock: it takes 8 us an image, so that ImageNet's
# headers are read in 10 s when cached; otherwise the time goes into waiting for the file system.
_NUM_THREADS = 32
_IMAGES_PER_TASK = 64

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Fingerprint:
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
    unreadable: dict[str, list[int]]

    def difference(self, root: Path) -> str | None:
        """What has changed under `root` since, in words; None if nothing has."""
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
        for image, stamp in self.unreadable.items():
            if file_stamp(root / image) != stamp:
                return f"{image}, which could not be read, has changed"
        return None


@dataclass(frozen=True)
class FolderListing:
    """The images under a root: `paths` relative to it, with the label of each."""

    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root_entries: list[str]
    directory_mtime_ns: dict[str, int]


def natural_key(name: str) -> list[str | int]:
    """Sorting key under which n2 precedes n10 and upper case equals lower case, as timm sorts."""
    parts: list[str | int] = list(_DIGITS.split(name.lower()))
    parts[1::2] = map(int, parts[1::2])
    return parts


def natural_sorted(names: set[str] | list[str]) -> list[str]:
    """Sort by `natural_key`, equal keys (A and a) by code point; timm leaves those to chance."""
    return sorted(sorted(names), key=natural_key)


def file_stamp(path: Path) -> list[int]:
    """`[mtime in ns, size in bytes]` of a file; empty if it has none, as a broken link."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size]


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


def read_headers(
    images: Sequence[Image],
    num_workers: int | None,
    progress: bool,
    read: Callable[[Image], tuple[int, ...]],
) -> npt.NDArray[np.int64]:
    """Read the headers of images, in parallel.

    Args:
        images: what `read` takes: paths, or bytes of shards.
        num_workers: threads, 32 by default.
        progress: show a progress bar if stderr is a terminal.
        read: `image_header.read_stamped_header` or `read_header_of_bytes`.

    Returns:
        int64 [N, 5 or 3]: what `read` gives of each image.
    """
    tasks = [
        images[start : start + _IMAGES_PER_TASK]
        for start in range(0, len(images), _IMAGES_PER_TASK)
    ]

    def read_task(task: Sequence[Image]) -> npt.NDArray[np.int64]:
        return np.array([read(image) for image in task], np.int64)

    show = progress and sys.stderr.isatty()
    with (
        concurrent.futures.ThreadPoolExecutor(num_workers or _NUM_THREADS) as pool,
        tqdm(total=len(images), desc="indexing", unit="img", disable=not show) as bar,
    ):
        rows = []
        for task_rows in pool.map(read_task, tasks):
            rows.append(task_rows)
            bar.update(len(task_rows))
    return np.concatenate(rows)


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

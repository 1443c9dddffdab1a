"""Folders of class folders: find their images, as ImageFolder or timm, and notice changes."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.classes import shown, some
from dali_rsb.dataset.file_store import FileStore, changed_since_unreadable
from dali_rsb.dataset.image_names import extension_of, image_extensions, is_image_name
from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.dataset.ordering import ordered_names, path_order
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.store import Contents, DatasetKind, ImageStore, Keys, Stamp
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

_DEFAULT = Reading()
_OUR_SUFFIX = ".dali_rsb_index"  # of a stored index, which may hold converted images
# What people call a folder of images of all classes: Tiny-ImageNet's val/images, among others.
_NO_CLASSES = frozenset(["images", "image", "imgs", "img", "pictures", "photos", "jpegs", "data"])

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
            if self.root_entries != _root_entries(*_list_directory(root)[:2]):
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
    """The images under a root: `paths` relative to it, with the label of each.

    Attributes:
        empty: classes whose folders hold no image.
        left_out: number of the entries that are no images by name, or hidden, by reason.
    """

    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    empty: tuple[str, ...]
    left_out: dict[str, int]
    root_entries: list[str]
    directory_mtime_ns: dict[str, int]


def list_images(root: Path, reading: Reading = _DEFAULT) -> FolderListing:
    """Find all images under `root` and their classes, in the order of ImageFolder or of timm.

    An image's class is the name of the folder it lies in. In nested folders ImageFolder takes the
    top one and timm the innermost: `reading.class_level` says which. Symbolic links are followed,
    except into a directory that contains the link. Hidden files are images like others, as for
    both; hidden folders hold none, or are refused.

    Raises:
        UserError: no class folders, no images, images outside class folders or in hidden ones,
            nested folders of which nothing says which one is the class, or a folder that cannot be
            listed.
    """
    directories = _walk(root)
    top = directories.pop("")
    _check_layout(root, top, directories)

    folders = [path for path, directory in directories.items() if directory.images]
    _check_level(root, folders, reading)
    class_of = _last_name if reading.class_level == "leaf" else _first_name
    names = {class_of(path) for path in folders}
    empty = _without_images(top, directories, reading) - names
    classes = ordered_names(names | empty, reading.class_order)
    if reading.class_level == "leaf" and len(names) < len(folders):
        _warn_of_merged_folders(root, folders)
    label_of_class = {name: label for label, name in enumerate(classes)}
    label_of_folder = {path: label_of_class[class_of(path)] for path in folders}
    paths = [f"{folder}/{image}" for folder in folders for image in directories[folder].images]
    paths = [paths[i] for i in path_order(paths, reading.class_order)]
    labels = np.fromiter(
        (label_of_folder[path.rpartition("/")[0]] for path in paths), np.int64, len(paths)
    )
    left_out = collections.Counter(top.left_out)
    left_out["hidden"] += len(top.images)  # in no class; those that are not hidden are refused
    for directory in directories.values():
        left_out.update(directory.left_out)
    return FolderListing(
        paths=paths,
        labels=labels,
        classes=tuple(classes),
        empty=tuple(ordered_names(empty, reading.class_order)),
        left_out=dict(+left_out),
        root_entries=_root_entries(top.subdirectories, top.images),
        directory_mtime_ns={path: directory.mtime_ns for path, directory in directories.items()},
    )


def _without_images(
    top: _Directory, directories: Mapping[str, _Directory], reading: Reading
) -> set[str]:
    """Classes by their folders alone: top ones, or innermost ones, that hold nothing."""
    if reading.class_level != "leaf":
        return set(top.subdirectories)
    return {
        _last_name(path)
        for path, directory in directories.items()
        if not directory.images and not directory.subdirectories
    }


@dataclass(frozen=True)
class _Directory:
    mtime_ns: int
    chain: frozenset[tuple[int, int]]  # device and inode of it and of the directories around it
    subdirectories: list[str]
    images: list[str]
    hidden: list[str]  # folders
    left_out: dict[str, int]


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
        entries = _list_directory(path)
    except OSError as error:
        raise UserError(f"cannot list {path}: {error.strerror}; make it readable") from error
    chain = chain | {(status.st_dev, status.st_ino)}
    return _Directory(status.st_mtime_ns, chain, *entries)


def _list_directory(path: Path) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """Names of the subdirectories, of the images and of the hidden subdirectories in a directory,
    and what else it holds."""
    subdirectories, images, hidden = [], [], []
    left_out: collections.Counter[str] = collections.Counter()
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            is_hidden = name.startswith(".")
            if _is_directory(entry):
                if not is_hidden:
                    subdirectories.append(name)
                elif not name.endswith(_OUR_SUFFIX):
                    hidden.append(name)
                    left_out["hidden"] += 1
            elif is_image_name(name):
                images.append(name)
            else:
                left_out["hidden" if is_hidden else extension_of(name) or "no extension"] += 1
    return subdirectories, images, hidden, left_out


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _root_entries(subdirectories: list[str], images: list[str]) -> list[str]:
    return sorted([*subdirectories, *_visible(images)])


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _last_name(path: str) -> str:
    return path.rpartition("/")[2]


def _first_name(path: str) -> str:
    return path.partition("/")[0]


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
    outside = len(_visible(top.images))
    if outside:
        raise UserError(f"{outside} images lie directly in {root}; {layout}")
    if not top.subdirectories:
        raise UserError(f"{root} has no class folders; {layout}")
    if not any(directory.images for directory in directories.values()):
        raise UserError(
            f"no images in the folders of {root}, by the extensions that Pillow reads (.jpg, .png, "
            f"...); {layout}"
        )
    for path, directory in {"": top, **directories}.items():
        # ImageFolder takes it for a class, or its images for those of the class around it: the
        # number of every later class, or image, would differ.
        for name in sorted(directory.hidden):
            if _holds_images(root / path / name):
                raise UserError(
                    f"the hidden folder {shown(name)} in {root / path} holds images, which "
                    "ImageFolder takes for some of the dataset: move it elsewhere, or give it a "
                    "name without the dot"
                )


def _holds_images(path: Path) -> bool:
    """Whether ImageFolder would find an image below a folder, hidden or not."""
    extensions, seen = tuple(image_extensions()), set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        if any(name.lower().endswith(extensions) for name in names):
            return True
        real = os.path.realpath(folder)
        if real in seen:  # a link has led back
            subfolders.clear()
        seen.add(real)
    return False


def _check_level(root: Path, folders: Sequence[str], reading: Reading) -> None:
    """Refuse folders from whose names the class does not follow."""
    nested = [path for path in folders if "/" in path]
    tops = ordered_names({_first_name(path) for path in folders}, "plain")
    leaves = ordered_names({_last_name(path) for path in folders}, "plain")
    if reading.class_level == "leaf" and len(leaves) == 1 < len(tops) and reading.classes is None:
        raise UserError(
            f"all images of {shown(str(root), 80)} lie in folders named {leaves[0]}: set "
            f"class_level (data.class_level, --class-level) to top for {len(tops)} classes "
            f"({some(tops, 2)}), or declare it with data.classes or classes={leaves}"
        )
    if nested and reading.class_level is None:
        ways = [
            f"{level} for {len(names)} classes ({some(names, 2)})"
            for level, names in (("top", tops), ("leaf", leaves))
            if len(names) > 1 or len(tops) == len(leaves)
        ]
        raise UserError(
            f"images of {shown(str(root), 80)} lie in nested folders, such as {shown(nested[0])}: "
            f"set class_level (data.class_level, --class-level) to {', or to '.join(ways)}"
        )
    if len(tops) == 1 and reading.classes is None and tops[0] in _NO_CLASSES:
        (name,) = tops
        raise UserError(
            f"all images of {root} lie in {name}/, which looks like no class: give a list with "
            f"PATH, a tab and LABEL in each line, or declare it with data.classes or "
            f"classes={[name]}"
        )


def _find(root: Path, progress: bool, reading: Reading) -> Contents:
    listing = list_images(root, reading)
    fingerprint = functools.partial(
        FolderFingerprint, listing.root_entries, listing.directory_mtime_ns
    )
    store = FolderStore(root, Keys.of(listing.paths))
    return Contents(
        store, listing.labels, listing.classes, fingerprint, listing.empty, listing.left_out
    )


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

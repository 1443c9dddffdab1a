"""Lists of images: text files with `path<TAB>label` in each line."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.file_store import FileStore, changed_since_unreadable
from dali_rsb.dataset.image_names import is_image_name
from dali_rsb.dataset.label_texts import is_class_number, labels_of_texts, short
from dali_rsb.dataset.ordering import below_common_folder, path_order
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.store import Contents, DatasetKind, ImageStore, Keys, Stamp, file_stamp
from dali_rsb.errors import UserError
from dali_rsb.system.files import read_text
from dali_rsb.system.names import printable

logger = logging.getLogger(__name__)

_FORMAT = "a list of images has PATH, a tab and LABEL in each line"
_MAX_PATH = 80  # characters of the list's path in a message


@dataclass(frozen=True, eq=False)
class ListStore(FileStore):
    """The image files that a list names.

    Attributes:
        listing: the list.
    """

    listing: Path

    kind: ClassVar[str] = "list"

    @property
    def origin(self) -> Path:
        return self.listing

    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        # The root as seen from the list, so that both may move together.
        listed_under = "." if self.root == self.listing.parent else str(self.root)
        return {"listed_under": listed_under}, {}


@dataclass(frozen=True)
class ImageListing:
    """The images that a list names: `paths` relative to `root`, with the label of each."""

    root: Path
    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    stamp: Stamp
    left_out: dict[str, int]


@dataclass(frozen=True)
class ListFingerprint:
    """What reading a list depended on, to tell later whether it still holds.

    Attributes:
        stamp: mtime in nanoseconds and size in bytes of the list.
        unreadable: the same of each image that could not be read, by path relative to the root.
    """

    stamp: Stamp
    unreadable: dict[str, Stamp]

    def difference(self, store: ImageStore) -> str | None:
        """What has changed since, in words; None if nothing has."""
        if file_stamp(store.origin) != self.stamp:
            return "the list has changed"
        return changed_since_unreadable(store.root, self.unreadable)


def read_list(path: Path, reading: Reading) -> ImageListing:
    """Read a list of images: in each line a path, absolute or relative to the list, TAB, a label.

    Labels are class numbers from 0 if all of them are integers, else class names, in the order of
    class folders. The images are in the order of those of a folder too, whatever the order of the
    lines: a list of all images of a folder gives the same epochs as the folder. An image that is
    listed twice counts twice. A first line that names the columns is left out.

    Raises:
        UserError: the list cannot be read, holds no or another kind of line, labels that are no
            class numbers, or an image under two of them.
    """
    stamp = file_stamp(path)  # before reading: what changes meanwhile makes it differ later
    # Names of files may be of any bytes.
    text = read_text(path, _FORMAT, errors="surrogateescape")
    paths, texts = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        image, _, label = line.rpartition("\t")
        image, label = image.removeprefix("./"), label.strip()
        if not image or not label:
            raise UserError(_other_kind_of_line(number, line, path))
        if "\t" in image and not (path.parent / image).is_file():
            raise UserError(
                f"line {number} of {_shown(path)} has three columns, {short(line)!r}; {_FORMAT}: "
                "cut -f1,2 LIST > OTHER keeps the first two"
            )
        paths.append(image)
        texts.append(label)
    if not paths:
        raise UserError(f"{path} is empty; {_FORMAT}")
    if is_image_name(texts[-1]) and not is_image_name(paths[-1]):
        raise UserError(
            f"{_shown(path)} has labels before the paths, such as {short(paths[-1])!r}; {_FORMAT}: "
            "awk -F'\\t' '{print $2 FS $1}' LIST > OTHER turns them round"
        )
    left_out = {}
    if _is_header(path, paths, texts):
        logger.info("line 1 of %s is taken for the columns' names", path)
        del paths[0], texts[0]
        left_out = {"a header line": 1}
    _check_labels_agree(path, paths, texts)
    classes, labels = labels_of_texts(texts, str(path), reading.class_order)
    root, relative = _relative_paths(path.parent, paths)
    order = path_order(below_common_folder(relative), reading.class_order)
    relative = [relative[i] for i in order]
    return ImageListing(root, relative, labels[order], classes, stamp, left_out)


def _shown(path: Path) -> str:
    return printable(path, _MAX_PATH)


def _other_kind_of_line(number: int, line: str, path: Path) -> str:
    """What is wrong with a line that has no tab, or nothing on one side of it."""
    text = f"line {number} of {_shown(path)} is {short(line)!r}; {_FORMAT}"
    if "\t" not in line and re.search(r"\S[ ,]\S", line):
        # The last space or comma of each line becomes a tab.
        text += "; make one: sed -i 's/[ ,]\\([^ ,]*\\)$/\\t\\1/' LIST"
    return text


def _is_header(path: Path, paths: list[str], labels: list[str]) -> bool:
    """Whether the first line names the columns: it is no file, and its label is of its own kind.

    Raises:
        UserError: it may as well be an image that is not there.
    """
    first, others = labels[0], labels[1:]
    if not others or first in others or (path.parent / paths[0]).is_file():
        return False
    if all(map(is_class_number, others)):
        return not is_class_number(first)
    if is_image_name(paths[0]):
        return False  # which is missing
    if is_image_name(paths[1]):
        return True
    raise UserError(
        f"line 1 of {_shown(path)} names no file, {short(paths[0])!r}: remove the line if it names "
        "the columns, else restore the file"
    )


def _check_labels_agree(path: Path, paths: list[str], labels: list[str]) -> None:
    """Refuse an image that is listed under several labels."""
    label_of = dict(zip(paths, labels, strict=True))
    if len(label_of) == len(paths):
        return
    for image, label in zip(paths, labels, strict=True):
        if label_of[image] != label:
            raise UserError(
                f"{_shown(path)} lists {short(image)!r} under the labels {short(label)!r} and "
                f"{short(label_of[image])!r}: keep one of the lines"
            )


def common_root(paths: Sequence[str]) -> Path:
    """The innermost folder that all files lie in; paths are absolute."""
    # All other paths sort between these two, so what these share is common to all.
    return Path(os.path.commonpath([str(Path(path).parent) for path in (min(paths), max(paths))]))


def _relative_paths(folder: Path, paths: list[str]) -> tuple[Path, list[str]]:
    """A root and the paths relative to it; the root is the list's folder if that is possible."""
    if not any(path.startswith("/") for path in paths):
        return folder, paths
    prefix = str(folder).rstrip("/") + "/"
    absolute = [path if path.startswith("/") else prefix + path for path in paths]
    if all(path.startswith(prefix) for path in absolute):
        return folder, [path[len(prefix) :] for path in absolute]
    root = common_root(absolute)
    skip = len(str(root).rstrip("/")) + 1
    return root, [path[skip:] for path in absolute]


def _find(path: Path, progress: bool, reading: Reading) -> Contents:
    listed = read_list(path, reading)
    store = ListStore(listed.root, Keys.of(listed.paths), path)
    fingerprint = functools.partial(ListFingerprint, listed.stamp)
    return Contents(store, listed.labels, listed.classes, fingerprint, left_out=listed.left_out)


def _restore(
    path: Path, keys: Keys, meta: Mapping[str, Any], array: Callable[[str], npt.NDArray[Any]]
) -> ListStore:
    return ListStore(path.parent / meta["listed_under"], keys, path)


LIST = DatasetKind(
    name=ListStore.kind,
    holds=lambda path: not path.is_dir(),
    find=_find,
    restore=_restore,
    fingerprint=ListFingerprint,
)

"""Lists of images: text files with `path<TAB>label` in each line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.scan import file_stamp, natural_key, natural_sorted
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)  # 007 is a name
_MAX_CLASSES = 1_000_000  # a larger label is a mistake, and class names up to it fill the memory


@dataclass(frozen=True)
class ImageListing:
    """The images that a list names: `paths` relative to `root`, with the label of each."""

    root: Path
    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    stamp: list[int]


@dataclass(frozen=True)
class ListFingerprint:
    """What reading a list depended on, to tell later whether it still holds.

    Attributes:
        stamp: mtime in nanoseconds and size in bytes of the list.
        unreadable: the same of each image that could not be read, by path relative to the root.
    """

    stamp: list[int]
    unreadable: dict[str, list[int]]

    def difference(self, listing: Path, root: Path) -> str | None:
        """What has changed since, in words; None if nothing has."""
        if file_stamp(listing) != self.stamp:
            return "the list has changed"
        for image, stamp in self.unreadable.items():
            if file_stamp(root / image) != stamp:
                return f"{image}, which could not be read, has changed"
        return None


def read_list(path: Path) -> ImageListing:
    """Read a list of images: in each line a path, absolute or relative to the list, TAB, a label.

    Labels are class numbers from 0 if all of them are integers, else class names, whose order is
    that of class folders. So is the order of the images, whatever that of the lines: a list of
    all images of a folder gives the same epochs as the folder. An image that is listed twice
    counts twice.

    Raises:
        UserError: a line is none of the above, there is none, or labels are no class numbers.
    """
    stamp = file_stamp(path)  # before reading: what changes meanwhile makes it differ later
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    paths, texts = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        image, _, label = line.rpartition("\t")
        image, label = image.removeprefix("./"), label.strip()
        if not image or not label or "\0" in line:
            raise UserError(
                f"line {number} of {path} is {_short(line)}; a list of images has PATH, a tab and "
                "LABEL in each line"
            )
        paths.append(image)
        texts.append(label)
    if not paths:
        raise UserError(f"{path} is empty; a list of images has PATH, a tab and LABEL in each line")
    classes, labels = labels_of_texts(texts, str(path))
    order = sorted(range(len(paths)), key=paths.__getitem__)
    order.sort(key=lambda i: natural_key(paths[i]))
    root, relative = _relative_paths(path.parent, [paths[i] for i in order])
    return ImageListing(root, relative, labels[order], classes, stamp)


def labels_of_texts(
    texts: Sequence[str], where: str
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Class names, and the label of each text: class numbers if all are integers, else names.

    Args:
        where: what the texts were read from, for messages.

    Raises:
        UserError: numbers below 0 or too large for classes.
    """
    distinct = set(texts)
    if not all(map(_INTEGER.fullmatch, distinct)):
        classes = natural_sorted(distinct)
        values = {name: label for label, name in enumerate(classes)}
    else:
        values = {text: int(text) for text in distinct}
        smallest, largest = min(values.values()), max(values.values())
        if smallest < 0 or largest >= _MAX_CLASSES:
            wrong = smallest if smallest < 0 else largest
            raise UserError(f"label {wrong} in {where} is no class number: count classes from 0")
        if smallest > 0:
            logger.warning(
                "the smallest label in %s is %d: classes are counted from 0", where, smallest
            )
        classes = [str(label) for label in range(largest + 1)]
    return tuple(classes), np.array([values[text] for text in texts], np.int64)


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


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:60] + "...")

"""Ordered lists of class names, and how two of them are joined: by name, or not at all.

A label is a position in such a list. Whoever joins two (training and validation, a checkpoint and
a dataset, a declaration and a folder) maps labels by name; where that is impossible, the message
names the first difference.
"""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.errors import UserError, one_line
from dali_rsb.system.files import read_text

if TYPE_CHECKING:
    from dali_rsb.dataset.index import DatasetIndex

logger = logging.getLogger(__name__)

_MAX_SHOWN = 40  # characters of a class name in a message


@dataclass(frozen=True)
class Join:
    """One list of classes seen from another.

    Attributes:
        positions: int64 [number of own classes], of each in the other list; -1 if it is not there.
        unknown: own classes that the other list lacks.
        missing: classes of the other list that are not among the own.
    """

    positions: npt.NDArray[np.int64]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]


def join_classes(own: Sequence[str], other: Sequence[str]) -> Join:
    """Find each of `own` in `other`, by name."""
    position = {name: label for label, name in enumerate(other)}
    positions = np.array([position.get(name, -1) for name in own], np.int64)
    known = set(own)
    return Join(
        positions,
        tuple(name for name in own if name not in position),
        tuple(name for name in other if name not in known),
    )


def first_difference(own: Sequence[str], other: Sequence[str]) -> tuple[int, str, str] | None:
    """The first label that means another class: it, and what it means in both; None if none does.

    A class that only one list has counts as "missing" in the other.
    """
    pairs = itertools.zip_longest(own, other, fillvalue="missing")
    for label, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            return label, shown(ours), shown(theirs)
    return None


def with_classes(index: DatasetIndex, classes: Sequence[str], whose: str) -> DatasetIndex:
    """The same images with their labels as positions in another list of classes, by name.

    Classes without images are named in a line of the log.

    Args:
        whose: what the list is, for messages, such as "the classes of /images/train".

    Raises:
        UserError: the index has images of a class that the list lacks.
    """
    if tuple(classes) == index.classes and not index.empty:
        return index
    joined = join_classes(index.classes, classes)
    counts = np.bincount(index.labels, minlength=len(index.classes))
    for label in np.flatnonzero(joined.positions < 0).tolist():
        if counts[label]:
            raise UserError(
                f"class {shown(index.classes[label])} of {index.origin} is not among {whose} "
                f"({some(classes)}): name its images' folders or labels after those"
            )
    present = {name for name, count in zip(index.classes, counts, strict=True) if count}
    without = [name for name in classes if name not in present]
    if without:
        logger.warning(
            "%d of %d classes have no image in %s: %s",
            len(without),
            len(classes),
            index.origin,
            some(without),
        )
    labels = joined.positions[index.labels]
    return replace(index, labels=labels, classes=tuple(classes), empty=())


def with_declared(index: DatasetIndex, classes: Sequence[str]) -> DatasetIndex:
    """`with_classes` for names that the user declares: class numbers are positions among them.

    Raises:
        UserError: as `with_classes`.
    """
    numbers = tuple(map(str, range(len(index.classes))))
    if index.classes == numbers and len(numbers) <= len(classes) and "0" not in classes:
        index = replace(index, classes=tuple(classes)[: len(numbers)])
    return with_classes(index, classes, "the classes that are declared")


def check_declared(empty: Sequence[str], origin: Path) -> None:
    """Raise a `UserError` over class folders without images, which nobody has declared."""
    if empty:
        raise UserError(
            f"{len(empty)} class folders without images in {origin}: {some(empty)}; put their "
            "images there, remove them, or declare all classes (data.classes or classes=: names or "
            "a text file)"
        )


def check_same_order(
    trained: Sequence[str], index: DatasetIndex, checkpoint: Path, class_order: str
) -> None:
    """Refuse to go on from a checkpoint whose labels mean other classes than a dataset's.

    Args:
        trained: the checkpoint's classes in their order.
        class_order: the order in which the dataset was read.

    Raises:
        UserError: names the first difference, and the setting that gives the checkpoint's order.
    """
    difference = first_difference(trained, index.classes)
    if difference is None:
        return
    label, theirs, ours = difference
    fix = "resume with the images it was trained on, or start again from model.weights"
    if sorted(trained) == sorted(index.classes):
        fix = "set data.classes to the checkpoint's classes in their order"
        other = {"plain": "natural", "natural": "plain"}[class_order]
        in_other = natural_sorted(trained) if other == "natural" else sorted(trained)
        if list(trained) == in_other:
            fix = f"set data.class_order={other}"
    raise UserError(
        f"class {label} is {theirs} in {checkpoint} but {ours} in {index.origin} "
        f"({len(trained)} and {len(index.classes)} classes): {fix}"
    )


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a text file, class i in line i.

    Raises:
        UserError: it cannot be read, is empty, or a name stands twice.
    """
    fix = "give the name of class i in line i, in UTF-8"
    text = read_text(path, fix, errors="surrogateescape")  # names of folders may be of any bytes
    return checked_names(text.rstrip("\r\n").splitlines(), str(path))


def checked_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names as a user gives them.

    Raises:
        UserError: there are none, one is empty, or one stands twice.
    """
    names = tuple(names)
    wrong = [i for i, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
    if not names or wrong:
        what = f"no name for class {wrong[0]}" if wrong else "no class names"
        raise UserError(f"{where} holds {what}: give the name of class i in place i")
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where} names class {shown(name)} {count} times: give each name once")
    return names


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join(map(shown, names[:limit])) + (", ..." if len(names) > limit else "")


def shown(name: str, limit: int = _MAX_SHOWN) -> str:
    """A name for a message: printable, and not too long."""
    text = one_line(name)
    return text if len(text) <= limit else text[: limit - 3] + "..."

"""Evaluation sets: images with their right answers, and what those are among a model's classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.classes import join_classes, shown, some, with_classes
from dali_rsb.dataset.ground_truth import (
    flat_images,
    open_labelled,
    open_unlabelled,
    validation_number,
)
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.errors import UserError
from dali_rsb.evaluation import imagenet
from dali_rsb.evaluation.predictions import Choice
from dali_rsb.system.names import printable

logger = logging.getLogger(__name__)

_LABEL_FILES = (".txt", ".csv", ".tsv")


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Images to evaluate on.

    Attributes:
        name: for the table.
        index: the images, with classes of their own.
        is_labelled: whether the index's labels mean anything.
        real: ReaL's class numbers of each image, if they are asked for.
    """

    name: str
    index: DatasetIndex
    is_labelled: bool = True
    real: Sequence[Sequence[int]] | None = None
    _asked: dict[tuple[str, ...], Questions] = field(default_factory=dict, init=False, repr=False)

    def questions(self, classes: tuple[str, ...], whose: str) -> Questions:
        """What a model with these classes is asked.

        Args:
            whose: what the classes are, for messages, such as "the classes of best.pt".

        Raises:
            UserError: images of a class that is not among them, or ReaL's labels for others than
                ImageNet's.
        """
        if classes not in self._asked:
            self._asked[classes] = self._ask(classes, whose)
        return self._asked[classes]

    def _ask(self, classes: tuple[str, ...], whose: str) -> Questions:
        labels = np.full(len(self.index), -1, np.int64)
        if self.is_labelled:
            labels = np.asarray(labels_by_name(self.index, classes, whose))
        answers = None
        if self.real is not None:
            if not imagenet.are_imagenets(classes):
                raise UserError(
                    f"ReaL's labels are numbers of ImageNet's 1,000 synsets, and {whose} are "
                    f"others ({some(classes)}): leave --real out"
                )
            label_of = imagenet.labels_of_numbers(classes)
            answers = [frozenset(label_of[number] for number in entry) for entry in self.real]
        present = np.unique(labels)
        is_part = self.is_labelled and len(present) < len(classes)
        return Questions(labels, present if is_part else None, answers)


@dataclass(frozen=True, eq=False)
class Questions:
    """A set's right answers among one model's classes.

    Attributes:
        labels: int64 [N]; -1 where nobody knows them.
        present: int64 [n], the classes that have images, where those are not all.
        answers: ReaL's right classes of each image.
    """

    labels: npt.NDArray[np.int64]
    present: npt.NDArray[np.int64] | None
    answers: Sequence[frozenset[int]] | None

    @property
    def choices(self) -> list[Choice]:
        """Among all classes, and among those that have images where those are not all."""
        choices = [Choice(self.labels)]
        if self.present is not None:
            choices.append(Choice(self.labels, self.present))
        return choices


def labels_by_name(
    index: DatasetIndex, classes: Sequence[str], whose: str
) -> npt.NDArray[np.int64]:
    """The images' labels among a model's classes: int64 [N].

    Classes are joined by their names. Numbers are no names, with one exception that is known:
    where the model's classes are ImageNet's synsets and the set's are the numbers 0 to 999, as in
    ImageNet-V2, a number means the place among the sorted synsets; a line of the log says so.

    Raises:
        UserError: there are images of a class that the model does not have.
    """
    numbers = set(map(str, range(len(classes))))
    if imagenet.are_imagenets(classes) and set(index.classes) == numbers:
        logger.info(
            "classes 0 to 999 of %s are taken for ImageNet's synsets in their sorted order, as "
            "ImageNet-V2 means them",
            index.origin,
        )
        in_order = sorted(classes)
        index = replace(index, classes=tuple(in_order[int(name)] for name in index.classes))
    counts = np.bincount(index.labels, minlength=len(index.classes))
    joined = join_classes(index.classes, classes)
    unknown = [index.classes[i] for i in np.flatnonzero((joined.positions < 0) & (counts > 0))]
    if unknown:
        raise UserError(_refusal(index, unknown, joined.missing, classes, whose))
    return with_classes(index, classes, whose).labels


def _refusal(
    index: DatasetIndex,
    unknown: Sequence[str],
    missing: Sequence[str],
    classes: Sequence[str],
    whose: str,
) -> str:
    """Why a set with images of unknown classes is refused: the first of them, and its fix."""
    name = unknown[0]
    what = f"class {shown(name)} of {printable(index.origin, 70)} is not among {whose}"
    alike = [other for other in classes if other.casefold() == name.casefold()]
    if alike:
        what += f", {shown(alike[0])} is: names differ by case"
    elif len(index.classes) == len(classes):
        what += f", which have {shown(missing[0])} instead"
    else:
        more = f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else ""
        what += f" ({some(classes, 2)}){more}"
    return f"{what}: name its images' folders or labels after those"


def open_set(
    name: str,
    path: Path,
    opened: Callable[[Path], DatasetIndex],
    labels: Path | None = None,
    needs_labels: bool = True,
) -> EvaluationSet:
    """Open one set of images.

    Args:
        path: a dataset, or a flat folder of images.
        opened: opens a dataset with its own classes.
        labels: the classes of a flat folder's images, see `open_labelled`.
        needs_labels: refuse a flat folder without them.

    Raises:
        UserError: it cannot be opened, or an image has no class.
    """
    if labels is not None:
        return EvaluationSet(name, open_labelled(path, labels))
    if not flat_images(path):
        return EvaluationSet(name, opened(path))
    if needs_labels:
        raise UserError(
            f"images lie directly in {printable(path, 100)}, so that no folder names their "
            "classes: give a file that does by --labels FILE (in a suite: beside the folder, with "
            "its name and .txt or .csv)"
        )
    return EvaluationSet(name, open_unlabelled(path), is_labelled=False)


def with_real(images: EvaluationSet, real: Sequence[Sequence[int]]) -> EvaluationSet:
    """The same set with ReaL's labels, by the numbers in the images' names.

    Args:
        real: see `imagenet.read_real`.

    Raises:
        UserError: an image is none of ImageNet's validation images by its name, or no image has a
            label.
    """
    entries = []
    for row in range(len(images.index)):
        name = images.index.store.name(row)
        number = validation_number(name)
        if number is None or not 1 <= number <= len(real):
            raise UserError(
                f"ReaL's labels are of ImageNet's validation images 1 to {len(real)}, and "
                f"{shown(name, 80)} is none by its name (ILSVRC2012_val_00000001.JPEG): leave "
                "--real out"
            )
        entries.append(real[number - 1])
    if not any(entries):
        raise UserError(
            f"ReaL has no label for any image of {printable(images.name, 100)}: leave --real out"
        )
    return replace(images, real=entries)


def find_sets(
    folder: Path,
    opened: Callable[[Path], DatasetIndex],
    real: Sequence[Sequence[int]] | None = None,
) -> list[EvaluationSet]:
    """Every set in a folder, sorted by name: its subfolders.

    A flat one takes its classes from the file beside it that has its name: val/ and val.txt, .csv
    or .tsv. ReaL's labels go to the sets whose images are all named as ImageNet's. An empty
    subfolder is left out, and named in the log.

    Raises:
        UserError: there is no set, or one of them cannot be used.
    """
    fix = "give --suite a folder whose subfolders are sets"
    if not folder.is_dir():
        raise UserError(f"{printable(folder, 200)} is no folder: {fix}")
    sets = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if not any(path.iterdir()):
            logger.warning("%s is empty and left out", path)
            continue
        files = [path.with_name(path.name + suffix) for suffix in _LABEL_FILES]
        labels = next((file for file in files if file.is_file() and flat_images(path)), None)
        found = open_set(path.name, path, opened, labels, needs_labels=real is None)
        names = map(found.index.store.name, range(len(found.index)))
        if real is not None and all(validation_number(name) is not None for name in names):
            found = with_real(found, real)
        if not found.is_labelled and found.real is None:
            open_set(path.name, path, opened)  # says what is missing
        sets.append(found)
    if not sets:
        raise UserError(f"{printable(folder, 200)} has no subfolders with images: {fix}")
    return sets

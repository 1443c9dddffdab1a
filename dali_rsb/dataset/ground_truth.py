"""Images in one flat folder whose classes stand in a file: ImageNet's archive and others like it.

The validation images of ImageNet's archive are 50,000 files in one folder. Their classes come as
the devkit's list of numbers, as Kaggle's CSV file, or as a list of names and synsets.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dali_rsb.dataset.building import index_samples
from dali_rsb.dataset.classes import shown, some
from dali_rsb.dataset.image_names import is_image_name
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.label_texts import labels_of_texts, short
from dali_rsb.errors import UserError
from dali_rsb.system.files import read_text
from dali_rsb.system.names import printable

logger = logging.getLogger(__name__)

_FORMAT = (
    "give lines with FILE and CLASS, Kaggle's LOC_val_solution.csv, or the devkit's "
    "ILSVRC2012_validation_ground_truth.txt"
)
_NUMBERED = re.compile(r"(?:^|[/:])ILSVRC2012_val_([0-9]{8})\.[^/]*$")
_KAGGLE = ("ImageId", "PredictionString")  # whose second column goes on with boxes
_UNKNOWN = ("no class is known",)


def flat_images(folder: Path) -> list[str]:
    """Names of the images that lie directly in a folder, sorted; none for anything else."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if is_image_name(entry.name) and not entry.name.startswith(".") and entry.is_file()
        )


def validation_number(name: str) -> int | None:
    """The number of a validation image of ImageNet by its path, from 1; None for others."""
    numbered = _NUMBERED.search(name)
    return int(numbered[1]) if numbered else None


def open_labelled(folder: Path, labels: Path) -> DatasetIndex:
    """Index the images of a flat folder with the classes that a file states.

    Args:
        labels: in each line a file's name (with its extension or without) and its class, between
            them a tab, a comma or spaces, further columns being left out; or in each line the
            devkit's class number of one image, line i for image i, with meta.mat beside it.

    Raises:
        UserError: the folder holds no images, the file cannot be used, or an image has no class.
    """
    names = flat_images(folder)
    if not names:
        raise UserError(
            f"no images lie directly in {printable(folder, 120)}: --labels is for a flat folder"
        )
    lines = read_text(labels, _FORMAT).splitlines()
    numbers = [line.strip() for line in lines]
    is_devkit = bool(numbers) and all(number.isdecimal() for number in numbers)
    texts = _of_devkit(labels, numbers, names) if is_devkit else _of_table(labels, lines, names)
    without = [name for name, text in zip(names, texts, strict=True) if text is None]
    if without:
        raise UserError(
            f"{len(without)} of {len(names)} images in {printable(folder, 80)} have no class in "
            f"{printable(labels, 80)}, the first is {shown(without[0])}: add or remove them"
        )
    known = [text for text in texts if text is not None]
    classes, values = labels_of_texts(known, str(labels), "plain")
    paths = [folder / name for name in names]
    return index_samples(list(zip(paths, values.tolist(), strict=True)), classes)


def open_unlabelled(folder: Path) -> DatasetIndex:
    """Index the images of a flat folder whose classes nobody states: all have one and the same."""
    return index_samples([(folder / name, 0) for name in flat_images(folder)], _UNKNOWN)


def _of_table(path: Path, lines: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """The class of each image by a file with two columns or more."""
    rows = _columns(path, [line for line in lines if line.strip()])
    takes_first_word = tuple(rows[0]) == _KAGGLE
    if _is_header(rows, names):
        logger.info("line 1 of %s is taken for the columns' names", path)
        rows = rows[1:]
    class_of: dict[str, str] = {}
    for image, text in rows:
        label = text.split()[0] if takes_first_word and text.split() else text
        if not image or not label:
            raise UserError(f"{printable(path, 80)} has a line without file or class: {_FORMAT}")
        name = image.rpartition("/")[2]
        if class_of.setdefault(name, label) != label:
            raise UserError(
                f"{printable(path, 120)} gives {shown(name)} two classes, "
                f"{some([class_of[name], label])}: leave one"
            )
    stems = [name.rpartition(".")[0] for name in names]
    _tell_of_others(path, class_of.keys() - {*names, *stems})
    return [class_of.get(name, class_of.get(stem)) for name, stem in zip(names, stems, strict=True)]


def _columns(path: Path, lines: Sequence[str]) -> list[tuple[str, str]]:
    """The first two columns of a table, by tabs, commas or spaces, as its first line has them."""
    if not lines:
        raise UserError(f"{printable(path, 100)} is empty: {_FORMAT}")
    rows: list[list[str]]
    if "\t" in lines[0]:
        rows = [line.split("\t") for line in lines]
    elif "," in lines[0]:
        try:
            rows = list(csv.reader(lines))
        except csv.Error as error:
            raise UserError(f"{printable(path, 80)} is no CSV file ({error}): {_FORMAT}") from error
    else:
        rows = [line.split(maxsplit=1) for line in lines]
    for line, row in zip(lines, rows, strict=False):
        if len(row) < 2:
            raise UserError(f"{printable(path, 80)} has a line {short(line)!r}: {_FORMAT}")
    return [(row[0].strip(), row[1].strip()) for row in rows]


def _is_header(rows: Sequence[tuple[str, str]], names: Sequence[str]) -> bool:
    """Whether the first row names the columns: no image by name, a class of its own."""
    image, label = rows[0]
    if is_image_name(image) or len(rows) < 2 or label in {label for _, label in rows[1:]}:
        return False
    return image not in {name.rpartition(".")[0] for name in names}


def _of_devkit(path: Path, numbers: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """The synset of each image by the devkit's list: line i is of image i."""
    synset_of = _devkit_synsets(path.parent / "meta.mat")
    wrong = [i for i, number in enumerate(numbers) if int(number) not in synset_of]
    if wrong:
        raise UserError(
            f"line {wrong[0] + 1} of {printable(path, 80)} is {short(numbers[wrong[0]])}, which "
            "meta.mat beside it has no synset for: take both from one devkit"
        )
    texts: list[str | None] = []
    for name in names:
        number = validation_number(name)
        if number is None:
            raise UserError(
                f"{printable(path, 60)} numbers the images, and {shown(name)} has no number: name "
                "the files as in ImageNet's archive (ILSVRC2012_val_00000001.JPEG), or give lines "
                "with FILE and CLASS"
            )
        known = 1 <= number <= len(numbers)
        texts.append(synset_of[int(numbers[number - 1])] if known else None)
    if len(numbers) > len(names):
        logger.info("%s is of %d images, %d are there", path, len(numbers), len(names))
    return texts


def _devkit_synsets(path: Path) -> dict[int, str]:
    """The synsets of the devkit's class numbers, the leaves of its tree alone."""
    if not path.is_file():
        raise UserError(
            f"{printable(path, 80)} does not exist: the devkit's ground truth has class numbers of "
            "its own; put the devkit's meta.mat beside it, or give lines with FILE and SYNSET"
        )
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(
            f"reading {printable(path, 80)} needs scipy; run: pip install scipy, or give lines "
            "with FILE and SYNSET"
        ) from error
    try:
        synsets: Any = loadmat(str(path), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in np.atleast_1d(synsets)
            if int(row["num_children"]) == 0
        }
    # scipy reports a damaged or foreign file by several exception types.
    except Exception as error:
        raise UserError(
            f"{printable(path, 80)} is no meta.mat of ImageNet's devkit: take it from "
            "ILSVRC2012_devkit_t12.tar.gz"
        ) from error


def _tell_of_others(path: Path, others: set[str]) -> None:
    if others:
        logger.info("%s also names %d files that are not there", path, len(others))

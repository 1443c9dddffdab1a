"""Opens the images of a run: those of the configuration's section `data`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dali_rsb import config as cfg
from dali_rsb.dataset import DatasetIndex, Reading, open_index
from dali_rsb.dataset.classes import with_classes
from dali_rsb.dataset.digits import write_digits
from dali_rsb.dataset.image_list import find_excluded, read_names
from dali_rsb.dataset.opening import open_as_found
from dali_rsb.dataset.overlap import check_files_apart, check_paths_apart
from dali_rsb.dataset.splitting import split_index
from dali_rsb.errors import UserError
from dali_rsb.run.processes import Processes
from dali_rsb.system.names import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """Training and validation images, with the same classes.

    Attributes:
        split: for the log, how one dataset was split into both; None where it was not.
    """

    train: DatasetIndex
    val: DatasetIndex
    split: str | None = None


def open_datasets(data: cfg.Data, num_classes: int | None, processes: Processes) -> Datasets:
    """Open (or scan) the two folders, shards or lists; rank 0 scans while the others wait.

    The validation images get the labels of the training classes, by name; classes without
    validation images are named in the log. With `data.val_fraction` there is one, which is split.

    Args:
        num_classes: the model's outputs, None where they are still to be counted.

    Raises:
        UserError: a folder is missing, empty or not in ImageNet's layout, validation has a class
            that training lacks, they share files, training has one class alone, or the class
            counts and model.num_classes disagree.
    """
    if data.val_fraction is not None:
        with processes.first_goes_ahead("indexing the images"):
            train = open_index(_folder(data, "train"), data.index, reading=reading_of(data))
        _check_several_classes(train)
        if num_classes is not None:
            check_num_classes(train, num_classes)
        return _split(_without_excluded(data, train)[0], data.val_fraction)
    train_path, val_path = _folder(data, "train"), _folder(data, "val")
    if not data.allow_overlap:
        check_paths_apart(train_path, val_path)
    reading = reading_of(data)
    with processes.first_goes_ahead("indexing the images"):
        train = open_index(train_path, data.index, reading=reading)
        of_train = reading.joined_to(train.classes, f"the classes of {train.origin}")
        val = open_index(val_path, data.index, reading=of_train)
    if not data.allow_overlap:
        check_files_apart(train, val)
    _check_several_classes(train)
    if num_classes is not None:
        check_num_classes(train, num_classes)
    train, val = _without_excluded(data, train, val)
    return Datasets(train, val)


def open_training(data: cfg.Data) -> DatasetIndex:
    """Open the training images alone.

    Raises:
        UserError: the folder is missing, empty or not in ImageNet's layout.
    """
    index = open_index(_folder(data, "train"), data.index, reading=reading_of(data))
    index = _without_excluded(data, index)[0]
    return index if data.val_fraction is None else _split(index, data.val_fraction).train


def open_validation(data: cfg.Data, classes: Sequence[str], whose: str) -> DatasetIndex:
    """Open the validation images alone, with the labels of other classes, joined by name.

    Args:
        classes: those of the model.
        whose: see `Reading`.

    Raises:
        UserError: as `open_datasets`.
    """
    return with_classes(open_validation_as_found(data), classes, whose)


def open_validation_as_found(data: cfg.Data) -> DatasetIndex:
    """Open the validation images alone, with their own classes, those without images too.

    Raises:
        UserError: the folder is missing, or no dataset.
    """
    is_split = data.val_fraction is not None
    index = open_as_found(
        _folder(data, "train" if is_split else "val"), data.index, reading_of(data)
    )
    index = _without_excluded(data, index)[0]
    return index if data.val_fraction is None else _split(index, data.val_fraction).val


def open_other_validation(data: cfg.Data, path: Path) -> DatasetIndex:
    """Open other images as if they were the validation images, with their own classes.

    Raises:
        UserError: there is no dataset.
    """
    update = {"val": path.absolute(), "val_fraction": None, "digits": None}
    return open_validation_as_found(data.model_copy(update=update))


def _split(index: DatasetIndex, val_fraction: float) -> Datasets:
    train, val = split_index(index, val_fraction)
    without = index.num_classes - len(np.unique(val.labels))
    return Datasets(
        train,
        val,
        f"data.val_fraction={val_fraction:g}: of {len(index):,} images {len(train):,} train and "
        f"{len(val):,} validate"
        + (f"; {without} of {index.num_classes} classes have none to validate" if without else ""),
    )


def reading_of(data: cfg.Data) -> Reading:
    """How the datasets of a configuration are read.

    Raises:
        UserError: data.classes is no usable list of names.
    """
    return Reading.of(data.class_order, data.class_level, data.classes, data.label_key)


def _without_excluded(data: cfg.Data, *indices: DatasetIndex) -> list[DatasetIndex]:
    """The datasets without the images that data.exclude names."""
    if data.exclude is None:
        return list(indices)
    names = read_names(data.exclude)
    kept, num_found = [], 0
    for index in indices:
        excluded = find_excluded(index, names)
        rows = excluded.rows
        num_found += len(rows) + len(excluded.unreadable)
        left = np.setdiff1d(np.arange(len(index)), rows)
        if not len(left):
            raise UserError(f"data.exclude={data.exclude} leaves no image of {index.origin}")
        kept.append(index.select(left) if len(rows) else index)
        logger.info("data.exclude leaves %d images of %s out", len(rows), index.origin)
    if len(indices) > 1 and num_found < len(set(names)):
        logger.warning("data.exclude=%s names files that are in neither dataset", data.exclude)
    return kept


def _check_several_classes(index: DatasetIndex) -> None:
    """Raises UserError for a single class, with which any model soon is right every time."""
    if len(index.classes) == 1:
        raise UserError(
            f"all images of {printable(index.origin, 120)} are of one class, "
            f"{printable(index.classes[0], 40)!r}: give the folder that holds a folder for each "
            "class, or name the others too with data.classes=FILE"
        )


def check_num_classes(index: DatasetIndex, num_classes: int) -> None:
    """Raises UserError where the folder's classes are not as many as the model's."""
    if len(index.classes) != num_classes:
        raise UserError(
            f"{index.origin} has {len(index.classes)} classes, but "
            f"model.num_classes={num_classes}; set model.num_classes={len(index.classes)}"
        )


def _folder(data: cfg.Data, split: Literal["train", "val"]) -> Path:
    if data.digits is not None:
        train, val = write_digits(data.digits)
        return train if split == "train" else val
    folder = data.train if split == "train" else data.val
    if folder is None:
        raise UserError(
            f"data.{split} is not set; give the folder (or list) of images, data.{split}=PATH"
            + (", or data.val_fraction=0.1 to split data.train" if split == "val" else "")
        )
    return folder

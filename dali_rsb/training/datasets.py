"""Opens the images of a run: those of the configuration's section `data`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dali_rsb import config as cfg
from dali_rsb.dataset import DatasetIndex, Reading, open_index
from dali_rsb.dataset.digits import write_digits
from dali_rsb.dataset.image_list import excluded_rows, read_names
from dali_rsb.dataset.overlap import check_files_apart, check_paths_apart
from dali_rsb.errors import UserError
from dali_rsb.run.processes import Processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """Training and validation images, with the same classes."""

    train: DatasetIndex
    val: DatasetIndex


def open_datasets(data: cfg.Data, num_classes: int, processes: Processes) -> Datasets:
    """Open (or scan) the two folders, shards or lists; rank 0 scans while the others wait.

    The validation images get the labels of the training classes, by name; classes without
    validation images are named in the log.

    Raises:
        UserError: a folder is missing, empty or not in ImageNet's layout, validation has a class
            that training lacks, they share files, or the class counts and model.num_classes
            disagree.
    """
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
    check_num_classes(train, num_classes)
    return Datasets(*_without_excluded(data, train, val))


def open_training(data: cfg.Data) -> DatasetIndex:
    """Open the training folder alone.

    Raises:
        UserError: the folder is missing, empty or not in ImageNet's layout.
    """
    index = open_index(_folder(data, "train"), data.index, reading=reading_of(data))
    return _without_excluded(data, index)[0]


def open_validation(data: cfg.Data, classes: Sequence[str], whose: str) -> DatasetIndex:
    """Open the validation folder alone, with the labels of other classes, joined by name.

    Args:
        classes: those of the model.
        whose: see `Reading`.

    Raises:
        UserError: as `open_datasets`.
    """
    reading = replace(reading_of(data), classes=None).joined_to(classes, whose)
    index = open_index(_folder(data, "val"), data.index, reading=reading)
    return _without_excluded(data, index)[0]


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
        rows, _ = excluded_rows(index, names)
        num_found += len(rows)
        left = np.setdiff1d(np.arange(len(index)), rows)
        if not len(left):
            raise UserError(f"data.exclude={data.exclude} leaves no image of {index.origin}")
        kept.append(index.select(left) if len(rows) else index)
        logger.info("data.exclude leaves %d images of %s out", len(rows), index.origin)
    if len(indices) > 1 and num_found < len(set(names)):
        logger.warning("data.exclude=%s names files that are in neither dataset", data.exclude)
    return kept


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
        )
    return folder

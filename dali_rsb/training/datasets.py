"""Opens the images of a run: those of the configuration's section `data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dali_rsb import config as cfg
from dali_rsb.dataset import DatasetIndex, check_same_classes, open_index
from dali_rsb.dataset.digits import write_digits
from dali_rsb.errors import UserError
from dali_rsb.run.processes import Processes


@dataclass(frozen=True)
class Datasets:
    """Training and validation images, with the same classes."""

    train: DatasetIndex
    val: DatasetIndex


def open_datasets(data: cfg.Data, num_classes: int, processes: Processes) -> Datasets:
    """Open (or scan) the two folders, shards or lists; rank 0 scans while the others wait.

    Raises:
        UserError: a folder is missing, empty or not in ImageNet's layout, or the class counts and
            model.num_classes disagree.
    """
    with processes.first_goes_ahead("indexing the images"):
        train = open_index(_folder(data, "train"), data.index)
        val = open_index(_folder(data, "val"), data.index)
    check_same_classes(train, val)
    check_num_classes(train, num_classes)
    return Datasets(train, val)


def open_training(data: cfg.Data) -> DatasetIndex:
    """Open the training folder alone.

    Raises:
        UserError: the folder is missing, empty or not in ImageNet's layout.
    """
    return open_index(_folder(data, "train"), data.index)


def open_validation(data: cfg.Data, num_classes: int) -> DatasetIndex:
    """Open the validation folder alone.

    Raises:
        UserError: as `open_datasets`.
    """
    index = open_index(_folder(data, "val"), data.index)
    check_num_classes(index, num_classes)
    return index


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

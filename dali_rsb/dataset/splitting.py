"""Splits one dataset into training and validation images, by a hash of each image's name.

An image's side depends on its own name alone (its path relative to the dataset's root): it is the
same in every run, on every machine and in any order, and stays when other images come or go.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.errors import UserError


def split_index(index: DatasetIndex, val_fraction: float) -> tuple[DatasetIndex, DatasetIndex]:
    """Training and validation images; classes keep their labels.

    A class of which every name would fall to validation keeps one image for training.

    Args:
        val_fraction: expected share of the validation images, in (0, 1).

    Raises:
        UserError: no image is left for validation.
    """
    numbers = _hashes(index)
    is_val = numbers < val_fraction
    trained = np.unique(index.labels[~is_val])
    for label in np.setdiff1d(index.labels, trained).tolist():
        rows = np.flatnonzero(index.labels == label)
        is_val[rows[np.argmax(numbers[rows])]] = False
    if not is_val.any():
        raise UserError(
            f"data.val_fraction={val_fraction} leaves none of the {len(index)} images of "
            f"{index.origin} for validation; raise it, or give data.val"
        )
    return index.select(np.flatnonzero(~is_val)), index.select(np.flatnonzero(is_val))


def _hashes(index: DatasetIndex) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each image, from its name."""
    digests = (hashlib.sha256(key).digest()[:8] for key in index.store.keys.all())
    numbers = np.frombuffer(b"".join(digests), ">u8")
    return (numbers >> 11).astype(np.float64) / 2**53  # so that none is rounded up to 1

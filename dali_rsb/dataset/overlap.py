"""Whether two datasets share files: the same folder twice, one inside the other, or through links,
of folders or of single files, symbolic or hard.

Equal bytes under different names are found by `dali-rsb verify`, which reads everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.shards import ShardStore
from dali_rsb.errors import UserError
from dali_rsb.system.names import printable

_FIX = "give validation images of its own, or allow it by data.allow_overlap=true"


def check_paths_apart(train: Path, val: Path) -> None:
    """Refuse two folders of which one is, or holds, the other.

    Raises:
        UserError: they are not apart.
    """
    if not (train.is_dir() and val.is_dir()):
        return
    ours, theirs = train.resolve(), val.resolve()
    if ours == theirs:
        raise UserError(f"data.train and data.val are the same folder, {val}: {_FIX}")
    for outer, inner, is_train in ((ours, theirs, True), (theirs, ours, False)):
        if inner.is_relative_to(outer):
            names = ("data.train", "data.val") if is_train else ("data.val", "data.train")
            raise UserError(f"{names[0]}={outer} holds {names[1]}={inner}: {_FIX}")


def check_files_apart(train: DatasetIndex, val: DatasetIndex) -> None:
    """Refuse two datasets that share a file, whatever its path in each.

    Raises:
        UserError: names how many files they share, and the first one.
    """
    ours, theirs = _files_by_folder(train), _files_by_folder(val)
    shared = [(folder, ours[folder] & theirs[folder]) for folder in ours.keys() & theirs.keys()]
    count = sum(len(names) for _, names in shared)
    if count:
        first = min(f"{folder}/{min(names)}" for folder, names in shared if names)
        what = "shard" if isinstance(train.store, ShardStore) else "image file"
        raise UserError(
            f"{train.origin} and {val.origin} share {count} {what}{'s' if count > 1 else ''}, "
            f"the first is {first}: {_FIX}"
        )
    _check_links_apart(train, val)


def _check_links_apart(train: DatasetIndex, val: DatasetIndex) -> None:
    """Refuse files of other names that are the same one, through links.

    A link has the time and size of its file, which the indices hold: only files that share these
    are looked at.
    """
    if train.stamps is None or val.stamps is None:
        return
    ours, theirs = _as_one_number(train.stamps), _as_one_number(val.stamps)
    # A search in the few of validation is faster than np.isin, which sorts those of training.
    few = np.sort(theirs)
    train_rows = np.flatnonzero(few[np.searchsorted(few[:-1], ours)] == ours)
    val_rows = np.flatnonzero(np.isin(theirs, ours[train_rows]))
    train_file = {_identity(train.path(row)): row for row in train_rows.tolist()}
    shared = [
        (row, train_file[identity])
        for row in val_rows.tolist()
        if (identity := _identity(val.path(row))) is not None and identity in train_file
    ]
    if shared:
        row, train_row = shared[0]
        raise UserError(
            f"{len(shared)} images of data.val are links to files of data.train, the first is "
            f"{printable(val.path(row), 70)} to {printable(train.path(train_row), 70)}: {_FIX}"
        )


def _as_one_number(stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Time and size of files, int64 [N, 2], as one number each: equal for equal ones, int64 [N]."""
    return stamps[:, 0] * 1_000_003 + stamps[:, 1]


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _files_by_folder(index: DatasetIndex) -> dict[str, set[str]]:
    """Names of the files that hold the images, by the real path of their folder."""
    by_folder: dict[str, set[str]] = {}
    for folder, names in _grouped(index).items():
        by_folder.setdefault(os.path.realpath(index.root / folder), set()).update(names)
    return by_folder


def _grouped(index: DatasetIndex) -> dict[str, list[str]]:
    store = index.store
    paths: Iterable[str] = (
        store.names if isinstance(store, ShardStore) else map(os.fsdecode, store.keys.all())
    )
    grouped: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        grouped.setdefault(folder, []).append(name)
    return grouped

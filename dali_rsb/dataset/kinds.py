"""The kinds of datasets that can be opened: a new source of images is registered here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dali_rsb.dataset.folder import FOLDER
from dali_rsb.dataset.list_file import LIST
from dali_rsb.dataset.raw.store import RAW_SHARDS
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.shards import SHARDS
from dali_rsb.dataset.store import Contents, DatasetKind
from dali_rsb.dataset.tiles.store import TILED_SHARDS

# In the order in which they are asked; the last two take every folder and every file.
KINDS = (RAW_SHARDS, TILED_SHARDS, SHARDS, FOLDER, LIST)


def kind_of(root: Path) -> DatasetKind:
    """The kind of the dataset at a path, which exists; raises as `DatasetKind.holds`."""
    return next(kind for kind in KINDS if kind.holds(root))


def kind_of_stored(meta: Mapping[str, Any]) -> DatasetKind:
    """The kind of the dataset that an index was stored for.

    Raises:
        ValueError: a kind that this version does not know.
    """
    name = meta.get("kind")
    if name is None:  # stored before kinds had names
        name = SHARDS.name if meta["shards"] is not None else FOLDER.name
        name = LIST.name if meta["listed_under"] is not None else name
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise ValueError(f"a dataset of kind {name!r} is not known to this version")


def list_contents(root: Path, progress: bool, reading: Reading) -> Contents:
    """The images of the dataset at a path, whatever its kind; raises as `DatasetKind.find`."""
    return kind_of(root).find(root, progress, reading)

"""Builds an index: what lies in a folder, in shards or in a list, and each image's header."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.image_header import (
    ImageFormat,
    read_header_of_bytes,
    read_stamped_header,
)
from dali_rsb.dataset.index import DatasetIndex, directory_prefix
from dali_rsb.dataset.list_file import ListFingerprint, common_root, read_list
from dali_rsb.dataset.scan import Fingerprint, file_stamp, list_images, read_headers
from dali_rsb.dataset.shards import Shards, ShardsFingerprint, list_shards, shard_names
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

# The arrays of `Shards` that have a row an image.
SHARD_ARRAYS = ("numbers", "offsets", "lengths")

AnyFingerprint: TypeAlias = Fingerprint | ListFingerprint | ShardsFingerprint


@dataclass(frozen=True)
class Contents:
    """What an index is built from: see `DatasetIndex`, and the paths as strings."""

    root: Path
    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    shards: Shards | None = None
    listing: Path | None = None


def list_contents(
    root: Path, progress: bool
) -> tuple[Contents, Callable[[dict[str, list[int]]], AnyFingerprint]]:
    """What a dataset holds, and what makes its fingerprint from the stamps of unreadable images."""
    if not root.is_dir():
        listed = read_list(root)
        contents = Contents(listed.root, listed.paths, listed.labels, listed.classes, listing=root)
        return contents, functools.partial(ListFingerprint, listed.stamp)
    if holds_shards(root):
        found = list_shards(root, progress)
        contents = Contents(root, found.paths, found.labels, found.classes, found.shards)
        return contents, functools.partial(ShardsFingerprint, found.stamps)
    listing = list_images(root)
    contents = Contents(root, listing.paths, listing.labels, listing.classes)
    return contents, functools.partial(
        Fingerprint, listing.root_entries, listing.directory_mtime_ns
    )


def holds_shards(folder: Path) -> bool:
    """Whether tar files lie in a folder, and no folders that may hold images."""
    if not shard_names(folder):
        return False
    return not any(path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))


def read_index(
    contents: Contents, num_workers: int | None, progress: bool
) -> tuple[DatasetIndex, dict[str, list[int]]]:
    """Read the headers; return the index of the readable images and the stamps of the others."""
    root, relative_paths, shards = contents.root, contents.paths, contents.shards
    prefix = directory_prefix(root)
    absolute_paths = [prefix + os.fsencode(path) for path in relative_paths]
    unreadable: dict[str, list[int]] = {}
    if shards is not None:
        rows = range(len(relative_paths))
        headers = read_headers(
            rows, num_workers, progress, lambda i: read_header_of_bytes(shards.view(i))
        )
        for i in np.flatnonzero(headers[:, 2] == ImageFormat.UNREADABLE).tolist():
            unreadable[relative_paths[i]] = []
    else:
        headers = read_headers(absolute_paths, num_workers, progress, read_stamped_header)
        for i in np.flatnonzero(headers[:, 2] == ImageFormat.UNREADABLE).tolist():
            # Once more, after its stamp was taken: a file still being written when it was first
            # read is complete now, or its stamp will differ when the index is opened the next time.
            stamp = file_stamp(root / relative_paths[i])
            headers[i] = read_stamped_header(absolute_paths[i])
            if headers[i, 2] == ImageFormat.UNREADABLE:
                unreadable[relative_paths[i]] = stamp
    readable = np.flatnonzero(headers[:, 2] != ImageFormat.UNREADABLE)
    if not len(readable):
        raise UserError(
            f"none of the {len(relative_paths)} image files in {contents.listing or root} can be "
            f"read, the first is {relative_paths[0]}: restore the files"
        )
    encoded = [absolute_paths[i][len(prefix) :] for i in readable.tolist()]
    index = DatasetIndex(
        root=root,
        classes=contents.classes,
        labels=contents.labels[readable],
        widths=headers[readable, 0].astype(np.int32),
        heights=headers[readable, 1].astype(np.int32),
        formats=headers[readable, 2].astype(np.uint8),
        path_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        path_offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        stamps=headers[readable, 3:] if shards is None else None,
        shards=None if shards is None else _some_of(shards, readable),
        listing=contents.listing,
    )
    return index, unreadable


def _some_of(shards: Shards, images: npt.NDArray[np.integer[Any]]) -> Shards:
    arrays = {name: getattr(shards, name)[images] for name in SHARD_ARRAYS}
    return dataclasses.replace(shards, **arrays)


def index_samples(
    samples: Sequence[tuple[str | os.PathLike[str], int]],
    classes: Sequence[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Index a list of files with labels, such as timm's `dataset.reader.samples`, in its order.

    Headers are read anew each time; nothing is stored. Files whose header cannot be read are
    left out with a warning.

    Args:
        samples: (path, label) pairs; paths absolute or relative to the working directory.
        classes: class names; "0", "1", ... to the largest label by default.
        num_workers, progress: see `open_index`.

    Raises:
        UserError: no samples, a label without a class, or no readable file.
    """
    if not samples:
        raise UserError("the list of samples is empty: give (path, label) pairs")
    paths = [str(Path(path).absolute()) for path, _ in samples]
    labels = np.array([label for _, label in samples], np.int64)
    if classes is None:
        classes = [str(label) for label in range(int(labels.max()) + 1)]
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise UserError(
            f"label {labels[wrong[0]]} of {paths[wrong[0]]} is not one of the "
            f"{len(classes)} classes: number labels from 0 to {len(classes) - 1}"
        )
    root = common_root(paths)
    skip = len(os.fsdecode(directory_prefix(root)))
    contents = Contents(root, [path[skip:] for path in paths], labels, tuple(classes))
    index, unreadable = read_index(contents, num_workers, progress)
    warn_of_unreadable(root, list(unreadable))
    return index


def warn_of_unreadable(root: Path, unreadable: list[str], listed_in: Path | None = None) -> None:
    if unreadable:
        logger.warning(
            "%d image files in %s cannot be read and are left out: %s%s%s",
            len(unreadable),
            root,
            ", ".join(unreadable[:3]),
            ", ..." if len(unreadable) > 3 else "",
            f"; all are listed in {listed_in}" if listed_in else "",
        )

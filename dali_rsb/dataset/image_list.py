"""Which images a loader draws from: a folder, shards, an index, a dataset object or a list."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.building import index_samples
from dali_rsb.dataset.image_header import ImageFormat, read_header
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.opening import open_index
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageList:
    """The images a loader draws from: some of an index's, in an order of their own.

    Attributes:
        index: where the images lie, and their sizes and labels.
        rows: int64 [N], the number in the index of each image.
    """

    index: DatasetIndex
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a target is a position in it."""
        return self.index.classes

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """Labels of the images, int64 [N]: what weights of a `WeightedRandomSampler` need."""
        return np.asarray(self.index.labels[self.rows])

    def filename(self, i: int) -> str:
        """Absolute path of image i, or SHARD:PATH in shards."""
        return self.index.name(int(self.rows[i]))

    def filenames(self) -> list[str]:
        """`filename` of all images, in the order of an evaluation."""
        return [self.filename(i) for i in range(len(self))]


@runtime_checkable
class FolderDataset(Protocol):
    """A dataset such as torchvision's `ImageFolder`."""

    root: str | Path
    samples: list[tuple[str, int]]


Samples: TypeAlias = Sequence[tuple[str, int]]
Source: TypeAlias = str | os.PathLike[str] | DatasetIndex | FolderDataset | Samples


def image_list(source: Source, cache_dir: Path | None) -> ImageList:
    """The images of any source that `DaliLoader` takes.

    Raises:
        UserError: the folder or list cannot be used, or no file can be read.
    """
    if isinstance(source, (str, os.PathLike)):
        source = open_index(source, cache_dir)
    if isinstance(source, DatasetIndex):
        return ImageList(source, np.arange(len(source)))
    if isinstance(source, FolderDataset):
        return images_of_samples(source.samples, source.root, cache_dir)
    return images_of_samples(source)


def images_of_samples(
    samples: Samples,
    root: str | os.PathLike[str] | None = None,
    cache_dir: Path | None = None,
) -> ImageList:
    """The images of a list of files with labels, in its order and as many.

    A file whose header cannot be read is replaced by the next one in the list, as timm does.

    Args:
        samples: (path, label) pairs.
        root: the class folders they were found in; its stored index saves reading all headers.
        cache_dir: where to store the index; see `dali_rsb.dataset.open_index`.

    Raises:
        UserError: no samples, or no readable file.
    """
    if root is not None:
        with contextlib.suppress(UserError):  # a layout that `open_index` does not know
            index = open_index(Path(root), cache_dir)
            rows = _rows_of_samples(index, samples, os.fspath(root))
            if rows is not None:
                return ImageList(index, rows)
    index = index_samples(samples)
    if len(index) == len(samples):
        return ImageList(index, np.arange(len(index)))
    absolute = [(str(Path(path).absolute()), label) for path, label in samples]
    rows = _rows_of_samples(index, absolute, str(index.root))
    assert rows is not None  # the index was made of these very samples
    return ImageList(index, rows)


def rows_by_path(index: DatasetIndex) -> dict[bytes, int]:
    """The number of each image by its path relative to the index's root."""
    paths, offsets = index.path_bytes.tobytes(), index.path_offsets.tolist()
    return {paths[start:end]: i for i, (start, end) in enumerate(itertools.pairwise(offsets))}


def _rows_by_shard_and_path(index: DatasetIndex, row_of: dict[bytes, int]) -> dict[bytes, int]:
    """The number of each image by what messages call it, less the folder: SHARD:PATH."""
    assert index.shards is not None
    shards = [os.fsencode(name) for name in index.shards.names]
    numbers = index.shards.numbers.tolist()
    return {shards[numbers[i]] + b":" + path: i for path, i in row_of.items()}


def without(
    images: ImageList, exclude: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> ImageList:
    """Leave some files out.

    Raises:
        UserError: a list of files that is not there, or no image is left.
    """
    if isinstance(exclude, (str, os.PathLike)):
        listing = Path(exclude)
        if not listing.is_file():
            raise UserError(f"exclude: {listing} is no file; give a list of files")
        exclude = listing.read_text(encoding="utf-8").splitlines()
    root = images.index.root
    # An absolute path stays as it is under `/`; what lies outside the root is in no dataset.
    excluded = {os.path.relpath(root / path, root) for path in exclude if str(path).strip()}
    if not excluded:
        return images
    row_of = rows_by_path(images.index)
    if images.index.shards is not None:
        row_of |= _rows_by_shard_and_path(images.index, row_of)
    rows = [row_of[name] for name in map(os.fsencode, excluded) if name in row_of]
    unknown = len(excluded) - len(rows)
    if unknown:
        logger.warning(
            "%d of %d files to exclude are not in %s", unknown, len(excluded), images.index.origin
        )
    kept = np.setdiff1d(images.rows, np.array(rows, np.int64))
    if not len(kept):
        raise UserError(f"exclude leaves no image of {images.index.origin}")
    return ImageList(images.index, kept)


def _rows_of_samples(
    index: DatasetIndex, samples: Samples, root: str
) -> npt.NDArray[np.int64] | None:
    """The number in the index of each sample; None if the index holds other images or labels."""
    row_of = rows_by_path(index)
    prefix = os.fsencode(root).rstrip(b"/") + b"/"
    names = [os.fsencode(path) for path, _ in samples]
    rows = np.array(
        [row_of.get(name[len(prefix) :], -1) if name.startswith(prefix) else -1 for name in names],
        np.int64,
    )
    found = np.flatnonzero(rows >= 0)
    labels = np.array([label for _, label in samples], np.int64)
    if not len(found) or (index.labels[rows[found]] != labels[found]).any():
        return None
    missing = np.flatnonzero(rows < 0)
    if any(read_header(names[i])[2] != ImageFormat.UNREADABLE for i in missing):
        return None
    stand_ins = found[np.searchsorted(found, missing) % len(found)]
    rows[missing] = rows[stand_ins]
    return rows

"""Which images a loader draws from: all of an index, or a list of files with labels."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.building import index_samples
from dali_rsb.dataset.image_header import ImageFormat, read_header
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.opening import open_index
from dali_rsb.dataset.ordering import ClassOrder, path_order
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.storage import stored_unreadable
from dali_rsb.dataset.store import Stamp
from dali_rsb.errors import UserError
from dali_rsb.system.files import read_text

logger = logging.getLogger(__name__)

_DEFAULT = Reading()


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

    def __getitems__(self, indices: list[int]) -> list[int]:
        """What a torch `DataLoader` asks for: a batch's indices, for the loader's `collate_fn`."""
        return indices

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


def image_list(
    source: str | os.PathLike[str] | DatasetIndex,
    cache_dir: Path | None,
    reading: Reading = _DEFAULT,
) -> ImageList:
    """All images of a folder, of shards, of a list file or of an index.

    Args:
        cache_dir: where to store the index of a path.
        reading: how a path is read.

    Raises:
        UserError: the folder or list cannot be used, or no file can be read.
    """
    if isinstance(source, DatasetIndex):
        index = source
    else:
        index = open_index(source, cache_dir, reading=reading)
    return ImageList(index, np.arange(len(index)))


def with_unreadable(images: ImageList, class_order: ClassOrder) -> ImageList:
    """The images of a folder as ImageFolder counts them: files that cannot be read among them.

    The next image that can be read stands in for each. For indices that were made elsewhere, of
    the same folder: without it, all those behind an unreadable file would mean the next image.

    Args:
        images: all of a folder's index; others stay as they are.
        class_order: in which the folder was read.
    """
    index = images.index
    if index.store.kind != "folder" or index.place is None:
        return images
    unreadable = list(stored_unreadable(index.place))
    if not unreadable:
        return images
    paths = [*map(os.fsdecode, index.store.keys.all()), *unreadable]
    order = np.array(path_order(paths, class_order), np.int64)
    return ImageList(index, order[_next_readable(order < len(index))])


def images_of_samples(
    paths: Sequence[str],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    root: str | os.PathLike[str] | None = None,
    cache_dir: Path | None = None,
    reading: Reading = _DEFAULT,
) -> ImageList:
    """The images of a list of files with labels, in its order and as many.

    A file whose header cannot be read is replaced by the next one in the list, image and label, as
    timm does.

    Args:
        paths: absolute or relative to the working directory.
        labels: int64 [N], whatever class folders the files lie in.
        classes: class names; a label is a position in it.
        root: the class folders they were found in; its stored index saves reading all headers.
        cache_dir: where to store the index; see `dali_rsb.dataset.open_index`.
        reading: how the class folders were read: an image that cannot be decoded is replaced by
            the next one in that order.

    Raises:
        UserError: no samples, or no readable file.
    """
    if root is not None:
        with contextlib.suppress(UserError):  # a layout that `open_index` does not know
            index = open_index(Path(root), cache_dir, reading=reading)
            found = _rows_of_paths(index, paths, os.fspath(root))
            if found is not None:
                rows, places = found
                return _labelled(index, rows, labels[places], classes)
    absolute = [str(Path(path).absolute()) for path in paths]
    index = index_samples(list(zip(absolute, labels.tolist(), strict=True)), classes)
    if len(index) == len(paths):
        return ImageList(index, np.arange(len(index)))
    found = _rows_of_paths(index, absolute, str(index.root))
    assert found is not None  # the index was made of these very files
    rows, places = found
    return _labelled(index, rows, labels[places], classes)


def _labelled(
    index: DatasetIndex,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> ImageList:
    """Some rows of an index, with labels and class names that need not be the index's."""
    classes = tuple(classes)
    if np.array_equal(index.labels[rows], labels):
        if classes != index.classes:
            index = replace(index, classes=classes)
        return ImageList(index, rows)
    changed = index.labels.copy()
    changed[rows] = labels
    if np.array_equal(changed[rows], labels):
        return ImageList(replace(index, labels=changed, classes=classes), rows)
    # One file has several labels: a row for each sample.
    selected = replace(index.select(rows), labels=labels, classes=classes)
    return ImageList(selected, np.arange(len(rows)))


def rows_by_path(index: DatasetIndex) -> dict[bytes, int]:
    """The number of each image by its path relative to the index's root."""
    return {key: i for i, key in enumerate(index.store.keys.all())}


def _rows_by_name(index: DatasetIndex) -> dict[bytes, int]:
    """The number of each image by what messages call it, relative to the index's root."""
    return {os.fsencode(index.store.name(i)): i for i in range(len(index))}


def without(
    images: ImageList, exclude: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> ImageList:
    """Leave some files out.

    Raises:
        UserError: a list of files that cannot be read, or no image is left.
    """
    if isinstance(exclude, (str, os.PathLike)):
        exclude = read_names(Path(exclude))
    excluded = find_excluded(images.index, exclude)
    if excluded.unknown:
        logger.warning(
            "%d files to exclude are not in %s", len(excluded.unknown), images.index.origin
        )
    if not len(excluded.rows):
        return images
    kept = images.rows[~np.isin(images.rows, excluded.rows)]
    if not len(kept):
        raise UserError(f"exclude leaves no image of {images.index.origin}")
    return ImageList(images.index, kept)


def read_names(path: Path) -> list[str]:
    """The names of files in a text file, one in each line.

    Raises:
        UserError: it cannot be read.
    """
    fix = "give exclude a text file with a path in each line"
    # Names of files may be of any bytes.
    text = read_text(path, fix, errors="surrogateescape")
    return [name for line in text.split("\n") if (name := line.removesuffix("\r")).strip()]


@dataclass(frozen=True)
class Excluded:
    """What some names that are to be left out are in a dataset.

    Attributes:
        rows: int64 [n], of images of the index.
        unreadable: stamps of the files that the index leaves out anyhow, as they cannot be read,
            by name relative to the index's root.
        unknown: what is neither.
    """

    rows: npt.NDArray[np.int64]
    unreadable: dict[str, Stamp]
    unknown: set[bytes]


def find_excluded(index: DatasetIndex, names: Iterable[str | os.PathLike[str]]) -> Excluded:
    """Look for images that are to be left out.

    Args:
        names: paths, absolute or relative to the index's root, or SHARD:PATH.
    """
    root = index.root
    # An absolute path stays as it is under `/`; what lies outside the root is in no dataset.
    excluded = {
        os.fsencode(os.path.relpath(root / path, root)) for path in names if str(path).strip()
    }
    if not excluded:
        return Excluded(np.zeros(0, np.int64), {}, set())
    row_of = rows_by_path(index)
    if not excluded <= row_of.keys():
        row_of |= _rows_by_name(index)
    rows = [row_of[name] for name in excluded if name in row_of]
    others = excluded - row_of.keys()
    unreadable: dict[str, Stamp] = {}
    if others and index.place is not None:
        stored = stored_unreadable(index.place)
        unreadable = {key: stamp for key, stamp in stored.items() if os.fsencode(key) in others}
    unknown = others.difference(map(os.fsencode, unreadable))
    return Excluded(np.array(sorted(rows), np.int64), unreadable, unknown)


def _rows_of_paths(
    index: DatasetIndex, paths: Sequence[str], root: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The number in the index of each file, int64 [N], and whose place each file is, int64 [N].

    A file that cannot be read gets the number of the next one that can, and that one's place.
    None if the index lacks a file that can be read.
    """
    row_of = rows_by_path(index)
    prefix = os.fsencode(root).rstrip(b"/") + b"/"
    names = [os.fsencode(path) for path in paths]
    rows = np.array(
        [row_of.get(name[len(prefix) :], -1) if name.startswith(prefix) else -1 for name in names],
        np.int64,
    )
    missing = np.flatnonzero(rows < 0)
    if len(missing) == len(rows):
        return None
    if any(read_header(names[i])[2] != ImageFormat.UNREADABLE for i in missing):
        return None
    places = _next_readable(rows >= 0)
    return rows[places], places


def _next_readable(is_readable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The place of each image or, if it cannot be read, of the next one that can."""
    readable = np.flatnonzero(is_readable)
    places = np.arange(len(is_readable))
    return readable[np.searchsorted(readable, places) % len(readable)]

"""Builds an index: reads the header of each image that was found."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dali_rsb.dataset.file_store import FileStore
from dali_rsb.dataset.image_header import NO_STAMP, ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.list_file import common_root
from dali_rsb.dataset.store import ImageStore, Keys, Stamp
from dali_rsb.errors import UserError
from dali_rsb.system.names import printable

logger = logging.getLogger(__name__)

# Threads, though the parsing holds the interpreter lock: it takes 8 us an image, so that ImageNet's
# headers are read in 10 s when cached; otherwise the time goes into waiting for the file system.
_NUM_THREADS = 32
_IMAGES_PER_TASK = 64


def read_index(
    store: ImageStore,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    num_workers: int | None,
    progress: bool,
) -> tuple[DatasetIndex, dict[str, Stamp]]:
    """Read the headers of a dataset's images.

    Args:
        labels: int64 [N], of the store's images.
        classes, num_workers, progress: see `index_samples`.

    Returns:
        The index of the readable images, and the stamp of each of the others by its key.

    Raises:
        UserError: no image is readable.
    """
    headers = _read_headers(len(store), store.stamped_header, num_workers, progress)
    unreadable: dict[str, Stamp] = {}
    for row in np.flatnonzero(headers[:, 2] == ImageFormat.UNREADABLE).tolist():
        # Once more, after its stamp was taken: a file still being written when it was first read
        # is complete now, or its stamp will differ when the index is opened the next time.
        stamp = store.stamp(row)
        headers[row] = store.stamped_header(row)
        if headers[row, 2] == ImageFormat.UNREADABLE:
            unreadable[os.fsdecode(store.keys[row])] = stamp
    readable = np.flatnonzero(headers[:, 2] != ImageFormat.UNREADABLE)
    if not len(readable):
        raise UserError(
            f"none of the {len(store)} image files in {store.origin} can be read, the first is "
            f"{printable(os.fsdecode(store.keys[0]))}: restore the files"
        )
    stamps = headers[readable, 3:]
    index = DatasetIndex(
        classes=tuple(classes),
        labels=labels[readable],
        widths=headers[readable, 0].astype(np.int32),
        heights=headers[readable, 1].astype(np.int32),
        formats=headers[readable, 2].astype(np.uint8),
        stamps=stamps if (stamps != NO_STAMP).any() else None,
        store=store.select(readable),
    )
    return index, unreadable


def _read_headers(
    num_images: int,
    header: Callable[[int], tuple[int, int, ImageFormat, int, int]],
    num_workers: int | None,
    progress: bool,
) -> npt.NDArray[np.int64]:
    """Read the headers of images, in parallel.

    Args:
        header: gives width, height, format and stamp of an image by its number.
        num_workers: threads, 32 by default.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        int64 [N, 5]: width and height in pixels, `ImageFormat`, and stamp; UNREADABLE with size
        0 x 0 for an image whose header cannot be read.
    """
    tasks = [
        range(start, min(start + _IMAGES_PER_TASK, num_images))
        for start in range(0, num_images, _IMAGES_PER_TASK)
    ]

    def read_task(rows: range) -> npt.NDArray[np.int64]:
        return np.array([header(row) for row in rows], np.int64)

    show = progress and sys.stderr.isatty()
    with (
        concurrent.futures.ThreadPoolExecutor(num_workers or _NUM_THREADS) as pool,
        tqdm(total=num_images, desc="indexing", unit="img", disable=not show) as bar,
    ):
        found = [np.zeros((0, 5), np.int64)]
        for headers in pool.map(read_task, tasks):
            found.append(headers)
            bar.update(len(headers))
    return np.concatenate(found)


def index_samples(
    samples: Sequence[tuple[str | os.PathLike[str], int]],
    classes: Sequence[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Index a list of files with labels, such as timm's `dataset.reader.samples`, in its order.

    Headers are read each time; nothing is stored. Files whose header cannot be read are left out
    with a warning.

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
    skip = len(str(root).rstrip("/")) + 1
    store = FileStore(root, Keys.of(path[skip:] for path in paths))
    index, unreadable = read_index(store, labels, classes, num_workers, progress)
    warn_of_unreadable(root, list(unreadable))
    return index


def warn_of_unreadable(root: Path, unreadable: list[str], listed_in: Path | None = None) -> None:
    """Warn of the images that an index leaves out.

    Args:
        unreadable: their keys.
        listed_in: the file that lists all of them, if one does.
    """
    if unreadable:
        logger.warning(
            "%d image files in %s cannot be read and are left out: %s%s%s",
            len(unreadable),
            root,
            ", ".join(map(printable, unreadable[:3])),
            ", ..." if len(unreadable) > 3 else "",
            f"; all are listed in {listed_in}" if listed_in else "",
        )

"""The dataset index: path, label, size and format of every image of a class-folder dataset.

It is built once, by listing the folder and reading each image's header, stored beside the data and
memory-mapped from then on. A stored index is used as long as no directory has changed; an image
that was overwritten in place, with its name kept, is not noticed: delete the stored index then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_rsb.data.atomic import atomic_directory
from dali_rsb.data.image_header import ImageFormat, read_header
from dali_rsb.data.scan import Fingerprint, file_stamp, list_images, read_headers
from dali_rsb.errors import UserError

__all__ = ["DatasetIndex", "ImageFormat", "check_same_classes", "open_index"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
USER_CACHE = Path("~/.cache/dali_rsb")

_ARRAYS = ("labels", "widths", "heights", "formats", "path_bytes", "path_offsets")
_META, _UNREADABLE = "meta.json", "unreadable.txt"


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The images of a dataset, in a fixed order. Images are numbered from 0 to N - 1.

    Attributes:
        root: absolute folder that the paths are relative to.
        classes: class names; a label is a position in it.
        labels: int64 [N].
        widths, heights: int32 [N], pixels as stored (no EXIF rotation).
        formats: uint8 [N], `ImageFormat` by content.
        path_bytes: uint8, the relative paths in UTF-8, one after the other.
        path_offsets: int64 [N + 1], path i is `path_bytes[path_offsets[i]:path_offsets[i + 1]]`.
        place: folder that the index is stored in, None if it is stored nowhere.
    """

    root: Path
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    formats: npt.NDArray[np.uint8]
    path_bytes: npt.NDArray[np.uint8]
    path_offsets: npt.NDArray[np.int64]
    place: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @functools.cached_property
    def _path_prefix(self) -> bytes:
        return _directory_prefix(self.root)

    def path(self, i: int) -> Path:
        """Absolute path of image i."""
        return Path(os.fsdecode(self.path_array(i).tobytes()))

    def path_array(self, i: int) -> npt.NDArray[np.uint8]:
        """Absolute path of image i as uint8 [num_bytes], read-only: DALI's `fn.io.file.read`."""
        return self._path_between(self.path_offsets[i], self.path_offsets[i + 1])

    def path_arrays(self, indices: npt.NDArray[np.integer[Any]]) -> list[npt.NDArray[np.uint8]]:
        """`path_array` of each index."""
        starts, ends = self.path_offsets[indices].tolist(), self.path_offsets[indices + 1].tolist()
        return [self._path_between(start, end) for start, end in zip(starts, ends, strict=True)]

    def _path_between(self, start: int, end: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._path_prefix + self.path_bytes[start:end].tobytes(), np.uint8)

    @classmethod
    def from_samples(
        cls,
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
        # All other paths sort between these two, so what these share is common to all.
        ends = [str(Path(path).parent) for path in (min(paths), max(paths))]
        root = Path(os.path.commonpath(ends))
        skip = len(os.fsdecode(_directory_prefix(root)))
        index, unreadable = _read_index(
            root, tuple(classes), [path[skip:] for path in paths], labels, num_workers, progress
        )
        _warn_of_unreadable(root, list(unreadable))
        return index


def open_index(
    root: Path,
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Open the index of a class-folder dataset (`root/CLASS/IMAGE.jpg`); build it if need be.

    Classes and images are in the order of timm's folder reader: natural sort, the folder an image
    lies in is its class. Images whose header cannot be read are left out with one warning, which
    names the list of them. Several processes may open the same index at once: one builds it.

    The index is stored in `cache_dir` under the root's name and a hash of its resolved path, else
    beside the root (see `place_beside`), else (that is not writable) in `~/.cache/dali_rsb` as in
    `cache_dir`.

    Args:
        root: the folder that holds the class folders.
        cache_dir: where to store the index.
        num_workers: threads that read headers, 32 by default; more may help on network storage.
        progress: show a progress bar while building, if stderr is a terminal.

    Raises:
        UserError: `root` is missing or no directory, its layout is not that of class folders, a
            class folder has no images, or no image is readable.
    """
    root = Path(root).expanduser().absolute()
    if not root.exists():
        raise UserError(f"{root} does not exist: give the folder that holds the class folders")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder that holds the class folders")
    places = _places(root, cache_dir)
    for place in places:
        index, _ = _load(place, root)
        if index is not None:
            return index
    return _build(places[-1], root, num_workers, progress)


def check_same_classes(train: DatasetIndex, val: DatasetIndex) -> None:
    """Raise a `UserError` that names the first difference if two datasets' classes differ."""
    pairs = itertools.zip_longest(train.classes, val.classes)
    for label, (train_class, val_class) in enumerate(pairs):
        if train_class != val_class:
            raise UserError(
                f"class {label} is {train_class or 'missing'} in {train.root} but "
                f"{val_class or 'missing'} in {val.root} ({train.num_classes} and "
                f"{val.num_classes} classes): give both the same class folders"
            )


def _places(root: Path, cache_dir: Path | None) -> list[Path]:
    """Where to look for a stored index; the last one is where to store a new one."""
    resolved = root.resolve()
    name = f"{resolved.name}-{hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]}"
    if cache_dir is not None:
        return [Path(cache_dir).expanduser().absolute() / name]
    if os.access(resolved.parent, os.W_OK | os.X_OK):
        return [place_beside(root)]
    # An index that someone who may write there has stored beside the root serves everyone.
    return [place_beside(root), _user_cache(root) / name]


def place_beside(root: Path) -> Path:
    """Where the index of a dataset is stored by default: /images/.train.dali_rsb_index for train.

    Not inside the root, where torchvision's ImageFolder would take it for a class.
    """
    resolved = root.resolve()
    return resolved.with_name(f".{resolved.name}.dali_rsb_index")


def _user_cache(root: Path) -> Path:
    try:
        return USER_CACHE.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{root} is not writable and this user has no home directory to store its index in: "
            "give a cache_dir"
        ) from error


def _build(place: Path, root: Path, num_workers: int | None, progress: bool) -> DatasetIndex:
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
    with _one_builder_at_a_time(place.parent):
        index, stale = _load(place, root)
        if index is not None:  # another process has built it meanwhile
            return index
        if stale is not None:
            logger.info("the index of %s is built anew: %s", root, stale)
        start_s = time.monotonic()
        listing = list_images(root)
        index, unreadable = _read_index(
            root, listing.classes, listing.paths, listing.labels, num_workers, progress
        )
        logger.info(
            "indexed %d images of %d classes in %s in %.1f s",
            len(index),
            index.num_classes,
            root,
            time.monotonic() - start_s,
        )
        fingerprint = Fingerprint(listing.root_entries, listing.directory_mtime_ns, unreadable)
        try:
            _write(place, index, fingerprint)
        except OSError as error:
            logger.warning(
                "cannot store the index of %s in %s (%s), it will be built at every start: "
                "name a writable cache_dir",
                root,
                place,
                error.strerror,
            )
            _warn_of_unreadable(root, list(unreadable))
        else:
            index = dataclasses.replace(index, place=place)
            _warn_of_unreadable(root, list(unreadable), place / _UNREADABLE)
        return index


def _read_index(
    root: Path,
    classes: tuple[str, ...],
    relative_paths: list[str],
    labels: npt.NDArray[np.int64],
    num_workers: int | None,
    progress: bool,
) -> tuple[DatasetIndex, dict[str, list[int]]]:
    """Read the headers; return the index of the readable images and the stamps of the others."""
    prefix = _directory_prefix(root)
    absolute_paths = [prefix + os.fsencode(path) for path in relative_paths]
    headers = read_headers(absolute_paths, num_workers, progress)
    unreadable = {}
    for i in np.flatnonzero(headers[:, 2] == ImageFormat.UNREADABLE).tolist():
        # Once more, after its stamp was taken: a file still being written when it was first read
        # is complete now, or its stamp will differ when the index is opened the next time.
        stamp = file_stamp(root / relative_paths[i])
        headers[i] = read_header(absolute_paths[i])
        if headers[i, 2] == ImageFormat.UNREADABLE:
            unreadable[relative_paths[i]] = stamp
    readable = np.flatnonzero(headers[:, 2] != ImageFormat.UNREADABLE)
    if not len(readable):
        raise UserError(
            f"none of the {len(relative_paths)} image files in {root} can be read, the first is "
            f"{relative_paths[0]}: restore the files"
        )
    encoded = [absolute_paths[i][len(prefix) :] for i in readable.tolist()]
    index = DatasetIndex(
        root=root,
        classes=classes,
        labels=labels[readable],
        widths=headers[readable, 0],
        heights=headers[readable, 1],
        formats=headers[readable, 2].astype(np.uint8),
        path_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        path_offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    )
    return index, unreadable


def _directory_prefix(root: Path) -> bytes:
    return os.fsencode(root).rstrip(b"/") + b"/"


def _write(place: Path, index: DatasetIndex, fingerprint: Fingerprint) -> None:
    meta = {
        "format_version": FORMAT_VERSION,
        "build_id": secrets.token_hex(8),
        "root": str(index.root),
        "classes": index.classes,
        "fingerprint": dataclasses.asdict(fingerprint),
    }
    unreadable = b"".join(os.fsencode(path) + b"\n" for path in fingerprint.unreadable)
    with atomic_directory(place) as directory:
        for name in _ARRAYS:
            np.save(directory / f"{name}.npy", getattr(index, name))
        (directory / _META).write_text(json.dumps(meta), encoding="utf-8")
        (directory / _UNREADABLE).write_bytes(unreadable)
        for path in [*directory.iterdir(), directory]:
            _write_through(path)


def _write_through(path: Path) -> None:
    """Have the kernel write a file or directory to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load(place: Path, root: Path) -> tuple[DatasetIndex | None, str | None]:
    """Memory-map a stored index; or None, and why it cannot be used if there is one."""
    try:
        text = (place / _META).read_text(encoding="utf-8")
        meta = json.loads(text)
        if meta["format_version"] != FORMAT_VERSION:
            return None, f"it has format {meta['format_version']}, not {FORMAT_VERSION}"
        fingerprint = Fingerprint(**meta["fingerprint"])
        # np.asarray: plain views of the maps; indexing np.memmap itself is three times as slow.
        arrays = {
            name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in _ARRAYS
        }
        index = DatasetIndex(root=root, classes=tuple(meta["classes"]), place=place, **arrays)
        if (place / _META).read_text(encoding="utf-8") != text:
            return None, "another process has just replaced it"
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{place} cannot be read ({error})"
    stale = fingerprint.difference(root)
    if stale is not None:
        return None, stale
    _warn_of_unreadable(root, list(fingerprint.unreadable), place / _UNREADABLE)
    return index, None


def _warn_of_unreadable(root: Path, unreadable: list[str], listed_in: Path | None = None) -> None:
    if unreadable:
        logger.warning(
            "%d image files in %s cannot be read and are left out: %s%s%s",
            len(unreadable),
            root,
            ", ".join(unreadable[:3]),
            ", ..." if len(unreadable) > 3 else "",
            f"; all are listed in {listed_in}" if listed_in else "",
        )


@contextlib.contextmanager
def _one_builder_at_a_time(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory; without one (NFS refuses it) several processes may build."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""The dataset index: path or place in a shard, label, size and format of every image.

A dataset is a folder of class folders, a list of images or a folder of tar shards. The index is
built once, by listing them and reading each image's header, stored beside the data and
memory-mapped from then on. A stored index is used as long as no directory, list or shard has
changed; an image that was overwritten in place, with its name kept, is not noticed: delete the
stored index then. Shards that `dali_rsb.pack` wrote bring their index along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from dali_rsb.data.atomic import atomic_directory
from dali_rsb.data.image_header import ImageFormat, read_header, read_header_of_bytes
from dali_rsb.data.list_file import ListFingerprint, common_root, read_list
from dali_rsb.data.scan import Fingerprint, file_stamp, list_images, read_headers
from dali_rsb.data.shards import Shards, ShardsFingerprint, list_shards, shard_names
from dali_rsb.errors import UserError

if TYPE_CHECKING:
    from pipelines.inputs import ImageSource

__all__ = ["DatasetIndex", "ImageFormat", "check_same_classes", "open_index"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
USER_CACHE = Path("~/.cache/dali_rsb")

# In a folder of shards: the index that `dali_rsb.pack` writes, and its work until all is packed.
PACK_INDEX, PACK_WORK = "dali_rsb_index", ".packing"
PACK_VERSION = 1

_ARRAYS = ("labels", "widths", "heights", "formats", "path_bytes", "path_offsets")
_SHARD_ARRAYS = ("numbers", "offsets", "lengths")
_META, _UNREADABLE = "meta.json", "unreadable.txt"

AnyFingerprint: TypeAlias = Fingerprint | ListFingerprint | ShardsFingerprint


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The images of a dataset, in a fixed order. Images are numbered from 0 to N - 1.

    Attributes:
        root: absolute folder that the paths are relative to; of shards, the folder they lie in,
            while the paths are those in the shards or those of the files that were packed.
        classes: class names; a label is a position in it.
        labels: int64 [N].
        widths, heights: int32 [N], pixels as stored (no EXIF rotation).
        formats: uint8 [N], `ImageFormat` by content.
        path_bytes: uint8, the relative paths in UTF-8, one after the other.
        path_offsets: int64 [N + 1], path i is `path_bytes[path_offsets[i]:path_offsets[i + 1]]`.
        place: folder that the index is stored in, None if it is stored nowhere.
        shards: where the images lie, if they are no files of their own.
        listing: the list file that names the images, if one does.
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
    shards: Shards | None = None
    listing: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def origin(self) -> Path:
        """The folder or list file that the dataset is known by."""
        return self.listing or self.root

    @functools.cached_property
    def _path_prefix(self) -> bytes:
        return _directory_prefix(self.root)

    def path(self, i: int) -> Path:
        """Absolute path of image i; in shards there is no such file, see `name` and `open`."""
        return Path(os.fsdecode(self.path_array(i).tobytes()))

    def name(self, i: int) -> str:
        """What messages call image i: its path, or that of its shard and its own in there."""
        if self.shards is None:
            return str(self.path(i))
        return f"{self.shards.path(i)}:{self.path(i).relative_to(self.root)}"

    def open(self, i: int) -> BinaryIO:
        """Open the encoded image i.

        Raises:
            OSError: the file cannot be opened.
            UserError: the shard cannot be opened.
        """
        if self.shards is None:
            return self.path(i).open("rb")
        return io.BytesIO(self.shards.views(np.array([i]))[0].tobytes())

    def stamp(self, i: int) -> str:
        """Text that changes when image i does: its name, and time and size of its file.

        Raises:
            OSError: the file is gone.
        """
        status = (self.path(i) if self.shards is None else self.shards.path(i)).stat()
        return f"{self.name(i)}\n{status.st_mtime_ns}\n{status.st_size}"

    @property
    def image_source(self) -> ImageSource:
        """Which of a graph's image inputs `image_arrays` are for."""
        return "path" if self.shards is None else "encoded"

    def image_arrays(self, indices: npt.NDArray[np.integer[Any]]) -> list[npt.NDArray[np.uint8]]:
        """What a graph's image input takes: `path_arrays`, or bytes of shards, read-only.

        Raises:
            UserError: a shard cannot be opened.
        """
        return self.path_arrays(indices) if self.shards is None else self.shards.views(indices)

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
        root = common_root(paths)
        skip = len(os.fsdecode(_directory_prefix(root)))
        contents = _Contents(root, [path[skip:] for path in paths], labels, tuple(classes))
        index, unreadable = _read_index(contents, num_workers, progress)
        _warn_of_unreadable(root, list(unreadable))
        return index


@dataclass(frozen=True)
class _Contents:
    """What an index is built from: see `DatasetIndex`, and the paths as strings."""

    root: Path
    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    shards: Shards | None = None
    listing: Path | None = None


def open_index(
    root: str | os.PathLike[str],
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Open the index of a dataset; build it if need be.

    `root` is a folder of class folders (`root/CLASS/IMAGE.jpg`), a text file with `path<TAB>label`
    in each line (see `dali_rsb.data.list_file.read_list`), or a folder of tar shards, written by
    `python -m dali_rsb.pack` or by others (see `dali_rsb.data.shards.list_shards`). For the same
    images all of them give the same rows.

    Classes and images are in the order of timm's folder reader: natural sort, the folder an image
    lies in is its class. Images whose header cannot be read are left out with one warning, which
    names the list of them. Several processes may open the same index at once: one builds it.

    The index is stored in `cache_dir` under the root's name and a hash of its resolved path, else
    beside the root (see `place_beside`), else (that is not writable) in `~/.cache/dali_rsb` as in
    `cache_dir`.

    Args:
        root: the folder or list.
        cache_dir: where to store the index.
        num_workers: threads that read headers, 32 by default; more may help on network storage.
        progress: show a progress bar while building, if stderr is a terminal.

    Raises:
        UserError: `root` is missing or none of the above, a class folder has no images, a shard is
            missing, or no image is readable.
    """
    root = Path(root).expanduser().absolute()
    if not root.exists():
        raise UserError(
            f"{root} does not exist: give a folder of class folders or of tar shards, or a list "
            "of images"
        )
    if root.suffix == ".tar" and root.is_file():
        raise UserError(f"{root} is one shard: give the folder that holds the shards")
    if (root / PACK_INDEX / _META).is_file():
        return _open_pack(root)
    if (root / PACK_WORK).is_dir():
        raise UserError(
            f"{root} is not packed to the end: give `python -m dali_rsb.pack` the same arguments "
            "again, and it goes on"
        )
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
                f"class {label} is {train_class or 'missing'} in {train.origin} but "
                f"{val_class or 'missing'} in {val.origin} ({train.num_classes} and "
                f"{val.num_classes} classes): give both the same classes"
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
        contents, fingerprint_of = _list_contents(root, progress)
        index, unreadable = _read_index(contents, num_workers, progress)
        logger.info(
            "indexed %d images of %d classes in %s in %.1f s",
            len(index),
            index.num_classes,
            root,
            time.monotonic() - start_s,
        )
        fingerprint = fingerprint_of(unreadable)
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


def _list_contents(
    root: Path, progress: bool
) -> tuple[_Contents, Callable[[dict[str, list[int]]], AnyFingerprint]]:
    """What a dataset holds, and what makes its fingerprint from the stamps of unreadable images."""
    if not root.is_dir():
        listed = read_list(root)
        contents = _Contents(listed.root, listed.paths, listed.labels, listed.classes, listing=root)
        return contents, functools.partial(ListFingerprint, listed.stamp)
    if _holds_shards(root):
        found = list_shards(root, progress)
        contents = _Contents(root, found.paths, found.labels, found.classes, found.shards)
        return contents, functools.partial(ShardsFingerprint, found.stamps)
    listing = list_images(root)
    contents = _Contents(root, listing.paths, listing.labels, listing.classes)
    return contents, functools.partial(
        Fingerprint, listing.root_entries, listing.directory_mtime_ns
    )


def _holds_shards(folder: Path) -> bool:
    """Whether tar files lie in a folder, and no folders that may hold images."""
    if not shard_names(folder):
        return False
    return not any(path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))


def _read_index(
    contents: _Contents, num_workers: int | None, progress: bool
) -> tuple[DatasetIndex, dict[str, list[int]]]:
    """Read the headers; return the index of the readable images and the stamps of the others."""
    root, relative_paths, shards = contents.root, contents.paths, contents.shards
    prefix = _directory_prefix(root)
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
        headers = read_headers(absolute_paths, num_workers, progress, read_header)
        for i in np.flatnonzero(headers[:, 2] == ImageFormat.UNREADABLE).tolist():
            # Once more, after its stamp was taken: a file still being written when it was first
            # read is complete now, or its stamp will differ when the index is opened the next time.
            stamp = file_stamp(root / relative_paths[i])
            headers[i] = read_header(absolute_paths[i])
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
        widths=headers[readable, 0],
        heights=headers[readable, 1],
        formats=headers[readable, 2].astype(np.uint8),
        path_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        path_offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        shards=None if shards is None else _some_of(shards, readable),
        listing=contents.listing,
    )
    return index, unreadable


def _some_of(shards: Shards, images: npt.NDArray[np.integer[Any]]) -> Shards:
    arrays = {name: getattr(shards, name)[images] for name in _SHARD_ARRAYS}
    return dataclasses.replace(shards, **arrays)


def _directory_prefix(root: Path) -> bytes:
    return os.fsencode(root).rstrip(b"/") + b"/"


def _write(place: Path, index: DatasetIndex, fingerprint: AnyFingerprint) -> None:
    meta = {"fingerprint": dataclasses.asdict(fingerprint)}
    write_index(place, index, meta, list(fingerprint.unreadable))


def write_index(
    place: Path, index: DatasetIndex, meta: dict[str, Any], unreadable_paths: Sequence[str] = ()
) -> None:
    """Store an index, with what else shall be known of it in `meta`.

    Raises:
        OSError: the place is not writable, or full.
    """
    shards = index.shards
    meta = meta | {
        "format_version": FORMAT_VERSION,
        "build_id": secrets.token_hex(8),
        "classes": index.classes,
        "shards": None if shards is None else shards.names,
        "listed_under": None if index.listing is None else _relative_to_list(index),
    }
    unreadable = b"".join(os.fsencode(path) + b"\n" for path in unreadable_paths)
    with atomic_directory(place) as directory:
        for name in _ARRAYS:
            np.save(directory / f"{name}.npy", getattr(index, name))
        for name in _SHARD_ARRAYS if shards is not None else ():
            np.save(directory / f"{name}.npy", getattr(shards, name))
        (directory / _META).write_text(json.dumps(meta), encoding="utf-8")
        (directory / _UNREADABLE).write_bytes(unreadable)
        for path in [*directory.iterdir(), directory]:
            _write_through(path)


def _relative_to_list(index: DatasetIndex) -> str:
    """The root of a list's images as seen from the list, so that both may move together."""
    assert index.listing is not None
    return "." if index.root == index.listing.parent else str(index.root)


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
        index = _map(place, root, meta)
        stale, unreadable = _check(meta, root, index)
        if (place / _META).read_text(encoding="utf-8") != text:
            return None, "another process has just replaced it"
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{place} cannot be read ({error})"
    if stale is not None:
        return None, stale
    _warn_of_unreadable(root, unreadable, place / _UNREADABLE)
    return index, None


def _map(place: Path, root: Path, meta: dict[str, Any]) -> DatasetIndex:
    # np.asarray: plain views of the maps; indexing np.memmap itself is three times as slow.
    arrays, shard_arrays = (
        {name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in names}
        for names in (_ARRAYS, _SHARD_ARRAYS if meta["shards"] is not None else ())
    )
    listed_under = meta["listed_under"]
    return DatasetIndex(
        root=root if listed_under is None else root.parent / listed_under,
        classes=tuple(meta["classes"]),
        place=place,
        shards=Shards(root, tuple(meta["shards"]), **shard_arrays) if shard_arrays else None,
        listing=None if listed_under is None else root,
        **arrays,
    )


def _check(meta: dict[str, Any], root: Path, index: DatasetIndex) -> tuple[str | None, list[str]]:
    """What has changed since a stored index was built, if anything, and the unreadable images."""
    stored = meta["fingerprint"]
    if index.listing is not None:
        of_list = ListFingerprint(**stored)
        stale = None if root.is_file() else f"{root} is no list any more"
        return stale or of_list.difference(root, index.root), list(of_list.unreadable)
    if index.shards is not None:
        of_shards = ShardsFingerprint(**stored)
        stale = None if _holds_shards(root) else f"{root} holds no shards any more"
        return stale or of_shards.difference(root), list(of_shards.unreadable)
    of_folder = Fingerprint(**stored)
    return of_folder.difference(root), list(of_folder.unreadable)


def _open_pack(root: Path) -> DatasetIndex:
    """Memory-map the index that came with packed shards."""
    place = root / PACK_INDEX
    try:
        meta = pack_meta(root)
        index = _map(place, root, meta)
        sizes = {shard["name"]: shard["bytes"] for shard in meta["pack"]["shards"]}
        effect = meta["pack"]["effect"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} cannot be read ({error}): restore it or pack anew") from error
    for name, num_bytes in sizes.items():
        stamp = file_stamp(root / name)
        if not stamp or stamp[1] != num_bytes:
            found = f"has {stamp[1]} bytes instead of {num_bytes}" if stamp else "is missing"
            raise UserError(f"{root / name} {found}: restore the shard or pack anew")
    if effect is not None:
        logger.info("the images in %s are not the original ones: %s", root, effect)
    return index


def pack_meta(root: Path) -> dict[str, Any]:
    """What `dali_rsb.pack` noted about the shards in a folder.

    Raises:
        OSError, KeyError: there is no such note.
        ValueError: it is damaged or of another version.
    """
    meta: dict[str, Any] = json.loads((root / PACK_INDEX / _META).read_text(encoding="utf-8"))
    if meta["pack"]["version"] != PACK_VERSION:
        raise ValueError(f"version {meta['pack']['version']}, not {PACK_VERSION}")
    return meta


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

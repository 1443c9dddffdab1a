"""Stores a dataset index and maps it into memory: where it lies, and whether it still holds."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.building import warn_of_unreadable
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.kinds import kind_of, kind_of_stored
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.shard_choice import is_choice
from dali_rsb.dataset.store import Fingerprint, Keys, Stamp
from dali_rsb.errors import UserError, one_line
from dali_rsb.system.atomic import atomic_directory
from dali_rsb.system.files import MissingFileError, UnreadableFileError, read_json
from dali_rsb.system.user_cache import user_cache

FORMAT_VERSION = 6  # 6: of JPEGs the end is looked for, of WebPs what follows the pixels

SUFFIX = ".dali_rsb_index"
_DEFAULT = Reading()

META, UNREADABLE = "meta.json", "unreadable.txt"

# The arrays of every index, [N] but for the keys' offsets, [N + 1], and bytes; a store has more.
_COLUMNS = {"labels": np.int64, "widths": np.int32, "heights": np.int32, "formats": np.uint8}
_KEY_BYTES, _KEY_OFFSETS = "path_bytes", "path_offsets"
_STAMPS = "stamps"  # int64 [N, 2], where images are files


def places(root: Path, cache_dir: Path | None, reading: Reading = _DEFAULT) -> list[Path]:
    """Where to look for a stored index; the last one is where to store a new one."""
    resolved = root.resolve()
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    beside = place_beside(root, reading)
    name = f"{beside.name[1:].removesuffix(SUFFIX)}-{digest}"
    if cache_dir is not None:
        return [Path(cache_dir).expanduser().absolute() / name]
    if os.access(beside.parent, os.W_OK | os.X_OK):
        return [beside]
    # An index that someone who may write there has stored beside the root serves everyone.
    return [beside, _user_cache(root) / name]


def place_beside(root: Path, reading: Reading = _DEFAULT) -> Path:
    """Where the index of a dataset is stored by default: /images/.train.dali_rsb_index for train.

    Not inside the root, where torchvision's ImageFolder would take it for a class. Each way of
    reading a dataset has a place of its own.
    """
    resolved, variant = root.resolve(), reading.stored()
    if is_choice(root):  # a pattern of shards: beside their folder, as for all of them
        resolved, variant["shards"] = resolved.parent, resolved.name
    name = resolved.name
    if variant != _DEFAULT.stored():
        text = json.dumps(variant, sort_keys=True)
        name += f".{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return resolved.with_name(f".{name}{SUFFIX}")


def _user_cache(root: Path) -> Path:
    try:
        return user_cache()
    except RuntimeError as error:
        raise UserError(
            f"{root} is not writable and this user has no home directory to store its index in: "
            "give a cache_dir"
        ) from error


def write_with_fingerprint(
    place: Path, index: DatasetIndex, fingerprint: Fingerprint, reading: Reading
) -> None:
    """Store an index with what tells later whether it still holds; raises as `write_index`."""
    assert dataclasses.is_dataclass(fingerprint)
    meta = {"fingerprint": dataclasses.asdict(fingerprint), "reading": reading.stored()}
    write_index(place, index, meta, list(fingerprint.unreadable))


def write_index(
    place: Path, index: DatasetIndex, meta: dict[str, Any], unreadable: Sequence[str] = ()
) -> None:
    """Store an index, and in its `meta.json` what else shall be known of it.

    Args:
        unreadable: keys of the images that it leaves out.

    Raises:
        OSError: the place is not writable, or full.
    """
    of_store, arrays = index.store.saved()
    arrays |= {name: getattr(index, name) for name in _COLUMNS}
    arrays |= {_KEY_BYTES: index.store.keys.data, _KEY_OFFSETS: index.store.keys.offsets}
    if index.stamps is not None:
        arrays[_STAMPS] = index.stamps
    meta = meta | {
        "format_version": FORMAT_VERSION,
        "build_id": secrets.token_hex(8),
        "classes": index.classes,
        "empty": index.empty,
        "left_out": dict(index.left_out),
        "kind": index.store.kind,
        **of_store,
    }
    with atomic_directory(place) as directory:
        for name, array in arrays.items():
            np.save(directory / f"{name}.npy", array)
        (directory / META).write_text(json.dumps(meta), encoding="utf-8")
        # For people and their tools: one in each line. `stored_unreadable` has them as they are.
        lines = [one_line(key) if {"\n", "\r"} & set(key) else key for key in unreadable]
        names = b"".join(os.fsencode(line) + b"\n" for line in lines)
        (directory / UNREADABLE).write_bytes(names)


def stored_unreadable(place: Path) -> dict[str, Stamp]:
    """The images that a stored index leaves out, as they cannot be read: their stamps by key.

    Raises:
        UserError: the index is gone, or damaged.
    """
    meta = read_json(place / META, "delete the index")
    unreadable: dict[str, Stamp] = meta.get("fingerprint", {}).get("unreadable", {})
    return unreadable


def load(place: Path, root: Path, reading: Reading) -> tuple[DatasetIndex | None, str | None]:
    """Memory-map a stored index; or None, and why it cannot be used if there is one."""
    try:
        meta = read_json(place / META, "delete it")
        if meta["format_version"] != FORMAT_VERSION:
            return None, f"it has format {meta['format_version']}, not {FORMAT_VERSION}"
        if meta["reading"] != reading.stored():
            return None, "it was read by other settings"
        index = map_index(place, root, meta)
        stale, unreadable = _check(meta, root, index)
        if read_json(place / META, "delete it")["build_id"] != meta["build_id"]:
            return None, "another process has just replaced it"
    except MissingFileError:
        return None, None
    except UnreadableFileError as error:
        return None, f"{error.path} {error.reason}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{place} cannot be read ({error})"
    if stale is not None:
        return None, stale
    warn_of_unreadable(root, unreadable, place / UNREADABLE)
    return index, None


def map_index(place: Path, root: Path, meta: dict[str, Any]) -> DatasetIndex:
    """The stored index as it lies on the disk.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError, KeyError, TypeError: it is damaged, or of a kind that is not known.
    """

    def array(name: str) -> npt.NDArray[Any]:
        return _map_array(place / f"{name}.npy")

    columns = {name: array(name) for name in _COLUMNS}
    keys = Keys(array(_KEY_BYTES), array(_KEY_OFFSETS))
    for name, dtype in _COLUMNS.items():
        if columns[name].dtype != dtype or columns[name].shape != (len(keys),):
            raise ValueError(f"{name}.npy is not of {len(keys)} images")
    stamps = array(_STAMPS) if (place / f"{_STAMPS}.npy").exists() else None
    if stamps is not None and (stamps.dtype != np.int64 or stamps.shape != (len(keys), 2)):
        raise ValueError(f"{_STAMPS}.npy is not of {len(keys)} images")
    store = kind_of_stored(meta).restore(root, keys, meta, array)
    return DatasetIndex(
        classes=tuple(meta["classes"]),
        store=store,
        stamps=stamps,
        place=place,
        empty=tuple(meta.get("empty", ())),
        left_out=meta.get("left_out", {}),
        **columns,
    )


def _map_array(path: Path) -> npt.NDArray[Any]:
    if path.exists() and not path.is_file():  # to open a pipe is to wait for a writer
        raise ValueError(f"{path.name} is no file")
    try:
        # np.asarray: plain views of the maps; indexing np.memmap itself is three times as slow.
        # "c": what `changes` writes there is seen by this process alone.
        return np.asarray(np.load(path, mmap_mode="c"))
    except OSError:
        raise
    except Exception as error:  # NumPy's parser of headers raises many types on damaged files
        raise ValueError(f"{path.name} is no array: {error}") from error


def _check(meta: dict[str, Any], root: Path, index: DatasetIndex) -> tuple[str | None, list[str]]:
    """What has changed since a stored index was built, if anything, and the unreadable images."""
    kind, found = kind_of_stored(meta), kind_of(root)
    fingerprint = kind.fingerprint(**meta["fingerprint"])
    if found is not kind:
        return f"{root} was a dataset of kind {kind.name}, and is of kind {found.name}", []
    return fingerprint.difference(index.store), list(fingerprint.unreadable)


@contextlib.contextmanager
def one_builder_at_a_time(directory: Path) -> Iterator[None]:
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

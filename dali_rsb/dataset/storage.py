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

from dali_rsb.dataset.building import (
    SHARD_ARRAYS,
    AnyFingerprint,
    holds_shards,
    warn_of_unreadable,
)
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.list_file import ListFingerprint
from dali_rsb.dataset.scan import Fingerprint
from dali_rsb.dataset.shards import Shards, ShardsFingerprint
from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_directory

FORMAT_VERSION = 4
USER_CACHE = Path("~/.cache/dali_rsb")

# In a folder of shards: the index that `dali_rsb.pack` writes, and its work until all is packed.
PACK_INDEX, PACK_WORK = "dali_rsb_index", ".packing"
PACK_VERSION = 1

META, UNREADABLE = "meta.json", "unreadable.txt"

_ARRAYS = ("labels", "widths", "heights", "formats", "path_bytes", "path_offsets")
_ARRAYS_OF_FILES = ("stamps",)  # not in an index of shards


def places(root: Path, cache_dir: Path | None) -> list[Path]:
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


def write_with_fingerprint(place: Path, index: DatasetIndex, fingerprint: AnyFingerprint) -> None:
    """Store an index with what tells later whether it still holds; raises as `write_index`."""
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
        for name in _ARRAYS_OF_FILES if shards is None else ():
            np.save(directory / f"{name}.npy", getattr(index, name))
        for name in SHARD_ARRAYS if shards is not None else ():
            np.save(directory / f"{name}.npy", getattr(shards, name))
        (directory / META).write_text(json.dumps(meta), encoding="utf-8")
        (directory / UNREADABLE).write_bytes(unreadable)
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


def load(place: Path, root: Path) -> tuple[DatasetIndex | None, str | None]:
    """Memory-map a stored index; or None, and why it cannot be used if there is one."""
    try:
        text = (place / META).read_text(encoding="utf-8")
        meta = json.loads(text)
        if meta["format_version"] != FORMAT_VERSION:
            return None, f"it has format {meta['format_version']}, not {FORMAT_VERSION}"
        index = map_index(place, root, meta)
        stale, unreadable = _check(meta, root, index)
        if (place / META).read_text(encoding="utf-8") != text:
            return None, "another process has just replaced it"
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{place} cannot be read ({error})"
    if stale is not None:
        return None, stale
    warn_of_unreadable(root, unreadable, place / UNREADABLE)
    return index, None


def map_index(place: Path, root: Path, meta: dict[str, Any]) -> DatasetIndex:
    """The stored index as it lies on the disk, unchecked."""
    in_shards = meta["shards"] is not None
    # np.asarray: plain views of the maps; indexing np.memmap itself is three times as slow. "c":
    # what `changes` writes there is seen by this process alone.
    arrays, shard_arrays = (
        {name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="c")) for name in names}
        for names in (
            _ARRAYS if in_shards else (*_ARRAYS, *_ARRAYS_OF_FILES),
            SHARD_ARRAYS if in_shards else (),
        )
    )
    listed_under = meta["listed_under"]
    return DatasetIndex(
        root=root if listed_under is None else root.parent / listed_under,
        classes=tuple(meta["classes"]),
        place=place,
        shards=Shards(root, tuple(meta["shards"]), **shard_arrays) if in_shards else None,
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
        stale = None if holds_shards(root) else f"{root} holds no shards any more"
        return stale or of_shards.difference(root), list(of_shards.unreadable)
    of_folder = Fingerprint(**stored)
    return of_folder.difference(root), list(of_folder.unreadable)


def pack_meta(root: Path) -> dict[str, Any]:
    """What `dali_rsb.pack` noted about the shards in a folder.

    Raises:
        OSError, KeyError: there is no such note.
        ValueError: it is damaged or of another version.
    """
    meta: dict[str, Any] = json.loads((root / PACK_INDEX / META).read_text(encoding="utf-8"))
    if meta["pack"]["version"] != PACK_VERSION:
        raise ValueError(f"version {meta['pack']['version']}, not {PACK_VERSION}")
    return meta


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

"""Opens the index of a dataset: the stored one where it still holds, else a new one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from pathlib import Path

from dali_rsb.dataset.building import read_index, warn_of_unreadable
from dali_rsb.dataset.classes import check_declared, with_classes, with_declared
from dali_rsb.dataset.counting import count_left_out, describe_indexing, warn_of_other_order
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.kinds import list_contents
from dali_rsb.dataset.packing.note import PACK_INDEX, PACK_WORK, is_pack, read_pack
from dali_rsb.dataset.reading import Reading
from dali_rsb.dataset.shard_choice import is_choice
from dali_rsb.dataset.storage import (
    UNREADABLE,
    load,
    map_index,
    one_builder_at_a_time,
    places,
    write_with_fingerprint,
)
from dali_rsb.dataset.store import file_stamp
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)

_DEFAULT = Reading()


def open_index(
    root: str | os.PathLike[str],
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    reading: Reading = _DEFAULT,
) -> DatasetIndex:
    """Open the index of a dataset; build it if need be.

    `root` is a folder of class folders (`root/CLASS/IMAGE.jpg`), a text file with `path<TAB>label`
    in each line (see `list_file.read_list`), or a folder of tar shards, written by
    `python -m dali_rsb.pack` or by others, one of them, or a pattern (see `shard_choice` and
    `shards.list_shards`). For the same images all of them give the same rows.

    Classes and images are in the order of torchvision's ImageFolder, or as `reading` says; a pack
    keeps the order of what was packed. What is no image, and images whose header cannot be read,
    are left out and counted by reason in one line. Several processes may open the same index at
    once: one builds it.

    The index is stored in `cache_dir` under the root's name and a hash of its resolved path, else
    beside the root (see `storage.place_beside`), else (that is not writable) in
    `$XDG_CACHE_HOME/dali_rsb` (else `~/.cache/dali_rsb`) as in `cache_dir`.

    Args:
        root: the folder or list.
        cache_dir: where to store the index.
        num_workers: threads that read headers, 32 by default; more may help on network storage.
        progress: show a progress bar while building, if stderr is a terminal.
        reading: order and level of the classes, their names, and where shards have labels.

    Raises:
        UserError: `root` is missing or none of the above, a class folder without images is not
            declared, there are images of an undeclared class, a shard is missing, or no image is
            readable.
    """
    index = _as_found(root, cache_dir, num_workers, progress, reading, is_joined=False)
    return _declared(index, reading)


def open_as_found(
    root: str | os.PathLike[str], cache_dir: Path | None = None, reading: Reading = _DEFAULT
) -> DatasetIndex:
    """Open an index for a caller who joins the classes to others by himself.

    Classes without images are legal, and `reading.classes` has no say. For the arguments see
    `open_index`.

    Raises:
        UserError: as `open_index`, but for what it says of classes.
    """
    return _as_found(root, cache_dir, None, True, reading, is_joined=True)


def check_exists(root: Path) -> None:
    """See whether there is anything at a dataset's path: a command looks before it imports PyTorch.

    Raises:
        UserError: there is nothing.
    """
    root = root.expanduser().absolute()
    if not root.exists() and not is_choice(root):
        raise UserError(
            f"{root} does not exist: give a folder of class folders or of tar shards, or a list "
            "of images"
        )


def _as_found(
    root: str | os.PathLike[str],
    cache_dir: Path | None,
    num_workers: int | None,
    progress: bool,
    reading: Reading,
    is_joined: bool,
) -> DatasetIndex:
    """The stored index of a dataset, or a new one, with its own classes.

    Args:
        is_joined: the caller joins the classes by name: neither empty ones nor their order matter.
    """
    root = Path(root).expanduser().absolute()
    check_exists(root)
    if is_pack(root):
        return _open_pack(root)
    if (root / PACK_WORK).is_dir():
        raise UserError(
            f"{root} is an unfinished pack: give `python -m dali_rsb.pack` the same arguments "
            "again, and it goes on"
        )
    candidates = places(root, cache_dir, reading)
    for place in candidates:
        index, _ = load(place, root, reading)
        if index is not None:
            return index
    return _build(candidates[-1], root, num_workers, progress, reading, is_joined)


def _declared(index: DatasetIndex, reading: Reading) -> DatasetIndex:
    """The index with the classes that are declared; without a declaration none may be empty."""
    if reading.classes is not None and reading.whose is not None:
        return with_classes(index, reading.classes, reading.whose)
    if reading.classes is not None:
        return with_declared(index, reading.classes)
    check_declared(index.empty, index.origin)
    return index


def _build(
    place: Path,
    root: Path,
    num_workers: int | None,
    progress: bool,
    reading: Reading,
    is_joined: bool,
) -> DatasetIndex:
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
    with one_builder_at_a_time(place.parent):
        index, stale = load(place, root, reading)
        if index is not None:  # another process has built it meanwhile
            return index
        if stale is not None:
            logger.info("the index of %s is built again: %s", root, stale)
        start_s = time.monotonic()
        contents = list_contents(root, progress, reading)
        if not is_joined and reading.classes is None:
            check_declared(contents.empty, root)
        index, unreadable = read_index(
            contents.store, contents.labels, contents.classes, num_workers, progress
        )
        index = dataclasses.replace(
            index, empty=contents.empty, left_out=count_left_out(contents.left_out, unreadable)
        )
        level, line = describe_indexing(index, time.monotonic() - start_s)
        logger.log(level, line)
        if not is_joined:
            warn_of_other_order(index, reading.class_order)
        try:
            write_with_fingerprint(place, index, contents.fingerprint(unreadable), reading)
        except OSError as error:
            logger.warning(
                "cannot store the index of %s in %s (%s), it will be built at every start: "
                "name a writable cache_dir",
                root,
                place,
                error.strerror,
            )
            warn_of_unreadable(root, list(unreadable))
        else:
            index = dataclasses.replace(index, place=place)
            warn_of_unreadable(root, list(unreadable), place / UNREADABLE)
        return index


def _open_pack(root: Path) -> DatasetIndex:
    """Memory-map the index that came with packed shards."""
    note, meta = read_pack(root, "restore it or pack again")
    place = root / PACK_INDEX
    try:
        index = map_index(place, root, meta)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} cannot be read ({error}): restore it or pack again") from error
    for shard in note.shards:
        stamp = file_stamp(root / shard.name)
        if not stamp or stamp[1] != shard.bytes:
            found = f"has {stamp[1]} bytes instead of {shard.bytes}" if stamp else "is missing"
            raise UserError(f"{root / shard.name} {found}: restore the shard or pack again")
    if note.effect is not None:
        logger.info("the images in %s are not the original ones: %s", root, note.effect)
    return index

"""Opens the index of a dataset: the stored one where it still holds, else one built anew."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from pathlib import Path

from dali_rsb.dataset.building import list_contents, read_index, warn_of_unreadable
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.scan import file_stamp
from dali_rsb.dataset.storage import (
    META,
    PACK_INDEX,
    PACK_WORK,
    UNREADABLE,
    load,
    map_index,
    one_builder_at_a_time,
    pack_meta,
    places,
    write_with_fingerprint,
)
from dali_rsb.errors import UserError

logger = logging.getLogger(__name__)


def open_index(
    root: str | os.PathLike[str],
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Open the index of a dataset; build it if need be.

    `root` is a folder of class folders (`root/CLASS/IMAGE.jpg`), a text file with `path<TAB>label`
    in each line (see `list_file.read_list`), or a folder of tar shards, written by
    `python -m dali_rsb.pack` or by others (see `shards.list_shards`). For the same images all of
    them give the same rows.

    Classes and images are in the order of timm's folder reader: natural sort, the folder an image
    lies in is its class. Images whose header cannot be read are left out with one warning, which
    names the list of them. Several processes may open the same index at once: one builds it.

    The index is stored in `cache_dir` under the root's name and a hash of its resolved path, else
    beside the root (see `storage.place_beside`), else (that is not writable) in
    `~/.cache/dali_rsb` as in `cache_dir`.

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
    if (root / PACK_INDEX / META).is_file():
        return _open_pack(root)
    if (root / PACK_WORK).is_dir():
        raise UserError(
            f"{root} is not packed to the end: give `python -m dali_rsb.pack` the same arguments "
            "again, and it goes on"
        )
    candidates = places(root, cache_dir)
    for place in candidates:
        index, _ = load(place, root)
        if index is not None:
            return index
    return _build(candidates[-1], root, num_workers, progress)


def _build(place: Path, root: Path, num_workers: int | None, progress: bool) -> DatasetIndex:
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
    with one_builder_at_a_time(place.parent):
        index, stale = load(place, root)
        if index is not None:  # another process has built it meanwhile
            return index
        if stale is not None:
            logger.info("the index of %s is built anew: %s", root, stale)
        start_s = time.monotonic()
        contents, fingerprint_of = list_contents(root, progress)
        index, unreadable = read_index(contents, num_workers, progress)
        logger.info(
            "indexed %d images of %d classes in %s in %.1f s",
            len(index),
            index.num_classes,
            root,
            time.monotonic() - start_s,
        )
        fingerprint = fingerprint_of(unreadable)
        try:
            write_with_fingerprint(place, index, fingerprint)
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
    place = root / PACK_INDEX
    try:
        meta = pack_meta(root)
        index = map_index(place, root, meta)
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

"""The work of a pack until it is finished: who packs, what, and which shards are done."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.packing.note import PACK_WORK
from dali_rsb.dataset.packing.options import PackOptions
from dali_rsb.dataset.tiles.layout import TILE_ARRAYS, Tiles
from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.files import read_json

logger = logging.getLogger(__name__)

_PLAN = "plan.json"


def claim(target: Path, digest: str, options: PackOptions) -> Path:
    """Make the folder of records, or find that of an interrupted pack.

    Args:
        target: folder of the shards.
        digest: see `PackNote`.

    Raises:
        OSError: it cannot be written.
        UserError: the interrupted pack was of other images or options, or its plan is damaged.
    """
    work = target / PACK_WORK
    work.mkdir(parents=True, exist_ok=True)
    plan = {"digest": digest, "options": str(options)}
    if not (work / _PLAN).exists():
        with atomic_file(work / _PLAN) as file:
            file.write(json.dumps(plan).encode())
    fix = "give another folder or remove it"
    found = read_json(work / _PLAN, fix)
    if found != plan:
        other = found.get("options") if isinstance(found, dict) else found
        raise UserError(
            f"{target} holds an unfinished pack of other images or with other options ({other}): "
            f"{fix}"
        )
    return work


@contextlib.contextmanager
def only_packer(work: Path) -> Iterator[None]:
    """Keep other processes from packing into the same folder; where it has no locks, trust."""
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is packing into {work.parent}: let it end") from error
        except OSError:
            logger.debug("%s cannot be locked", work)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Record:
    """A finished shard.

    Attributes:
        num_bytes, sha256: size and checksum of the file.
        columns: int64 [N, len(COLUMNS)], of its images in the order in which they lie there.
        tiles: of these images.
        not_tiled: how many of them have none though they should, by reason.
    """

    num_bytes: int
    sha256: str
    columns: npt.NDArray[np.int64]
    tiles: Tiles
    not_tiled: dict[str, int]

    def save(self, file: BinaryIO) -> None:
        """Write the record as an `.npz` file."""
        np.savez(
            file,
            num_bytes=self.num_bytes,
            sha256=self.sha256,
            columns=self.columns,
            not_tiled=json.dumps(self.not_tiled),
            **vars(self.tiles),
        )

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record; raises what NumPy does on damaged files."""
        with np.load(path) as stored:
            columns = stored["columns"]
            if columns.shape[1:] != (len(COLUMNS),):
                raise ValueError("a record of another version")
            return cls(
                int(stored["num_bytes"]),
                str(stored["sha256"]),
                columns,
                Tiles(*(stored[name] for name in TILE_ARRAYS)),
                json.loads(str(stored["not_tiled"])),
            )


COLUMNS = (
    "offset",
    "length",
    "width",
    "height",
    "format",
    "bytes_before",
    "is_reencoded",
    "is_undecodable",
    "is_raw",
)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def finished(target: Path, work: Path) -> list[Record]:
    """Records of the shards that an interrupted pack has finished."""
    for partial in target.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()
    records: list[Record] = []
    for number in itertools.count():
        path, shard = work / f"{shard_name(number)}.npz", target / shard_name(number)
        record = _read_record(path)
        if record is None or not shard.exists() or shard.stat().st_size != record.num_bytes:
            break
        records.append(record)
    if records:
        count = sum(len(record.columns) for record in records)
        logger.info("going on after %d shards with %d images", len(records), count)
    return records


def _read_record(path: Path) -> Record | None:
    """The record of a shard; None if there is none, or it is damaged."""
    try:
        return Record.load(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None

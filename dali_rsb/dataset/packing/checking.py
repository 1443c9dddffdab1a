"""Compares the files of a pack with their checksums."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dali_rsb.dataset.packing.note import read_pack
from dali_rsb.errors import UserError
from dali_rsb.system.files import UnreadableFileError

_HASH_BYTES = 1 << 24


def verify(target: Path, progress: bool = True) -> int:
    """Compare the shards in `target` with their checksums; return how many there are.

    Raises:
        UserError: there is no pack in `target`, or shards are missing or damaged.
    """
    target = target.expanduser().absolute()
    fix = "give the folder that `python -m dali_rsb.pack SRC DST` has written"
    try:
        note, _ = read_pack(target, fix)
    except UnreadableFileError as error:
        raise UserError(
            f"{target} holds no finished pack ({error.path.name} {error.reason}): {fix}"
        ) from error
    show = progress and sys.stderr.isatty()
    total = sum(shard.bytes for shard in note.shards)
    damaged = []
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, disable=not show) as bar:
        for shard in note.shards:
            if _sha256(target / shard.name, bar) != shard.sha256:
                damaged.append(shard.name)
    if damaged:
        names = ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else "")
        raise UserError(
            f"{len(damaged)} of {len(note.shards)} shards in {target} are missing or damaged: "
            f"{names}; restore them from a copy or pack again"
        )
    return len(note.shards)


def _sha256(path: Path, bar: tqdm[Any]) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
                bar.update(len(block))
    except OSError:
        return None
    return digest.hexdigest()

"""What a pack says of itself: the note that `dali_rsb.pack` stores with the index of its shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dali_rsb.dataset.storage import META
from dali_rsb.system.files import UnreadableFileError, read_json

# In a folder of shards: the index that `dali_rsb.pack` writes, and its work until all is packed.
PACK_INDEX, PACK_WORK = "dali_rsb_index", ".packing"
PACK_VERSION = 1


@dataclass(frozen=True)
class PackedFile:
    """A file of a pack: its name in there, size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PackNote:
    """What `dali_rsb.pack` noted about a finished pack.

    Attributes:
        version: `PACK_VERSION` of the program that wrote it.
        digest: of images and options; the same for the same pack.
        options: in words.
        effect: what packing has changed in the images, in words; None if nothing.
        report: fields of the `PackReport`.
        shards: the files.
    """

    version: int
    digest: str
    options: str
    effect: str | None
    report: dict[str, Any]
    shards: list[PackedFile]


def is_pack(root: Path) -> bool:
    """Whether a finished pack lies in a folder."""
    return (root / PACK_INDEX / META).is_file()


def read_pack(root: Path, fix: str) -> tuple[PackNote, dict[str, Any]]:
    """The note of the pack in a folder, and all of its index's `meta.json`.

    Args:
        fix: what the user can do if it cannot be read, for the message.

    Raises:
        UnreadableFileError: there is no such note, or it is damaged or of another version.
    """
    path = root / PACK_INDEX / META
    meta = read_json(path, fix)
    try:
        version = meta["pack"]["version"]
        if version != PACK_VERSION:
            reason = f"is of version {version}, not {PACK_VERSION}"
            raise UnreadableFileError(path, reason, fix)
        shards = [PackedFile(**shard) for shard in meta["pack"]["shards"]]
        return PackNote(**{**meta["pack"], "shards": shards}), meta
    except (KeyError, TypeError) as error:
        raise UnreadableFileError(path, f"is not the note of a pack ({error})", fix) from error

"""Writes one tar shard as WebDataset's programs read it: KEY.jpg (or .png, ...) and KEY.cls."""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

_TAR_BLOCK = 512


class ShardWriter:
    """Writes the members of one tar file; the same members always give the same bytes.

    Args:
        file: the shard, empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def has_room(self, num_bytes: int, shard_bytes: int) -> bool:
        """Whether an image still fits in; one always does."""
        # Two headers, the label, the padding of the image and the end of the file.
        needed = num_bytes + 4 * _TAR_BLOCK + tarfile.RECORDSIZE
        return self._num_bytes == 0 or self._num_bytes + needed <= shard_bytes

    def add(self, key: str, extension: str, data: bytes, label: str) -> int:
        """Add an image and its label; return the offset of the image's bytes."""
        offset = self._add_member(f"{key}.{extension}", data)
        self._add_member(f"{key}.cls", label.encode())
        return offset

    def finish(self) -> tuple[int, str]:
        """Write the end; return size in bytes and SHA-256 of the whole."""
        end = self._num_bytes + 2 * _TAR_BLOCK
        self._write(bytes(2 * _TAR_BLOCK + -end % tarfile.RECORDSIZE))
        return self._num_bytes, self._digest.hexdigest()

    def _add_member(self, name: str, data: bytes) -> int:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        offset = self._num_bytes
        self._write(data)
        self._write(bytes(-len(data) % _TAR_BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)

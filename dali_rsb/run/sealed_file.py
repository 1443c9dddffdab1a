"""Files that carry the SHA-256 of their own content: a checkpoint with one flipped bit is noticed.

PyTorch's checkpoints are ZIP archives, and an archive may end in a comment: that is where the
checksum goes, so that every reader of such files reads these too, and no second file can get lost.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

_MARK = b"dali_rsb sha256:"
_COMMENT_SIZE = len(_MARK) + 64
# The record that ends an archive, and the length of the comment in its last two bytes.
_END_MARK, _END_SIZE = b"PK\x05\x06", 22
_END_WITH_COMMENT = re.compile(
    re.escape(_END_MARK) + b".{16}" + re.escape(_COMMENT_SIZE.to_bytes(2, "little")), re.DOTALL
)
# Bytes at the end of a damaged file, cut or with others behind it, in which readers of archives
# look for the end record.
_SEARCHED = 2**16
_BLOCK = 2**22


class DamagedFileError(Exception):
    """The content is not what was written."""


class SealingWriter:
    """Writes an archive, then its checksum as the archive's comment.

    Attributes:
        error: what the file raised first; PyTorch reports a full disk as an error of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._held = b""  # the last bytes, which may be the end record
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        whole = self._held + bytes(data)
        self._put(whole[:-_END_SIZE])
        self._held = whole[-_END_SIZE:]
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> str:
        """Write the checksum; returns the comment.

        Raises:
            ValueError: what was written is no archive without a comment.
        """
        if not self._held.startswith(_END_MARK) or self._held[-2:] != b"\0\0":
            raise ValueError("not an archive: its end record is missing")
        self._put(self._held[:-2] + _COMMENT_SIZE.to_bytes(2, "little"))
        comment = _MARK + self._hash.hexdigest().encode()
        self._file.write(comment)
        return comment.decode()

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._hash.update(data)


def read_seal(path: Path) -> str | None:
    """Read a whole file and compare it with its checksum.

    Returns:
        The comment with the checksum; None if the file never had one.

    Raises:
        DamagedFileError: the content or the checksum has changed.
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # Else what we wrote a moment ago would come from memory and prove nothing.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(file.fileno()).st_size
        left = size - _COMMENT_SIZE
        while left > 0:
            block = file.read(min(left, _BLOCK))
            if not block:
                break
            digest.update(block)
            left -= len(block)
        comment = file.read()
        if comment == _MARK + digest.hexdigest().encode():
            return comment.decode()
        file.seek(max(0, size - _SEARCHED))
        tail = file.read()
    if _MARK in tail or _END_WITH_COMMENT.search(tail):
        raise DamagedFileError("its SHA-256 is not the one that was written")
    return None

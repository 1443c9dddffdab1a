"""A tar shard that is open, and reading parts of it.

By `pread` and not by a memory map: where a file has been cut short, or its storage fails, looking
at a map ends the process with a bus error.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_rsb.errors import UserError

_Bytes = npt.NDArray[np.uint8]


class ShardFile:
    """An open shard; it is closed when nobody holds it any more.

    Args:
        path: of the shard.
        descriptor: a file descriptor of it, which this takes over.

    Attributes:
        stamp: mtime in nanoseconds and size in bytes at its opening.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        weakref.finalize(self, os.close, descriptor)
        self.stamp = self.current_stamp()

    def current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_mtime_ns, status.st_size

    def check_size(self) -> None:
        """Raise a UserError if the shard has become shorter than it was at its opening."""
        if self.current_stamp()[1] < self.stamp[1]:
            raise self._cut_short()

    def will_need(self, start: int, end: int) -> None:
        """Have the kernel read some bytes from the disk, if they are not in memory."""
        os.posix_fadvise(self.descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill memory with the bytes from a place on.

        Raises:
            UserError: they cannot be read, or the file ends before them.
        """
        done = 0
        while done < len(target):
            try:
                num_read = os.preadv(self.descriptor, [target[done:]], start + done)
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be read ({error.strerror}): restore the shard and resume"
                ) from error
            if not num_read:
                raise self._cut_short()
            done += num_read

    def read(self, start: int, end: int) -> bytes:
        """The bytes from one place to another; raises as `read_into` does."""
        found = bytearray(max(0, end - start))
        self.read_into(memoryview(found), start)
        return bytes(found)

    def _cut_short(self) -> UserError:
        return UserError(
            f"{self.path} has been cut short while in use: restore the shard and resume"
        )


class BatchMemory:
    """Memory for the bytes of batches, used again when nobody holds a batch's arrays any more.

    Fresh memory would cost a page fault for every 4 kB. It is pageable: CUDA has taken what it
    copies from there before the copy's caller goes on.
    """

    def __init__(self) -> None:
        self._free: list[_Bytes] = []

    def lend(self, num_bytes: int) -> _Bytes:
        """uint8 [num_bytes], of any content; it comes back when its views are gone too."""
        found = None
        # Whoever gives memory back may do so at any moment, on any thread: each step is one
        # operation of the list. What is too small has been outgrown, and is let go.
        while found is None or len(found) < num_bytes:
            try:
                found = self._free.pop()
            except IndexError:
                found = np.empty(1 + num_bytes * 5 // 4, np.uint8)  # later batches fit as well
        # Views of an array that NumPy made of other memory refer to that array.
        lent = np.frombuffer(found.data, np.uint8)
        weakref.finalize(lent, self._free.append, found)
        return lent[:num_bytes]


def read_parts(memory: BatchMemory, parts: list[tuple[ShardFile, int, int]]) -> list[_Bytes]:
    """Parts of shards, uint8 [num_bytes] each, side by side in memory of a batch.

    The kernel is told of all of them before the first byte is waited for. Page by page it would
    guess what comes next: at random places that read three times as many bytes and took three
    times as long.

    Args:
        parts: the shard of each, its first byte, and the one after its last.

    Raises:
        UserError: one cannot be read.
    """
    for shard, start, end in parts:
        shard.will_need(start, end)
    buffer = memory.lend(sum(end - start for _, start, end in parts))
    arrays, place = [], 0
    for shard, start, end in parts:
        array = buffer[place : place + end - start]
        shard.read_into(array.data, start)
        arrays.append(array)
        place += end - start
    return arrays

"""Reads windows of images that are stored as pixels.

By `pread` and not by a memory map: where a file has been cut short, a map ends the process.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.raw.layout import BYTES_PER_PIXEL
from dali_rsb.errors import UserError

_Pixels = npt.NDArray[np.uint8]

# Each thread reads into one buffer again and again. Fresh memory would cost a page fault for every
# 4 kB: 0.31 ms for the rows of an A3 crop of 500 x 375 pixels, which are read in 0.05 ms.
_OF_THREAD = threading.local()


def read_window(place: Sequence[int]) -> _Pixels:
    """The pixels of a window, uint8 [height, width, 3].

    They are those of the thread: its next call overwrites them.

    Args:
        place: a row of `RawWindows.places`.

    Raises:
        OSError: the file cannot be read, or ends before the window does.
    """
    descriptor, start, row_bytes, left, height, width = place
    num_bytes = height * row_bytes
    scratch = getattr(_OF_THREAD, "scratch", None)
    if scratch is None or len(scratch) < num_bytes:
        scratch = _OF_THREAD.scratch = np.empty(num_bytes, np.uint8)
    buffer = scratch[:num_bytes]
    if os.preadv(descriptor, [buffer.data], start) != num_bytes:
        raise OSError("the file ends before the image does")
    rows = buffer.reshape(height, row_bytes // BYTES_PER_PIXEL, BYTES_PER_PIXEL)
    return rows[:, left : left + width]


class WindowReader:
    """Reads the windows of batches into arrays of their own, on some threads.

    The memory of a batch is used again when nobody holds one of its arrays any more. It is
    pageable: CUDA has taken what it copies from there before the copy's caller goes on.
    """

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pixels")
        self._free: list[_Pixels] = []

    def __del__(self) -> None:
        self._pool.shutdown()

    def read(self, places: npt.NDArray[np.int64]) -> list[_Pixels]:
        """The pixels of windows, uint8 [height, width, 3] each; of one pixel where a place is -1.

        Args:
            places: int64 [B, NUM_COLUMNS], see `RawWindows`.

        Raises:
            UserError: a file cannot be read, or ends too early.
        """
        sizes = np.where(places[:, :1] < 0, 1, places[:, -2:])
        ends = np.cumsum(BYTES_PER_PIXEL * sizes.prod(axis=1))
        memory = self._memory(int(ends[-1]))
        parts = np.split(memory[: ends[-1]], ends[:-1])
        arrays = [
            part.reshape(height, width, BYTES_PER_PIXEL)
            for part, (height, width) in zip(parts, sizes.tolist(), strict=True)
        ]
        jobs = [
            (place, array)
            for place, array in zip(places.tolist(), arrays, strict=True)
            if place[0] >= 0
        ]
        futures = [self._pool.submit(_read_into, *job) for job in jobs]
        wait(futures)  # all of them, also if one fails: they write to memory of this batch
        try:
            for future in futures:
                future.result()
        except OSError as error:
            raise UserError(
                f"a shard with images as pixels cannot be read ({error.strerror or error}): "
                "restore it and resume"
            ) from error
        return arrays

    def _memory(self, num_bytes: int) -> _Pixels:
        """At least so many bytes, which come back when the array and its views are gone."""
        fitting = (i for i, free in enumerate(self._free) if len(free) >= num_bytes)
        place = next(fitting, None)
        roomy = num_bytes * 5 // 4  # so that later batches fit as well
        found = np.empty(roomy, np.uint8) if place is None else self._free.pop(place)
        # Views of an array that NumPy made of other memory refer to that array.
        lent = np.frombuffer(found.data, np.uint8)
        weakref.finalize(lent, _take_back, self._free, found)
        return lent


def _take_back(free: list[_Pixels], memory: _Pixels) -> None:
    # Smaller ones have been outgrown: the pool keeps as many as batches are in flight.
    free[:] = [other for other in free if len(other) >= len(memory)]
    free.append(memory)


def _read_into(place: Sequence[int], target: _Pixels) -> None:
    target[...] = read_window(place)

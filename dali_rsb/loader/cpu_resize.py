"""The resize of the CPU training graph: Pillow's to the bit, where Numba runs.

`fn.resize`, which the GPU graph keeps, is 0.17 levels away from Pillow and takes several times the
CPU time. Without Numba, PyTorch's kernel does the work (see `torch_resize`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import numpy as np
from nvidia.dali.pipeline import do_not_convert

from dali_rsb.dataset.raw.places import DESCRIPTOR, NUM_COLUMNS
from dali_rsb.dataset.raw.reading import read_window
from dali_rsb.kernels.numba_support import numba_obstacle
from dali_rsb.loader.torch_resize import Window, resize_by_torch
from pipelines.types import INTERPOLATIONS

# Each thread gets its share of a batch in a few pieces, so that none idles behind a large image.
_PIECES_PER_THREAD = 4

# Below, a thread takes longer to begin than it saves.
_IMAGES_PER_PIECE = 8

# PyTorch's kernel alone: below, the threads spend more time waiting for Python's lock than they
# save. At 32 pixels two of them take three times the CPU time of one, at 64 twice, in more time; at
# 128 a tenth more, in two thirds of the time.
_MIN_THREADED_SIZE_PX = 96


class CpuResize:
    """Crops, resizes and mirrors a batch on some threads; called from inside the DALI graph.

    Args:
        size_px: side of the square results.
        num_threads: how many images are resized at a time.
    """

    def __init__(self, size_px: int, num_threads: int) -> None:
        self._size_px = size_px
        self._max_pieces = num_threads * _PIECES_PER_THREAD
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="resize")

    def __del__(self) -> None:
        # When its pipeline goes, the threads are gone too, and not a moment later.
        self._pool.shutdown()

    # DALI would rewrite the function for its conditionals, and run it more slowly than `fn.resize`.
    @do_not_convert
    def __call__(
        self,
        images: Sequence[np.ndarray],
        starts: Sequence[np.ndarray],
        ends: Sequence[np.ndarray],
        interpolations: Sequence[np.ndarray],
        places: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Resize the windows of a batch.

        Args:
            images: uint8 [H, W, 3] each, contiguous.
            starts, ends: the window in whole pixels as float32 (y, x); swapped ends mirror.
            interpolations: a DALIInterpType each, as int32.
            places: where images lie that are read here, see `RawWindows`; no others, if given.

        Returns:
            uint8 [size_px, size_px, 3] each.

        Raises:
            OSError: an image cannot be read, or its file ends before it does.
            ValueError: a window is empty or leaves its image.
        """
        batch, size_px = len(images), self._size_px
        results = np.empty((batch, size_px, size_px, 3), np.uint8)
        windows = np.concatenate([np.stack(starts), np.stack(ends)], axis=1).astype(np.int64)
        is_cubic = np.stack(interpolations) == INTERPOLATIONS["bicubic"]
        raw = np.stack(places) if len(places) else np.empty((0, NUM_COLUMNS), np.int64)
        if numba_obstacle() is None:
            failed = np.zeros(batch, np.bool_)
            of_images = _in_memory(images)
            resize = importlib.import_module("dali_rsb.kernels.resize_numba").resize_numba
            work = partial(resize, *of_images, windows, is_cubic, raw, results, failed)
            self._share_out(work, batch)
            for row in np.flatnonzero(failed).tolist():
                _raise_why(windows[row], images[row].shape, raw[row] if len(raw) else None)
        else:
            work = partial(_by_torch, images, windows, is_cubic, raw, results)
            self._share_out(work, batch, is_threaded=size_px >= _MIN_THREADED_SIZE_PX)
        return list(results)

    def _share_out(
        self, work: Callable[[int, int], None], batch: int, is_threaded: bool = True
    ) -> None:
        """Call `work(first, step)`, for every `step`-th image from `first` on, on the threads."""
        pieces = min(self._max_pieces, batch // _IMAGES_PER_PIECE) if is_threaded else 1
        if pieces <= 1:
            work(0, 1)
            return
        futures = [self._pool.submit(work, first, pieces) for first in range(pieces)]
        # All of them, also if one fails: DALI frees the images once this function is left.
        wait(futures)
        for future in futures:
            future.result()


@do_not_convert
def _in_memory(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses, int64 [B], and (height, width), int64 [B, 2], of contiguous images."""
    if not all(image.flags.c_contiguous and image.shape[2:] == (3,) for image in images):
        raise ValueError("images must be contiguous [H, W, 3]")
    addresses = [image.__array_interface__["data"][0] for image in images]
    shapes = [image.shape[:2] for image in images]
    return np.array(addresses, np.int64), np.array(shapes, np.int64)


@do_not_convert
def _raise_why(window: np.ndarray, shape: tuple[int, ...], raw: np.ndarray | None) -> None:
    """Raise what the kernel found wrong with an image."""
    if raw is not None and raw[DESCRIPTOR] >= 0:
        shape = read_window(raw.tolist()).shape  # says why, if it cannot be read
    raise ValueError(
        f"the window {window.tolist()} (y, x to y, x) is empty or leaves an image of "
        f"{list(shape[:2])}, or its file could not be read for a moment"
    )


@do_not_convert
def _by_torch(
    images: Sequence[np.ndarray],
    windows: np.ndarray,
    is_cubic: np.ndarray,
    raw: np.ndarray,
    results: np.ndarray,
    first: int,
    step: int,
) -> None:
    for row in range(first, len(images), step):
        is_raw = len(raw) > 0 and raw[row, DESCRIPTOR] >= 0
        image = partial(read_window, raw[row].tolist()) if is_raw else images[row]
        resize_by_torch(Window(image, windows[row].tolist(), bool(is_cubic[row]), results[row]))

"""Crop, resize and mirror on a CPU, with the pixels of Pillow to the bit, compiled by Numba.

The arithmetic is that of Pillow's `resize`: first along x, then along y, weights as whole numbers
of 22 binary places, and uint8 in between. (Pillow 13 begins along y where a window is much taller
than wide, which changes pixels by a level or two; all before it, with which the recipes were
trained, do as is done here.) Nothing here holds the interpreter lock. Importing this module
compiles it: some seconds the first time, which Numba's cache saves the next process.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import int32, uint8

from dali_rsb.kernels.numba_compiled import compiled
from dali_rsb.kernels.numba_memory import TURNED, pointer, pread, turn

_PLACES = 22  # binary places of a weight: 32 bits less those of a sum of levels
_HALF = 1 << (_PLACES - 1)
# The sums of 16 rows of a column of pixels: as many as the vector registers hold.
_COLUMN = 3 * TURNED
_MIN_WIDTH_PX = 6  # 16 bytes at least
_DESCRIPTOR, _START, _ROW_BYTES, _LEFT, _HEIGHT, _WIDTH = range(6)  # columns of `raw`


@compiled()
def _filter(x, is_cubic):  # type: ignore[no-untyped-def]
    """The triangle, or the cubic with a = -0.5, at a distance in pixels of the result."""
    x = abs(x)
    if not is_cubic:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@compiled()
def _max_taps(in_size, size, is_cubic):  # type: ignore[no-untyped-def]
    support = (2.0 if is_cubic else 1.0) * max(in_size / size, 1.0)
    return 2 * int(np.ceil(support)) + 1


@compiled()
def _weigh(in_size, size, is_cubic, mirrors, first, count, weights):  # type: ignore[no-untyped-def]
    """For each pixel of a result: the first it is made of, how many, and their weights."""
    scale = in_size / size
    widening = max(scale, 1.0)
    support = (2.0 if is_cubic else 1.0) * widening
    real = np.empty(weights.shape[1])
    for pixel in range(size):
        centre = (pixel + 0.5) * scale
        begin = max(int(centre - support + 0.5), 0)
        taps = min(int(centre + support + 0.5), in_size) - begin
        total = 0.0
        for tap in range(taps):
            real[tap] = _filter((tap + begin - centre + 0.5) * (1.0 / widening), is_cubic)
            total += real[tap]
        place = size - 1 - pixel if mirrors else pixel
        first[place], count[place] = begin, taps
        for tap in range(taps):
            weight = real[tap] / total if total != 0.0 else real[tap]
            rounding = 0.5 if weight >= 0.0 else -0.5
            weights[place, tap] = int32(int(weight * (1 << _PLACES) + rounding))


@compiled()
def _round(sums, levels):  # type: ignore[no-untyped-def]
    for i in range(levels.shape[0]):
        levels[i] = uint8(min(max(sums[i] >> int32(_PLACES), int32(0)), int32(255)))


@compiled()
def _resize_rows(source, start, stride, shape, coefficients, room, target):  # type: ignore[no-untyped-def]
    """Along x, 16 rows at a time: turned, so that vector instructions take the rows of a column.

    The last rows, and the last bytes of rows, overlap with those before.

    Args:
        source: uint8, with rows of `stride` bytes from `start` on.
        shape: (height, width) of the window in pixels, 16 and 6 at least.
        coefficients: (first, count, weights), see `_weigh`.
        room: uint8 arrays for 16 turned rows of the window, and of the result.
        target: uint8, of `height` rows of the result, which has 6 columns at least.
    """
    (height, width), (first, count, weights), (columns, turned) = shape, coefficients, room
    size = first.shape[0]
    num_in, num_out = 3 * width, 3 * size
    sums = np.empty(_COLUMN, np.int32)
    for top in range(0, height, TURNED):
        row = min(top, height - TURNED)
        for byte in range(0, num_in, TURNED):
            place = min(byte, num_in - TURNED)
            turn(source, start + row * stride + place, stride, columns, TURNED * place, TURNED)
        for x in range(size):
            _sum_columns(columns, _COLUMN * first[x], count[x], weights[x], sums)
            _round(sums, turned[_COLUMN * x : _COLUMN * (x + 1)])
        for byte in range(0, num_out, TURNED):
            place = min(byte, num_out - TURNED)
            turn(turned, TURNED * place, TURNED, target, row * num_out + place, num_out)


@compiled()
def _sum_columns(columns, start, count, weights, sums):  # type: ignore[no-untyped-def]
    """The weighted sum of `count` columns of 16 pixels, four at a time."""
    for i in range(_COLUMN):
        sums[i] = int32(_HALF)
    tap = 0
    while tap + 4 <= count:
        w0, w1, w2, w3 = weights[tap], weights[tap + 1], weights[tap + 2], weights[tap + 3]
        part = columns[start : start + 4 * _COLUMN]
        for i in range(_COLUMN):
            sums[i] += (
                w0 * int32(part[i])
                + w1 * int32(part[_COLUMN + i])
                + w2 * int32(part[2 * _COLUMN + i])
                + w3 * int32(part[3 * _COLUMN + i])
            )
        tap += 4
        start += 4 * _COLUMN
    while tap < count:
        part = columns[start : start + _COLUMN]
        for i in range(_COLUMN):
            sums[i] += weights[tap] * int32(part[i])
        tap += 1
        start += _COLUMN


@compiled()
def _resize_columns(source, stride, first, count, weights, target):  # type: ignore[no-untyped-def]
    """Along y: each row of `target` is a weighted sum of rows of `source`, four at a time."""
    size, length = target.shape
    sums = np.empty(length, np.int32)
    for y in range(size):
        for i in range(length):
            sums[i] = int32(_HALF)
        tap, row = 0, first[y] * stride
        while tap + 4 <= count[y]:
            w0, w1 = weights[y, tap], weights[y, tap + 1]
            w2, w3 = weights[y, tap + 2], weights[y, tap + 3]
            row0 = source[row : row + length]
            row1 = source[row + stride : row + stride + length]
            row2 = source[row + 2 * stride : row + 2 * stride + length]
            row3 = source[row + 3 * stride : row + 3 * stride + length]
            for i in range(length):
                sums[i] += (
                    w0 * int32(row0[i])
                    + w1 * int32(row1[i])
                    + w2 * int32(row2[i])
                    + w3 * int32(row3[i])
                )
            tap += 4
            row += 4 * stride
        while tap < count[y]:
            w0, row0 = weights[y, tap], source[row : row + length]
            for i in range(length):
                sums[i] += w0 * int32(row0[i])
            tap += 1
            row += stride
        _round(sums, target[y])


@compiled()
def _resize(source, start, stride, shape, is_cubic, mirrors, room, target):  # type: ignore[no-untyped-def]
    """Resize a window that lies in `source`, uint8, into `target`, uint8 [size, size, 3].

    Args:
        shape: (height, width) of the window.
        mirrors: whether along y, and along x.
        room: uint8 arrays for the window with zeros around it, 16 turned rows of it and of the
            result, and all its rows after the resize along x; see `resize_numba`.
    """
    (height, width), size = shape, target.shape[0]
    padded, columns, turned, between = room
    rows, wide = max(height, TURNED), max(width, _MIN_WIDTH_PX)
    if rows > height or wide > width:  # too small for whole vectors
        padded[: 3 * rows * wide] = uint8(0)
        for y in range(height):
            for i in range(3 * width):
                padded[3 * wide * y + i] = source[start + y * stride + i]
        source, start, stride = padded, 0, 3 * wide
    out = max(size, _MIN_WIDTH_PX)
    first, count = np.zeros(out, np.int64), np.zeros(out, np.int64)
    weights = np.zeros((out, _max_taps(width, size, is_cubic)), np.int32)
    _weigh(width, size, is_cubic, mirrors[1], first, count, weights)
    coefficients, of_rows = (first, count, weights), (columns, turned)
    _resize_rows(source, start, stride, (rows, wide), coefficients, of_rows, between)
    weights = np.zeros((size, _max_taps(height, size, is_cubic)), np.int32)
    _weigh(height, size, is_cubic, mirrors[0], first, count, weights)
    _resize_columns(between, 3 * out, first, count, weights, target.reshape(size, 3 * size))


@compiled()
def _read(descriptor, start, target):  # type: ignore[no-untyped-def]
    """Fill `target` from a file; False where it ends before, or cannot be read."""
    done = 0
    while done < target.shape[0]:
        got = pread(descriptor, target[done:], target.shape[0] - done, start + done)
        if got <= 0:
            return False
        done += got
    return True


@compiled(
    "void(int64[::1], int64[:,::1], int64[:,::1], boolean[::1], int64[:,::1], "
    "uint8[:,:,:,::1], boolean[::1], int64, int64)"
)
def resize_numba(  # type: ignore[no-untyped-def]
    addresses, shapes, windows, is_cubic, raw, results, failed, first, step
):
    """Resize every `step`-th window of a batch from `first` on.

    Args:
        addresses: int64 [B], where images lie in memory: uint8 [height, width, 3], contiguous.
        shapes: int64 [B, 2], their (height, width).
        windows: int64 [B, 4], (start y, start x, end y, end x) in pixels of the image; swapped
            ends mirror.
        is_cubic: bool [B], bicubic or else bilinear.
        raw: int64 [B, 6], where images are read from instead: an open file, the byte at which a
            window's first row begins, bytes of a row, and the window in there as left, height and
            width in pixels. Of no image where it has no rows, or a row begins with -1.
        results: uint8 [B, size, size, 3].
        failed: bool [B], set for images that cannot be read, and for windows that are empty or
            leave their image: nothing else would keep these from other memory.
    """
    size = max(results.shape[1], _MIN_WIDTH_PX)
    # Room for the largest, once: fresh memory costs a page fault for every 4 kB.
    rows, wide, num_read = TURNED, _MIN_WIDTH_PX, 0
    for i in range(first, addresses.shape[0], step):
        rows = max(rows, abs(windows[i, 2] - windows[i, 0]))
        wide = max(wide, abs(windows[i, 3] - windows[i, 1]))
        if raw.shape[0] > 0 and raw[i, _DESCRIPTOR] >= 0:
            num_read = max(num_read, raw[i, _HEIGHT] * raw[i, _ROW_BYTES])
    read = np.empty(num_read, np.uint8)
    room = (
        np.empty(3 * max(TURNED * wide, rows * _MIN_WIDTH_PX), np.uint8),
        np.empty(_COLUMN * wide, np.uint8),
        np.empty(_COLUMN * size, np.uint8),
        np.empty(3 * rows * size, np.uint8),
    )
    for i in range(first, addresses.shape[0], step):
        is_raw = raw.shape[0] > 0 and raw[i, _DESCRIPTOR] >= 0
        height, width = (
            (raw[i, _HEIGHT], raw[i, _WIDTH]) if is_raw else (shapes[i, 0], shapes[i, 1])
        )
        top, bottom = min(windows[i, 0], windows[i, 2]), max(windows[i, 0], windows[i, 2])
        left, right = min(windows[i, 1], windows[i, 3]), max(windows[i, 1], windows[i, 3])
        fits = top >= 0 and left >= 0 and bottom <= height and right <= width
        if is_raw:
            fits = fits and 3 * (raw[i, _LEFT] + width) <= raw[i, _ROW_BYTES]
        if not fits or top == bottom or left == right:
            failed[i] = True
            continue
        if is_raw:
            stride, start = raw[i, _ROW_BYTES], 3 * raw[i, _LEFT]
            source = read[: raw[i, _HEIGHT] * stride]
            if not _read(raw[i, _DESCRIPTOR], raw[i, _START], source):
                failed[i] = True
                continue
        else:
            stride, start = 3 * shapes[i, 1], 0
            source = numba.carray(pointer(addresses[i]), (shapes[i, 0] * stride,))
        start += top * stride + 3 * left
        mirrors = (windows[i, 0] > windows[i, 2], windows[i, 1] > windows[i, 3])
        shape = (bottom - top, right - left)
        _resize(source, start, stride, shape, is_cubic[i], mirrors, room, results[i])

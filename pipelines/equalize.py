"""Histogram equalisation as Pillow computes it, from DALI operators that exist on both devices."""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode


def equalize(images: DataNode, *, size_px: tuple[int, int], device: str) -> DataNode:
    """Equalise the histogram of each channel as PIL.ImageOps.equalize does.

    Pillow maps a level with n darker pixels to min(255, (n + s // 2) // s), where the whole number
    s is m // 255 for m pixels darker than the brightest; with s = 0 a channel stays as it is.
    `fn.equalize` maps a level to round(255 c / t) for c pixels up to that level and t in all, those
    of the lowest level left out. On the image inverted, c = m - n, so that Pillow's value is
    q - (c + a) // s, with q = (m + s // 2) // s and 0 <= a = q s + s - 1 - m - s // 2 < s.

    Padding brings t to 510 s - 1 and adds a, or a + s, to every c. Because the scale exceeds
    1 / (2 s) by a trifle, no rounding meets a tie: the two results are floor(x) and floor(x + 1/2)
    for x = (c + a) / (2 s) + 1/2. Their sum is floor(2 x) = (c + a) // s + 1.

    The result is Pillow's but for a channel with m = 509, which has no room for t = 509: some of
    the 509 pixels are off by one level.

    Args:
        images: uint8 HWC RGB images on `device`, all of the size `size_px`.
        size_px: height and width.
        device: "cpu" or "gpu".

    Returns:
        Images of the same size, type, layout and device.
    """
    height_px, width_px = size_px
    num_first_rows = -(-2 * height_px // 255) - (-height_px // width_px)
    num_other_rows = height_px - num_first_rows
    ranks = np.arange(1, num_first_rows * width_px + 1, dtype=np.int32)
    first_ranks = types.Constant(
        ranks.repeat(3).reshape(num_first_rows, width_px, 3), layout="FWC", device=device
    )
    column_ranks = first_ranks[:1]
    one_row = column_ranks > 0
    white = types.Constant(255, dtype=types.UINT8)

    # Rows count as frames (F), because repeating one with `fn.sequence_rearrange` is ten times as
    # fast as arithmetic that broadcasts.
    rows = fn.reshape(images, layout="FWC")
    brightest = fn.reductions.max(rows, axes=[0, 1], keep_dims=True) * one_row
    inverted = _repeat(brightest, height_px) - rows
    is_darker = fn.reinterpret(inverted > 0, dtype=types.UINT8)
    darker = fn.reductions.sum(is_darker, axes=[0, 1], keep_dims=True)
    darker = fn.cast(darker, dtype=types.INT32) * one_row
    step = darker // 255
    rounded = darker + step // 2
    quotient_plus_one = rounded // math.max(step, 1) + 1

    # As many rows of padding as of image: ones, 255s, and zeros, which do not count. The paddings
    # differ in the first rows only. These hold all of the ones, less than 2 s, and what is left
    # when the other rows have been filled with whole columns of 255s.
    padding_end = 510 * step - darker
    ones_end = quotient_plus_one * step - rounded
    more_ones_end = ones_end + step
    num_columns = math.min((padding_end - more_ones_end) // num_other_rows, width_px)
    other_rows = _repeat((column_ranks <= num_columns) * white, num_other_rows)
    first_rows = (first_ranks < padding_end - num_columns * num_other_rows) * white
    white_minus_one = types.Constant(254, dtype=types.UINT8)
    padded = fn.cat(
        inverted,
        first_rows - (first_ranks < ones_end) * white_minus_one,
        other_rows,
        inverted,
        first_rows - (first_ranks < more_ones_end) * white_minus_one,
        other_rows,
        axis=0,
    )
    padded = fn.reshape(padded, shape=[2, 2 * height_px, width_px, 3], layout="FHWC")
    halves = fn.reshape(fn.equalize(padded), shape=[4, height_px, width_px, 3], layout="FHWC")
    smaller = fn.element_extract(halves, element_map=[0])
    larger = fn.element_extract(halves, element_map=[2])

    # Zero for s = 0, so that the image itself can be added.
    minuend = fn.cast(quotient_plus_one * (step > 0), dtype=types.INT16)
    difference = fn.reshape(_repeat(minuend, height_px), layout="HWC") - smaller - larger
    unchanged = rows * _repeat(fn.cast(step == 0, dtype=types.UINT8), height_px)
    return fn.cast(difference, dtype=types.UINT8) + fn.reshape(unchanged, layout="HWC")


def _repeat(row: DataNode, num_rows: int) -> DataNode:
    return fn.sequence_rearrange(row, new_order=[0] * num_rows)

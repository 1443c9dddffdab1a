"""Histogram equalisation as Pillow computes it, from DALI operators that exist on both devices."""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert


@do_not_convert
def equalize(images: DataNode, *, size_px: tuple[int, int], device: str) -> DataNode:
    """Equalise the histogram of each channel as PIL.ImageOps.equalize does.

    `fn.equalize` rounds another scale than Pillow. It runs twice here, on the inverted image with
    two paddings, and the sum of both results gives Pillow's quotient; docs/equalize.md has the
    derivation. The result is Pillow's but for a channel with 509 pixels darker than its brightest
    level: some of those 509 are off by one level.

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

    # Each padding has as many rows as the image: ones, 255s, and zeros, which do not count. The two
    # differ in their first rows only, which hold all of the ones (less than two steps) and those
    # 255s that do not fill whole columns of the other rows.
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


@do_not_convert
def _repeat(row: DataNode, num_rows: int) -> DataNode:
    return fn.sequence_rearrange(row, new_order=[0] * num_rows)

"""Normalise, mix and cast in one launch: the device kernel of `dali_rsb.kernels.mix`.

A thread reads eight neighbouring bytes (four for float32) and writes their results as 16 bytes.
Images run fastest in the grid: the programs in flight work on the same piece of all images, so
that an image that was read for itself lies in the L2 cache when its partner reads it.
"""

# Triton gives the arguments of kernels their types, and constants have upper-case names.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
BLOCK = 512  # groups of one program, four for each thread
# Odd sizes and views at odd addresses cannot be read in whole groups. They are rare and slower;
# their many addresses and masks leave registers for fewer groups.
CUT_BLOCK = 256


@triton.jit
def _mix_kernel(
    images,  # uint8 [B, num_values]
    output,  # [B, num_values]: out
    partner,  # int64 [B], if MIX
    pixel_lam,  # float32 [B], if MIX
    box,  # int32 [B, 4], if MIX
    num_values,  # of an image, 3 * H * W
    num_groups,  # of GROUP values in an image, the last one perhaps cut off
    row_values,  # 3 * W
    scale_r,
    scale_g,
    scale_b,
    shift_r,
    shift_g,
    shift_b,
    MIX: tl.constexpr,
    WHOLE: tl.constexpr,  # no group is cut off, and all lie at aligned addresses
    GROUP: tl.constexpr,  # at most row_values + 1: a group then touches two rows at most
    BLOCK: tl.constexpr,  # groups
):
    image = tl.program_id(0)
    group = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    lane = tl.arange(0, GROUP)[None, :]
    first = group * GROUP
    place = first + lane
    if WHOLE:
        # Masks that hold for a group, and strides that GROUP divides, leave the accesses whole.
        valid = group < num_groups
        stride = tl.cast(num_groups, tl.int64) * GROUP
    else:
        valid = place < num_values
        stride = tl.cast(num_values, tl.int64)

    # Which channel a lane has depends on the group, but the lanes' differences do not.
    channel = first % 3
    scale = _by_channel(channel, lane, scale_r, scale_g, scale_b)
    shift = _by_channel(channel, lane, shift_r, shift_g, shift_b)

    own_place = images + image * stride + place
    if MIX:
        lam = tl.load(pixel_lam + image)
        other_place = images + tl.load(partner + image) * stride + place
        # A value that counts nothing is not read, nor is one behind the end.
        own_weight = tl.where(valid, lam, 0.0)
        other_weight = tl.where(valid, 1.0 - lam, 0.0)
        top, bottom = tl.load(box + 4 * image), tl.load(box + 4 * image + 1)
        left, right = tl.load(box + 4 * image + 2), tl.load(box + 4 * image + 3)
        start = tl.program_id(1) * (BLOCK * GROUP)
        first_row, last_row = start // row_values, (start + (BLOCK * GROUP - 1)) // row_values
        if (top <= last_row) & (bottom > first_row) & (top < bottom) & (left < right):
            # The piece of the box in the group's first row, and that in the row below.
            row = first // row_values
            begin, end = _box_in_row(row, top, bottom, left, right, row_values)
            begin_below, end_below = _box_in_row(row + 1, top, bottom, left, right, row_values)
            last = first + (GROUP - 1)
            meets = ((last >= begin) & (first < end)) | (
                (last >= begin_below) & (first < end_below)
            )
            lies_outside = (first < begin) | (last >= end)  # with at least one value
            own_mask = (own_weight != 0) & lies_outside
            other_mask = (other_weight != 0) | (valid & meets)
            own = tl.load(own_place, mask=own_mask, other=0).to(tl.float32)
            other = tl.load(other_place, mask=other_mask, other=0).to(tl.float32)
            inside = ((place >= begin) & (place < end)) | (
                (place >= begin_below) & (place < end_below)
            )
            pixels = tl.where(inside, other, own * own_weight + other * other_weight)
        else:
            own = tl.load(own_place, mask=own_weight != 0, other=0).to(tl.float32)
            other = tl.load(other_place, mask=other_weight != 0, other=0).to(tl.float32)
            pixels = own * own_weight + other * other_weight
    else:
        pixels = tl.load(own_place, mask=valid, other=0).to(tl.float32)
    result = pixels * scale + shift
    tl.store(output + image * stride + place, result.to(output.dtype.element_ty), mask=valid)


@triton.jit
def _box_in_row(row, top, bottom, left, right, row_values):
    """First value inside the box and first behind it, of each row; equal where it has none."""
    meets = (row >= top) & (row < bottom)
    start = row * row_values
    return tl.where(meets, start + 3 * left, 0), tl.where(meets, start + 3 * right, 0)


@triton.jit
def _by_channel(channel, lane, r, g, b):
    """The constant of each lane of a group whose first lane has the given channel."""
    first = tl.where(channel == 0, r, tl.where(channel == 1, g, b))
    second = tl.where(channel == 0, g, tl.where(channel == 1, b, r))
    third = tl.where(channel == 0, b, tl.where(channel == 1, r, g))
    return tl.where(lane % 3 == 0, first, tl.where(lane % 3 == 1, second, third))


def normalize_mix_triton(
    images: Tensor,
    scale: tuple[float, float, float],
    shift: tuple[float, float, float],
    dtype: torch.dtype,
    partner: Tensor | None,
    pixel_lam: Tensor | None,
    box: Tensor | None,
) -> Tensor:
    """`normalize_mix` on the current GPU, with (x / 255 - mean) / std as x * scale + shift."""
    batch, height, width, _ = images.shape
    output = torch.empty(images.shape, dtype=dtype, device=images.device)
    num_values = height * width * 3
    group = 8 if dtype.itemsize == 2 and num_values % 8 == 0 and width > 2 else 4
    images = images.contiguous()
    whole = num_values % group == 0 and images.data_ptr() % 16 == 0
    num_groups = triton.cdiv(num_values, group)
    block = BLOCK if whole else CUT_BLOCK
    _mix_kernel[batch, triton.cdiv(num_groups, block)](
        images,
        output,
        None if partner is None else partner.contiguous(),
        None if pixel_lam is None else pixel_lam.contiguous(),
        None if box is None else box.contiguous(),
        num_values,
        num_groups,
        3 * width,
        *scale,
        *shift,
        MIX=partner is not None,
        WHOLE=whole,
        GROUP=group,
        BLOCK=block,
        num_warps=NUM_WARPS,
    )
    return output.permute(0, 3, 1, 2)

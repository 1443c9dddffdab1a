"""RandAugment on uint8 batches: the fifteen operations of timm, with the pixels of Pillow 13.

`rand_augment_plain` defines the meaning, in PyTorch and in Pillow's own arithmetic: double where
Pillow computes in double, float where it computes in float, truncated where it truncates. On a GPU
two Triton launches a layer do the same, to the bit, and on a CPU functions that Numba compiles.
"""

from __future__ import annotations

import enum
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dali_rsb.kernels.numba_support import on_threads, runs_numba
from dali_rsb.kernels.triton_support import runs_triton

_Color = tuple[int, int, int]


class Branch(enum.IntEnum):
    """What a layer does to an image, and what its value then means.

    The codes are those of `pipelines.operands.Branch`. From EQUALIZE to CONTRAST a level of the
    result depends on the level and its channel alone: these are table look-ups.
    """

    SKIP = 0
    WARP = 1
    EQUALIZE = 2
    AUTO_CONTRAST = 3
    SOLARIZE = 4  # threshold
    BRIGHTNESS = 5  # factor
    SOLARIZE_ADD = 6  # addend
    POSTERIZE = 7  # bit mask
    CONTRAST = 8  # factor, as in the two below
    COLOR = 9
    SHARPNESS = 10


def rand_augment(
    images: Tensor,
    branch: Tensor,
    value: Tensor,
    matrix: Tensor,
    fill: _Color,
    *,
    may_overwrite: bool = False,
) -> Tensor:
    """Apply drawn operations to images, layer after layer; nothing here waits for a GPU.

    An image pays for the operations that it drew. Without Triton a GPU computes the same by
    `rand_augment_plain`, which does wait; so does a CPU without Numba, in many times the time.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        branch: uint8 [B, L], a `Branch` for each layer.
        value: float32 [B, L], see `Branch`.
        matrix: float64 [B, L, 2, 3], of warps: maps output to input positions (x, y, 1) in pixels,
            whole numbers at the corners of pixels, as Pillow's Image.transform takes it.
        fill: colour of what a warp brings in from outside the image.
        may_overwrite: whether the result may take the place of the images, which spares a CPU a
            copy. Otherwise they stay as they are.

    Returns:
        uint8 [B, H, W, 3], contiguous.
    """
    if runs_triton(images):
        from dali_rsb.kernels.rand_augment_triton import rand_augment_triton

        return rand_augment_triton(images, branch, value, matrix, fill)
    if runs_numba(images):
        if not (may_overwrite and images.is_contiguous()):
            images = images.clone(memory_format=torch.contiguous_format)
        _rand_augment_in_place(images, branch, value, matrix, fill)
        return images
    return rand_augment_plain(images, branch, value, matrix, fill)


def _rand_augment_in_place(
    images: Tensor, branch: Tensor, value: Tensor, matrix: Tensor, fill: _Color
) -> None:
    from dali_rsb.kernels.rand_augment_numba import rand_augment_numba

    arrays = (tensor.contiguous().numpy() for tensor in (images, branch, value, matrix))
    on_threads(partial(rand_augment_numba, *arrays, np.array(fill, np.uint8)), len(images))


def rand_augment_plain(
    images: Tensor, branch: Tensor, value: Tensor, matrix: Tensor, fill: _Color
) -> Tensor:
    """`rand_augment` in PyTorch, on any device that has float64."""
    images = images.clone(memory_format=torch.contiguous_format)
    for layer in range(branch.shape[1]):
        codes = branch[:, layer]
        for code in codes.unique().tolist():
            if code == Branch.SKIP:
                continue
            rows = (codes == code).nonzero()[:, 0]
            drawn = images[rows]
            if code == Branch.WARP:
                drawn = _warp(drawn, matrix[rows, layer], fill)
            elif code == Branch.COLOR:
                drawn = _blend(_luma(drawn)[..., None], drawn, value[rows, layer])
            elif code == Branch.SHARPNESS:
                drawn = _blend(_smooth(drawn), drawn, value[rows, layer])
            else:
                drawn = _look_up(drawn, _tables(Branch(code), drawn, value[rows, layer]))
            images[rows] = drawn
    return images


def _warp(images: Tensor, matrix: Tensor, fill: _Color) -> Tensor:
    """Bilinear and truncated. A position inside the image never blends with what lies outside."""
    batch, height, width, _ = images.shape
    y, x = (
        torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
        for size in (height, width)
    )
    xx, xy, x_shift, yx, yy, y_shift = matrix.reshape(batch, 6, 1, 1).unbind(1)
    x, y = xx * x + xy * y[:, None] + x_shift, yx * x + yy * y[:, None] + y_shift
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = (torch.where(inside, place - 0.5, 0.0) for place in (x, y))
    left, top = x.floor(), y.floor()
    x_weight, y_weight = (x - left)[..., None], (y - top)[..., None]
    columns = [(left.long() + step).clamp(0, width - 1) for step in (0, 1)]
    image = torch.arange(batch, device=images.device)[:, None, None]
    rows = []
    for step in (0, 1):
        row = (top.long() + step).clamp(0, height - 1)
        first, second = (images[image, row, column].double() for column in columns)
        rows.append(first + (second - first) * x_weight)
    warped = (rows[0] + (rows[1] - rows[0]) * y_weight).to(torch.uint8)
    outside = torch.tensor(fill, dtype=torch.uint8, device=images.device)
    return torch.where(inside[..., None], warped, outside)


def _luma(images: Tensor) -> Tensor:
    """int32 [B, H, W], as Pillow converts RGB to L."""
    red, green, blue = images.int().unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(images: Tensor) -> Tensor:
    """int32 [B, H, W, 3]: Pillow's ImageFilter.SMOOTH, which copies the outermost pixels.

    A weighted sum of whole numbers over 13 never lies half-way between two of them, so that
    rounding it in whole numbers is what Pillow's float32 comes to.
    """
    levels = images.int()
    height, width = images.shape[1:3]
    if height < 3 or width < 3:
        return levels
    total = 4 * levels[:, 1:-1, 1:-1]
    for top in range(3):
        for left in range(3):
            total = total + levels[:, top : top + height - 2, left : left + width - 2]
    smooth = levels.clone()
    smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26
    return smooth


def _blend(degenerate: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """uint8: PIL.Image.blend of whole numbers by the factors [B], in float32 and truncated."""
    factor = factor.reshape(-1, *[1] * (levels.dim() - 1))
    mixed = degenerate.float() + factor * (levels.int() - degenerate).float()
    return mixed.clamp(0, 255).to(torch.uint8)


def _tables(code: Branch, images: Tensor, value: Tensor) -> Tensor:
    """uint8 [B, 3, 256]: what each level becomes, channel by channel."""
    level = torch.arange(256, device=images.device).expand(len(images), 3, 256)
    if code == Branch.EQUALIZE:
        return _equalizing(images, level)
    if code == Branch.AUTO_CONTRAST:
        return _stretching(images, level)
    if code == Branch.CONTRAST:
        num_pixels = images.shape[1] * images.shape[2]
        total = _luma(images).sum((1, 2))
        grey = (2 * total + num_pixels) // (2 * num_pixels)  # the mean, rounded half up
        return _blend(grey[:, None, None], level, value)
    if code == Branch.BRIGHTNESS:
        return _blend(torch.zeros_like(level), level, value)
    value = value.long()[:, None, None]
    if code == Branch.SOLARIZE:
        return torch.where(level < value, level, 255 - level).to(torch.uint8)
    if code == Branch.SOLARIZE_ADD:
        return torch.where(level < 128, (level + value).clamp(max=255), level).to(torch.uint8)
    return (level & value).to(torch.uint8)  # POSTERIZE


def _equalizing(images: Tensor, level: Tensor) -> Tensor:
    """Pillow's ImageOps.equalize: (n + step // 2) // step for a level with n darker pixels."""
    places = images.reshape(len(images), -1, 3).transpose(1, 2).long()
    counts = torch.zeros_like(level, memory_format=torch.contiguous_format)
    counts.scatter_add_(2, places, torch.ones_like(places))
    darker = counts.cumsum(2) - counts
    brightest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    step = darker.gather(2, brightest) // 255
    equalized = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equalized, level).to(torch.uint8)


def _stretching(images: Tensor, level: Tensor) -> Tensor:
    """Pillow's ImageOps.autocontrast; a channel of one level stays as it is.

    In double, because many products are whole numbers but for the last bit.
    """
    low = images.amin((1, 2)).double()[..., None]
    high = images.amax((1, 2)).double()[..., None]
    # A number divided by a tensor would be multiplied by its reciprocal.
    scale = torch.full_like(low, 255.0) / (high - low)
    stretched = (level.double() * scale + -low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, level.double()).to(torch.uint8)


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    places = images.reshape(len(images), -1, 3).transpose(1, 2).long()
    return tables.gather(2, places).transpose(1, 2).reshape(images.shape)

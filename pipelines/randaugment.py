"""RandAugment as DALI operators without randomness: the host draws, they compute pixels.

The fifteen operations of timm's RandAugment share ten branches. A sample takes one branch per
layer, so that it pays for the operation it drew and nothing when it drew none. Pixel semantics are
those of Pillow 13; every operator exists for both devices with the same arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert

from pipelines.equalize import equalize
from pipelines.inputs import InputSpec
from pipelines.operands import Branch, branch_input, matrix_input, value_input

# ImageFilter.SMOOTH of Pillow, the degenerate image of ImageEnhance.Sharpness.
SMOOTH_KERNEL = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13

# Turns the round-to-nearest of `fn.brightness_contrast` into Pillow's truncation. It falls short of
# one half so that a product which is a whole number stays that number on both devices.
TRUNCATION_SHIFT = -0.4999 / 255


@do_not_convert
def randaugment_inputs(num_layers: int) -> tuple[InputSpec, ...]:
    """Return the inputs that `rand_augment` reads, in a fixed order."""
    return tuple(
        spec
        for layer in range(num_layers)
        for spec in (
            InputSpec(branch_input(layer), types.UINT8, ndim=0),
            InputSpec(value_input(layer), types.FLOAT, ndim=0),
            InputSpec(matrix_input(layer), types.FLOAT, ndim=2),
        )
    )


def rand_augment(
    images: DataNode,
    inputs: Mapping[str, DataNode],
    *,
    num_layers: int,
    size_px: tuple[int, int],
    fill: tuple[int, int, int],
    device: str,
) -> DataNode:
    """Apply the drawn operations, layer after layer, to a batch of images.

    To be called from a pipeline definition with `enable_conditionals=True`.

    Args:
        images: uint8 HWC RGB images on `device`, all of the size `size_px`.
        inputs: at least the CPU inputs named by `randaugment_inputs(num_layers)`.
        size_px: height and width.
        fill: colour of the pixels that a warp moves in from outside the image.
        device: "cpu" or "gpu".

    Returns:
        Images of the same size, type, layout and device.
    """
    for layer in range(num_layers):
        images = _layer(
            images,
            inputs[branch_input(layer)],
            inputs[value_input(layer)],
            inputs[matrix_input(layer)],
            size_px,
            fill,
            device,
        )
    return images


def _layer(
    images: DataNode,
    branch: DataNode,
    value: DataNode,
    matrix: DataNode,
    size_px: tuple[int, int],
    fill: tuple[int, int, int],
    device: str,
) -> DataNode:
    # Named arguments are CPU tensors; operands of arithmetic live where the images live.
    operand = value.gpu() if device == "gpu" else value
    # A tree of decisions and not a chain: at each decision above an operator, DALI splits and
    # merges all that the operator reads, constants too, at 10 to 50 microseconds a time.
    if branch == Branch.SKIP.value:
        pass
    elif branch <= Branch.AUTO_CONTRAST.value:
        if branch == Branch.WARP.value:
            images = _warp(images, matrix, size_px, fill, device)
        elif branch == Branch.EQUALIZE.value:
            images = equalize(images, size_px=size_px, device=device)
        else:
            images = _auto_contrast(images, size_px)
    elif branch <= Branch.POSTERIZE.value:
        if branch <= Branch.BRIGHTNESS.value:
            if branch == Branch.SOLARIZE.value:
                images = images ^ _step(images, slope=510.0, shift=1.0 - 2.0 * value)
            else:
                images = fn.brightness_contrast(
                    images, brightness=value, brightness_shift=TRUNCATION_SHIFT
                )
        else:
            level = fn.cast(operand, dtype=types.UINT8)
            if branch == Branch.SOLARIZE_ADD.value:
                images = images + (_step(images, slope=-510.0, shift=255.0) & level)
            else:
                images = images & level
    elif branch == Branch.CONTRAST.value:
        mean = fn.reductions.mean(_luma(images, types.GRAY))
        images = _blend(math.floor(mean + 0.5), images, operand, size_px)
    else:
        if branch == Branch.COLOR.value:
            degenerate = _luma(images, types.RGB)
        else:
            degenerate = _smooth(images, size_px, device)
        images = _blend(degenerate, images, operand, size_px)
    return images


@do_not_convert
def _warp(
    images: DataNode,
    matrix: DataNode,
    size_px: tuple[int, int],
    fill: tuple[int, int, int],
    device: str,
) -> DataNode:
    """Resample bilinearly with clamped borders, then paint what lies outside the image.

    Pillow does the same: a position outside the image takes the fill colour, one inside never
    blends with it. Pillow truncates where this rounds, which is 0.46 levels on average and never
    more than one; resampling in float32 and truncating would add 4 % to the CPU time of a loader.
    `fn.experimental.warp_perspective` takes a quarter of the CPU time of `fn.warp_affine`.
    """
    filled = _constant(np.broadcast_to(np.array(fill, np.uint8), (*size_px, 3)), device)
    opaque = _constant(np.full((*size_px, 3), 255, np.uint8), device)
    warped = fn.experimental.warp_perspective(
        images,
        matrix=matrix,
        interp_type=types.INTERP_LINEAR,
        border_mode="replicate",
        pixel_origin="center",
    )
    inside = fn.experimental.warp_perspective(
        opaque,
        matrix=matrix,
        interp_type=types.INTERP_NN,
        border_mode="constant",
        pixel_origin="center",
    )
    return ((warped ^ filled) & inside) ^ filled


@do_not_convert
def _step(images: DataNode, slope: float, shift: DataNode | float) -> DataNode:
    """Return slope * pixel + 255 * shift, clamped to 0..255.

    With a slope of 510 either way, the pixels on the two sides of the step give 0 and 255.
    """
    return fn.brightness_contrast(images, brightness=slope, brightness_shift=shift)


@do_not_convert
def _blend(
    degenerate: DataNode, images: DataNode, factor: DataNode, size_px: tuple[int, int]
) -> DataNode:
    """Return PIL.Image.blend(degenerate, images, factor), in float32 and truncated as there."""
    degenerate = fn.cast(degenerate, dtype=types.FLOAT)
    return _truncate(degenerate + (images - degenerate) * factor, size_px)


@do_not_convert
def _luma(images: DataNode, output_type: types.DALIImageType) -> DataNode:
    """Return the luma of the images, with one channel (GRAY) or repeated in three (RGB)."""
    luma = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
    if output_type == types.GRAY:
        return luma
    return fn.color_space_conversion(luma, image_type=types.GRAY, output_type=output_type)


@do_not_convert
def _smooth(images: DataNode, size_px: tuple[int, int], device: str) -> DataNode:
    """Return the images smoothed, except for the outermost pixels, which Pillow copies."""
    height_px, width_px = size_px
    interior = np.zeros((height_px, width_px, 3), np.uint8)
    interior[1:-1, 1:-1] = 255
    smooth = fn.filter(images, types.Constant(SMOOTH_KERNEL, device=device))
    return ((smooth ^ images) & _constant(interior, device)) ^ images


@do_not_convert
def _auto_contrast(images: DataNode, size_px: tuple[int, int]) -> DataNode:
    """Stretch each channel to 0..255; a channel of one value stays as it is.

    In double precision, because Pillow truncates and many products are whole numbers but for the
    last bit.
    """
    low = fn.cast(fn.reductions.min(images, axes=[0, 1], keep_dims=True), dtype=types.FLOAT64)
    high = fn.cast(fn.reductions.max(images, axes=[0, 1], keep_dims=True), dtype=types.FLOAT64)
    flat = low == high  # then scaled by 1 and shifted by 0
    scale = (255.0 - 254.0 * flat) / (high - low + flat)
    return _truncate(images * scale + (low * flat - low) * scale, size_px)


@do_not_convert
def _truncate(images: DataNode, size_px: tuple[int, int]) -> DataNode:
    """Convert real HWC images to uint8: clamped to 0..255, the fraction dropped.

    `fn.cast` and the image operators round; `fn.slice` converts as C does, on both devices, and in
    a third of the time. Over one axis it is faster than over three.
    """
    height_px, width_px = size_px
    num_values = height_px * width_px * 3
    flat = fn.slice(
        fn.reshape(images, shape=[num_values], layout=""),
        start=[0],
        shape=[num_values],
        axes=[0],
        dtype=types.UINT8,
    )
    return fn.reshape(flat, shape=[height_px, width_px, 3], layout="HWC")


@do_not_convert
def _constant(value: np.ndarray, device: str) -> DataNode:
    return types.Constant(np.ascontiguousarray(value), layout="HWC", device=device)

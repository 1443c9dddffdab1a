"""RandAugment in two launches a layer: the device kernels of `dali_rsb.kernels.rand_augment`.

The first makes a table of 256 levels for each channel of an image whose operation is a look-up,
from statistics of the image where it needs some; the second applies tables, warps, blends and 3x3
filters. An image's last operation writes the output, the one before it the scratch, and so on by
turns: an image is read and written once for each operation that it drew, and copied if it drew
none.

Pillow's arithmetic is kept to the bit, so the launches forbid fused multiply-adds. Warps and
AutoContrast compute in double, as Pillow does.
"""

# Triton gives the arguments of kernels their types, and constants have upper-case names.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dali_rsb.kernels.rand_augment import Branch

TABLE_WARPS = 8
TABLE_BLOCK = 2048  # pixels that a program reads at once; it goes over a whole image
APPLY_WARPS = 4
APPLY_BLOCK = 256  # pixels of one program

_SKIP = tl.constexpr(Branch.SKIP.value)
_WARP = tl.constexpr(Branch.WARP.value)
_EQUALIZE = tl.constexpr(Branch.EQUALIZE.value)
_AUTO_CONTRAST = tl.constexpr(Branch.AUTO_CONTRAST.value)
_SOLARIZE = tl.constexpr(Branch.SOLARIZE.value)
_BRIGHTNESS = tl.constexpr(Branch.BRIGHTNESS.value)
_SOLARIZE_ADD = tl.constexpr(Branch.SOLARIZE_ADD.value)
_CONTRAST = tl.constexpr(Branch.CONTRAST.value)
_COLOR = tl.constexpr(Branch.COLOR.value)
_SHARPNESS = tl.constexpr(Branch.SHARPNESS.value)

# Whole numbers of which no value deserves a variant of the kernel, nor the wait for its compiler.
_NUMBERS = ["layer", "height", "width", "fill_r", "fill_g", "fill_b"]


@triton.jit(do_not_specialize=_NUMBERS)
def _tables_kernel(
    images,  # uint8 [B, H, W, 3]
    scratch,  # uint8 [B, H, W, 3]
    output,  # uint8 [B, H, W, 3]
    branch,  # uint8 [B, NUM_LAYERS]
    value,  # float32 [B, NUM_LAYERS]
    tables,  # uint8 [B, 3, 256]: out, of images whose operation is a look-up
    layer,
    height,
    width,
    NUM_LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,  # pixels
):
    image = tl.program_id(0).to(tl.int64)
    code = tl.load(branch + image * NUM_LAYERS + layer).to(tl.int32)
    if (code >= _EQUALIZE) & (code <= _CONTRAST):
        num_pixels = height * width
        earlier, later = _acting(branch + image * NUM_LAYERS, layer, NUM_LAYERS)
        source = _source(images, scratch, output, earlier, later) + image * num_pixels * 3
        table = tables + image * 768
        level = tl.arange(0, 256)
        if code == _EQUALIZE:
            for channel in range(3):
                result = _equalizing(source + channel, level, num_pixels, BLOCK)
                tl.store(table + 256 * channel + level, result.to(tl.uint8))
        elif code == _AUTO_CONTRAST:
            for channel in range(3):
                result = _stretching(source + channel, level, num_pixels, BLOCK)
                tl.store(table + 256 * channel + level, result.to(tl.uint8))
        else:
            argument = tl.load(value + image * NUM_LAYERS + layer)
            whole = argument.to(tl.int32)
            if code == _CONTRAST:
                result = _blend(_mean_luma(source, num_pixels, BLOCK), level, argument)
            elif code == _BRIGHTNESS:
                result = _blend(0, level, argument)
            elif code == _SOLARIZE:
                result = tl.where(level < whole, level, 255 - level)
            elif code == _SOLARIZE_ADD:
                result = tl.where(level < 128, tl.minimum(level + whole, 255), level)
            else:
                result = level & whole
            for channel in tl.static_range(3):
                tl.store(table + 256 * channel + level, result.to(tl.uint8))


@triton.jit(do_not_specialize=_NUMBERS)
def _apply_kernel(
    images,  # uint8 [B, H, W, 3]
    scratch,  # uint8 [B, H, W, 3]
    output,  # uint8 [B, H, W, 3]: out
    branch,  # uint8 [B, NUM_LAYERS]
    value,  # float32 [B, NUM_LAYERS]
    matrix,  # float64 [B, NUM_LAYERS, 2, 3]
    tables,  # uint8 [B, 3, 256]
    layer,
    height,
    width,
    fill_r,
    fill_g,
    fill_b,
    NUM_LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,  # pixels
):
    image = tl.program_id(0).to(tl.int64)
    row = image * NUM_LAYERS + layer
    code = tl.load(branch + row).to(tl.int32)
    earlier, later = _acting(branch + image * NUM_LAYERS, layer, NUM_LAYERS)
    acts = code != _SKIP
    if acts | ((layer == 0) & (later == 0)):
        num_pixels = height * width
        start = image * num_pixels * 3
        source = _source(images, scratch, output, earlier, later) + start
        target = tl.where(later % 2 == 0, output, scratch) + start
        pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < num_pixels
        place = 3 * pixel
        argument = tl.load(value + row)
        if code == _WARP:
            r, g, b = _warp(
                source, matrix + 6 * row, pixel, valid, height, width, fill_r, fill_g, fill_b
            )
        else:
            r = tl.load(source + place, mask=valid, other=0).to(tl.int32)
            g = tl.load(source + place + 1, mask=valid, other=0).to(tl.int32)
            b = tl.load(source + place + 2, mask=valid, other=0).to(tl.int32)
            if code == _COLOR:
                luma = _luma(r, g, b)
                r = _blend(luma, r, argument)
                g = _blend(luma, g, argument)
                b = _blend(luma, b, argument)
            elif code == _SHARPNESS:
                r = _blend(_smooth(source, r, pixel, valid, height, width), r, argument)
                g = _blend(_smooth(source + 1, g, pixel, valid, height, width), g, argument)
                b = _blend(_smooth(source + 2, b, pixel, valid, height, width), b, argument)
            elif acts:
                table = tables + image * 768
                r = tl.load(table + r).to(tl.int32)
                g = tl.load(table + 256 + g).to(tl.int32)
                b = tl.load(table + 512 + b).to(tl.int32)
        tl.store(target + place, r.to(tl.uint8), mask=valid)
        tl.store(target + place + 1, g.to(tl.uint8), mask=valid)
        tl.store(target + place + 2, b.to(tl.uint8), mask=valid)


@triton.jit
def _acting(branch, layer, NUM_LAYERS: tl.constexpr):
    """How many earlier and later layers act on an image, given its branches."""
    earlier, later = 0, 0
    for other in tl.static_range(NUM_LAYERS):
        acts = tl.load(branch + other) != _SKIP
        earlier += tl.where(acts & (other < layer), 1, 0)
        later += tl.where(acts & (other > layer), 1, 0)
    return earlier, later


@triton.jit
def _source(images, scratch, output, earlier, later):
    """Where the image lies: what writes the output reads the scratch, and the other way round."""
    written = tl.where(later % 2 == 0, scratch, output)
    return tl.where(earlier == 0, images, written)


@triton.jit
def _equalizing(source, level, num_pixels, BLOCK: tl.constexpr):
    """The table of a channel: (n + step // 2) // step for n darker pixels."""
    counts = tl.full([256], 0, tl.int32)
    for start in range(0, num_pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        block = tl.load(source + 3 * pixel, mask=pixel < num_pixels, other=0)
        counts += tl.histogram(block.to(tl.int32), 256)
    # What lies behind the end was counted as black.
    num_counted = (num_pixels + BLOCK - 1) // BLOCK * BLOCK
    counts -= tl.where(level == 0, num_counted - num_pixels, 0)
    darker = tl.cumsum(counts, 0) - counts
    brightest = tl.max(tl.where(counts > 0, level, 0), 0)
    step = tl.sum(tl.where(level == brightest, darker, 0), 0) // 255
    equalized = (darker + step // 2) // tl.maximum(step, 1)
    return tl.where(step > 0, tl.minimum(equalized, 255), level)


@triton.jit
def _stretching(source, level, num_pixels, BLOCK: tl.constexpr):
    """The table of a channel: its extremes go to 0 and 255."""
    low = tl.full([BLOCK], 255, tl.int32)
    high = tl.full([BLOCK], 0, tl.int32)
    for start in range(0, num_pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < num_pixels
        block = tl.load(source + 3 * pixel, mask=valid, other=0).to(tl.int32)
        low = tl.minimum(low, tl.where(valid, block, 255))
        high = tl.maximum(high, block)
    darkest, brightest = tl.min(low, 0), tl.max(high, 0)
    scale = 255.0 / tl.maximum(brightest - darkest, 1).to(tl.float64)
    stretched = level.to(tl.float64) * scale + -darkest.to(tl.float64) * scale
    stretched = tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32)
    return tl.where(brightest > darkest, stretched, level)


@triton.jit
def _mean_luma(source, num_pixels, BLOCK: tl.constexpr):
    """The mean of the image's luma, rounded half up."""
    total = tl.full([BLOCK], 0, tl.int32)
    for start in range(0, num_pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < num_pixels
        r = tl.load(source + 3 * pixel, mask=valid, other=0).to(tl.int32)
        g = tl.load(source + 3 * pixel + 1, mask=valid, other=0).to(tl.int32)
        b = tl.load(source + 3 * pixel + 2, mask=valid, other=0).to(tl.int32)
        total += _luma(r, g, b)
    whole = tl.sum(total.to(tl.int64), 0)
    return ((2 * whole + num_pixels) // (2 * num_pixels.to(tl.int64))).to(tl.int32)


@triton.jit
def _luma(r, g, b):
    return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16


@triton.jit
def _blend(degenerate, level, factor):
    """PIL.Image.blend of whole numbers, in float32 and truncated."""
    difference = (level - degenerate).to(tl.float32)
    mixed = (level - level + degenerate).to(tl.float32) + factor * difference
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def _smooth(source, own, pixel, valid, height, width):
    """A channel smoothed, but for the outermost pixels; see `rand_augment._smooth`."""
    x, y = pixel % width, pixel // width
    interior = valid & (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    total = 4 * own
    for down in tl.static_range(-1, 2):
        for right in tl.static_range(-1, 2):
            neighbour = source + 3 * (pixel + down * width + right)
            total += tl.load(neighbour, mask=interior, other=0).to(tl.int32)
    return tl.where(interior, (2 * total + 13) // 26, own)


@triton.jit
def _warp(source, matrix, pixel, valid, height, width, fill_r, fill_g, fill_b):
    """Bilinear, truncated, with the fill colour at positions outside the image."""
    out_x, out_y = (pixel % width).to(tl.float64) + 0.5, (pixel // width).to(tl.float64) + 0.5
    x = tl.load(matrix) * out_x + tl.load(matrix + 1) * out_y + tl.load(matrix + 2)
    y = tl.load(matrix + 3) * out_x + tl.load(matrix + 4) * out_y + tl.load(matrix + 5)
    inside = valid & (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = tl.floor(x), tl.floor(y)
    right_weight, bottom_weight = x - left, y - top
    left, top = left.to(tl.int32), top.to(tl.int32)
    right, bottom = tl.minimum(left + 1, width - 1), tl.minimum(top + 1, height - 1)
    left, top = tl.maximum(left, 0), tl.maximum(top, 0)
    top_left, top_right = 3 * (top * width + left), 3 * (top * width + right)
    bottom_left, bottom_right = 3 * (bottom * width + left), 3 * (bottom * width + right)
    corners = (top_left, top_right, bottom_left, bottom_right)
    r = _bilinear(source, *corners, inside, right_weight, bottom_weight)
    g = _bilinear(source + 1, *corners, inside, right_weight, bottom_weight)
    b = _bilinear(source + 2, *corners, inside, right_weight, bottom_weight)
    return tl.where(inside, r, fill_r), tl.where(inside, g, fill_g), tl.where(inside, b, fill_b)


@triton.jit
def _bilinear(
    source, top_left, top_right, bottom_left, bottom_right, inside, right_weight, bottom_weight
):
    a = tl.load(source + top_left, mask=inside, other=0).to(tl.int32)
    b = tl.load(source + top_right, mask=inside, other=0).to(tl.int32)
    c = tl.load(source + bottom_left, mask=inside, other=0).to(tl.int32)
    d = tl.load(source + bottom_right, mask=inside, other=0).to(tl.int32)
    above = a.to(tl.float64) + (b - a).to(tl.float64) * right_weight
    below = c.to(tl.float64) + (d - c).to(tl.float64) * right_weight
    return (above + (below - above) * bottom_weight).to(tl.int32)


def rand_augment_triton(
    images: Tensor, branch: Tensor, value: Tensor, matrix: Tensor, fill: tuple[int, int, int]
) -> Tensor:
    """`rand_augment` on the GPU of the images."""
    batch, height, width, _ = images.shape
    num_layers = branch.shape[1]
    images = images.contiguous()
    if num_layers == 0 or images.numel() == 0:
        return images.clone()
    output = torch.empty_like(images)
    scratch = torch.empty_like(images) if num_layers > 1 else output
    tables = torch.empty(batch, 3, 256, dtype=torch.uint8, device=images.device)
    branch, value, matrix = branch.contiguous(), value.contiguous(), matrix.contiguous()
    num_blocks = triton.cdiv(height * width, APPLY_BLOCK)
    with torch.cuda.device_of(images):
        for layer in range(num_layers):
            _tables_kernel[(batch,)](
                images,
                scratch,
                output,
                branch,
                value,
                tables,
                layer,
                height,
                width,
                NUM_LAYERS=num_layers,
                BLOCK=TABLE_BLOCK,
                num_warps=TABLE_WARPS,
                enable_fp_fusion=False,
            )
            _apply_kernel[batch, num_blocks](
                images,
                scratch,
                output,
                branch,
                value,
                matrix,
                tables,
                layer,
                height,
                width,
                *fill,
                NUM_LAYERS=num_layers,
                BLOCK=APPLY_BLOCK,
                num_warps=APPLY_WARPS,
                enable_fp_fusion=False,
            )
    return output

"""From DALI's uint8 batch to the model's input: normalise, mix and cast.

`normalize_mix_plain` defines the meaning. On a GPU a Triton kernel does it in one pass; on a CPU
the same is done in bands of rows, so that everything but input and output stays in the cache.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.kernels.triton_support import runs_triton

# PyTorch shares operations on more elements than this between threads.
_SERIAL_NUMEL = 32767

_Channels = tuple[float, float, float]


def normalize_mix(
    images: Tensor,
    mean: _Channels = IMAGENET_MEAN,
    std: _Channels = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    partner: Tensor | None = None,
    pixel_lam: Tensor | None = None,
    box: Tensor | None = None,
) -> Tensor:
    """Normalise images, mix each with its partner, and cast.

    Outside `box` a pixel becomes pixel_lam * own + (1 - pixel_lam) * partner, inside it becomes
    the partner's: mixup has an empty box, CutMix has pixel_lam 1. Mixing is done in float32, so
    nothing is rounded back to uint8 between mixing and normalising (timm's prefetching loader
    does round there). Kernel, CPU code and plain version differ by the rounding of the mixed
    level, of the order of 1e-6 in a normalised pixel, which may move a float16 or bfloat16 result
    to its neighbour. Nothing here waits for a GPU that has Triton.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        mean, std: of the values scaled to [0, 1], for each channel.
        dtype: of the result.
        partner: int64 [B], row to mix with; None for no mixing.
        pixel_lam: float32 [B].
        box: int32 [B, 4] as top, bottom, left, right; bottom and right exclusive.

    Returns:
        `dtype` [B, 3, H, W], channels-last.
    """
    if runs_triton(images):
        from dali_rsb.kernels.mix_triton import normalize_mix_triton

        with torch.cuda.device(images.device):
            constants = _scale_and_shift(mean, std)
            return normalize_mix_triton(images, *constants, dtype, partner, pixel_lam, box)
    if images.device.type == "cpu":
        return _in_bands(images, mean, std, dtype, partner, pixel_lam, box)
    return normalize_mix_plain(images, mean, std, dtype, partner, pixel_lam, box)


def normalize_mix_plain(
    images: Tensor,
    mean: _Channels = IMAGENET_MEAN,
    std: _Channels = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    partner: Tensor | None = None,
    pixel_lam: Tensor | None = None,
    box: Tensor | None = None,
) -> Tensor:
    """`normalize_mix` as a few PyTorch operations on the whole batch, on any device."""
    pixels = images.float()
    if partner is not None:
        assert pixel_lam is not None
        assert box is not None
        weight = torch.where(_inside(box, *images.shape[1:3]), 0.0, pixel_lam[:, None, None])
        pixels = torch.lerp(images[partner].float(), pixels, weight[..., None])
    scale, shift = _constants_on(images.device, mean, std)
    normalized = torch.addcmul(shift, pixels, scale)
    return normalized.to(dtype).permute(0, 3, 1, 2)


def _in_bands(
    images: Tensor,
    mean: _Channels,
    std: _Channels,
    dtype: torch.dtype,
    partner: Tensor | None,
    pixel_lam: Tensor | None,
    box: Tensor | None,
) -> Tensor:
    """`normalize_mix` on a CPU, on one core.

    A band of rows is read, mixed, normalised and written while it lies in the cache, where
    operations on the whole batch wait for memory. It needs no other core, and so does not wait
    for those that DALI's threads keep busy.
    """
    batch, height, width, channels = images.shape
    # A row of pixels is one long axis: PyTorch vectorises along it, not along three channels.
    rows = images.reshape(batch, height, width * channels)
    scale, shift = (x.repeat(width) for x in _constants_on(images.device, mean, std))
    output = torch.empty(rows.shape, dtype=dtype)
    band_height = max(1, _SERIAL_NUMEL // (width * channels))
    # Floating bands of an image and of its partner, used again for each image.
    own, other = (torch.empty(rows.shape[1:]).split(band_height) for _ in range(2))
    drawn = None
    if partner is not None:
        assert pixel_lam is not None
        assert box is not None
        drawn = list(zip(partner.tolist(), pixel_lam.tolist(), box.tolist(), strict=True))
    for i in range(batch):
        for pixels, levels in zip(own, rows[i].split(band_height), strict=True):
            pixels.copy_(levels)
        if drawn is not None:
            j, lam, window = drawn[i]
            _mix_bands(own, other, rows[j].split(band_height), lam, window, channels)
        for pixels, result in zip(own, output[i].split(band_height), strict=True):
            result.copy_(torch.addcmul(shift, pixels, scale, out=pixels))
    return output.view(images.shape).permute(0, 3, 1, 2)


def _mix_bands(
    own: tuple[Tensor, ...],
    other: tuple[Tensor, ...],
    levels: tuple[Tensor, ...],
    lam: float,
    box: list[int],
    channels: int,
) -> None:
    """Mix the bands of one image, in place.

    Args:
        own: float32 [rows, values] each; `other` are buffers like them.
        levels: uint8, the partner's.
        box: top, bottom, left, right in pixels.
    """
    top, bottom, left, right = box
    columns = slice(channels * left, channels * right)
    start = 0
    for pixels, others, band in zip(own, other, levels, strict=True):
        if lam != 1:
            torch.lerp(others.copy_(band), pixels, lam, out=pixels)
        if top < start + len(band) and bottom > start:
            inside = slice(max(top - start, 0), bottom - start)
            pixels[inside, columns] = band[inside, columns]
        start += len(band)


def _scale_and_shift(mean: _Channels, std: _Channels) -> tuple[_Channels, _Channels]:
    """(x / 255 - mean) / std as x * scale + shift."""
    (r, g, b), (r_std, g_std, b_std) = mean, std
    return (1 / (255 * r_std), 1 / (255 * g_std), 1 / (255 * b_std)), (
        -r / r_std,
        -g / g_std,
        -b / b_std,
    )


@functools.lru_cache
def _constants_on(device: torch.device, mean: _Channels, std: _Channels) -> tuple[Tensor, Tensor]:
    """`_scale_and_shift` as tensors [3], kept so that a step copies nothing."""
    scale, shift = _scale_and_shift(mean, std)
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """bool [B, H, W]: which pixels lie in the boxes."""
    rows = torch.arange(height, device=box.device)[None, :, None]
    columns = torch.arange(width, device=box.device)[None, None, :]
    top, bottom, left, right = box.T[..., None, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)

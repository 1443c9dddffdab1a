"""From DALI's uint8 batch to the model's input: normalise, mix and cast.

The plain PyTorch function here defines the meaning; it also serves CPUs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_mix(
    images: Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    partner: Tensor | None = None,
    pixel_lam: Tensor | None = None,
    box: Tensor | None = None,
) -> Tensor:
    """Normalise images, mix each with its partner, and cast.

    Outside `box` a pixel becomes pixel_lam * own + (1 - pixel_lam) * partner, inside it becomes
    the partner's: mixup has an empty box, CutMix has pixel_lam 1. Mixing is done in float32, so
    nothing is rounded back to uint8 between mixing and normalising (timm's prefetching loader
    does round there).

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
    pixels = images.float()
    if partner is not None:
        assert pixel_lam is not None
        assert box is not None
        weight = torch.where(_inside(box, *images.shape[1:3]), 0.0, pixel_lam[:, None, None])
        pixels = torch.lerp(images[partner].float(), pixels, weight[..., None])
    scale, shift = _scale_and_shift(mean, std, images.device)
    normalized = torch.addcmul(shift, pixels, scale)
    return normalized.to(dtype).permute(0, 3, 1, 2)


@functools.lru_cache
def _scale_and_shift(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * scale + shift; kept, so that a step copies nothing."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale, shift


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """bool [B, H, W]: which pixels lie in the boxes."""
    rows = torch.arange(height, device=box.device)[None, :, None]
    columns = torch.arange(width, device=box.device)[None, None, :]
    top, bottom, left, right = box.T[..., None, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)

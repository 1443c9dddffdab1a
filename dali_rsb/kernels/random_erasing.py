"""Random erasing: fills boxes of normalised images on their device."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

EraseMode = Literal["const", "rand", "pixel"]


def erase(
    images: Tensor, rows: np.ndarray, boxes: np.ndarray, seeds: np.ndarray, mode: EraseMode
) -> Tensor:
    """Fill boxes, one after the other, in place.

    Args:
        images: floating [B, C, H, W], normalised, in any memory format.
        rows: int [n], the image of each box.
        boxes: int [n, 4] as top, bottom, left, right; bottom and right exclusive.
        seeds: int64 [n], of each box's normal numbers, which also depend on the kind of device, the
            dtype and the memory format of the images.
        mode: fill with 0 ("const", the mean colour), with one normal number for each channel of a
            box ("rand") or for each pixel and channel ("pixel").

    Returns:
        `images`.
    """
    generator = torch.Generator(images.device)
    numbers = zip(rows.tolist(), boxes.tolist(), seeds.tolist(), strict=True)
    for row, (top, bottom, left, right), seed in numbers:
        generator.manual_seed(seed)
        patch = images[row, :, top:bottom, left:right]
        if mode == "const":
            patch.zero_()
        elif mode == "rand":
            patch.copy_(patch.new_empty(patch.shape[0], 1, 1).normal_(generator=generator))
        else:
            patch.normal_(generator=generator)
    return images

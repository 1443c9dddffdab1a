"""Batches on their device: as DALI decodes them, and as a model and its loss take them.

This module imports no DALI, so that the training step and the evaluation need none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dali_rsb.draws.erasing import ErasingDraws
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.kernels.random_erasing import erase

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class BatchMixing:
    """A batch's mixing on the device; see `dali_rsb.draws.mixing.MixDraws` for the fields."""

    partner: Tensor  # int64 [B]
    pixel_lam: Tensor  # float32 [B]
    box: Tensor  # int32 [B, 4]
    lam: Tensor  # float32 [B]


@dataclass(frozen=True)
class MixedBatch:
    """One device batch, normalised, mixed and erased: what a model and its loss take.

    Attributes:
        images: floating [B, 3, H, W], channels-last.
        labels: int64 [B].
        partner_labels: int64 [B], of the images that these were mixed with.
        lam: float32 [B], the weight of `labels`; 1 for an image that is not mixed.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    lam: Tensor


@dataclass(frozen=True)
class Batch:
    """One device batch as it was decoded.

    Attributes:
        images: uint8 [B, H, W, 3], contiguous; no later batch overwrites them.
        labels: int64 [B].
        num_valid: rows from here on are padding (evaluation only).
        mixing: who mixes with whom, or None.
        erasing: which boxes are erased after mixing, on the host, or None.
        replaced: how many rows show another image, as their own cannot be used.
    """

    images: Tensor
    labels: Tensor
    num_valid: int
    mixing: BatchMixing | None = None
    erasing: ErasingDraws | None = None
    replaced: int = 0

    def mixed(self, mean: Channels, std: Channels, dtype: torch.dtype) -> MixedBatch:
        """Normalise the images, mix, cast and erase them, and pair their labels.

        Erasing comes last, as in timm's loader with `FastCollateMixup`, and leaves the labels as
        they are. Nothing here waits for a device.

        Args:
            mean, std: of the values scaled to [0, 1], for each channel.
            dtype: of the resulting images.
        """
        mixing, labels = self.mixing, self.labels
        if mixing is None:
            images = normalize_mix(self.images, mean, std, dtype)
            partner_labels, lam = labels, torch.ones_like(labels, dtype=torch.float32)
        else:
            drawn = (mixing.partner, mixing.pixel_lam, mixing.box)
            images = normalize_mix(self.images, mean, std, dtype, *drawn)
            partner_labels, lam = labels[mixing.partner], mixing.lam
        if self.erasing is not None:
            boxes = self.erasing
            erase(images, boxes.rows, boxes.boxes, boxes.seeds, boxes.mode)
        return MixedBatch(images, labels, partner_labels, lam)

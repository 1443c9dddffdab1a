"""Dense targets of mixed images: what the losses on sparse targets are defined by."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_target(
    labels: Tensor, partner_labels: Tensor, lam: Tensor, num_classes: int, smoothing: float = 0.0
) -> Tensor:
    """The dense target that a pair of labels and its weight stand for, as timm's mixup builds it.

    `lam * smooth(labels) + (1 - lam) * smooth(partner_labels)`, where smoothing s over K classes
    gives the label 1 - s + s/K and the other classes s/K; equal labels add up.

    Args:
        labels, partner_labels: int64 [B].
        lam: float32 [B], the weight of `labels`.

    Returns:
        float32 [B, num_classes].
    """
    off = smoothing / num_classes
    on = 1.0 - smoothing + off

    def smooth(classes: Tensor) -> Tensor:
        rows = torch.full(
            (len(classes), num_classes), off, dtype=torch.float32, device=classes.device
        )
        return rows.scatter_(1, classes[:, None], on)

    weight = lam.float()[:, None]
    return smooth(labels) * weight + smooth(partner_labels) * (1.0 - weight)

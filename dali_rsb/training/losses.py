"""Losses on mixed targets kept sparse: two labels and a weight per image, no dense target."""

from __future__ import annotations

import difflib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dali_rsb.errors import UserError
from dali_rsb.kernels.bce import mixed_bce


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


class MixedBinaryCrossEntropy(nn.Module):
    """Binary cross-entropy with `dense_target`, mean over batch and classes.

    With `target_threshold`, each class above it (strictly, after smoothing and mixing) is a full
    positive and each other class a negative. It equals timm's `BinaryCrossEntropy` on the dense
    target, which is never built (see `dali_rsb.kernels.bce`).

    Args of `forward`:
        logits: [B, K], any floating dtype; the loss is computed in float32.
        labels, partner_labels: int64 [B].
        lam: float32 [B], the weight of `labels`.

    Returns a float32 scalar.

    Raises:
        UserError: `smoothing` or `target_threshold` outside [0, 1).
    """

    def __init__(self, smoothing: float = 0.0, target_threshold: float | None = None) -> None:
        super().__init__()
        _check_fraction("smoothing", smoothing)
        if target_threshold is not None:
            _check_fraction("target_threshold", target_threshold)
        self.smoothing = smoothing
        self.target_threshold = target_threshold

    def forward(
        self, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor
    ) -> Tensor:
        return mixed_bce(logits, labels, partner_labels, lam, self.smoothing, self.target_threshold)


class MixedCrossEntropy(nn.Module):
    """Softmax cross-entropy with `dense_target`, mean over the batch.

    It equals timm's `SoftTargetCrossEntropy` on the dense target and, where `lam` is 1,
    `torch.nn.functional.cross_entropy` with `label_smoothing`. The dense target is not built:
    sum(y * log p) splits into the two labels and the mean over all classes.

    Args of `forward` and return value are those of `MixedBinaryCrossEntropy`.

    Raises:
        UserError: `smoothing` outside [0, 1).
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        _check_fraction("smoothing", smoothing)
        self.smoothing = smoothing

    def forward(
        self, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor
    ) -> Tensor:
        log_probs = F.log_softmax(logits.float(), dim=1)
        label_log_probs = log_probs.gather(1, labels[:, None]).squeeze(1)
        partner_log_probs = log_probs.gather(1, partner_labels[:, None]).squeeze(1)
        lam = lam.float()
        expected = lam * label_log_probs + (1.0 - lam) * partner_log_probs
        if self.smoothing > 0:
            expected = (1.0 - self.smoothing) * expected + self.smoothing * log_probs.mean(1)
        return -expected.mean()


def create_loss(
    name: str, smoothing: float = 0.0, target_threshold: float | None = None
) -> nn.Module:
    """Create the loss `bce` (`MixedBinaryCrossEntropy`) or `ce` (`MixedCrossEntropy`).

    Raises:
        UserError: unknown name, a value out of range, or a threshold for `ce`.
    """
    if name == "bce":
        return MixedBinaryCrossEntropy(smoothing, target_threshold)
    if name == "ce":
        if target_threshold is not None:
            raise UserError("target_threshold belongs to the loss 'bce': leave it out for 'ce'")
        return MixedCrossEntropy(smoothing)
    nearest = difflib.get_close_matches(name, ("bce", "ce"), n=1, cutoff=0.0)[0]
    raise UserError(f"unknown loss {name!r}, did you mean {nearest!r}? The choices are: bce, ce")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} is {value}: choose a value of at least 0 and below 1")

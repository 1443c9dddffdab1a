"""Losses on mixed targets kept sparse: two labels and a weight per image, no dense target."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dali_rsb.errors import UserError, suggestion
from dali_rsb.kernels.bce import mixed_bce, sparse_targets


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

    Args:
        class_weights: float32 [K], or None. As PyTorch's `pos_weight`: what a positive target of a
            class counts, where a negative one counts 1.

    Raises:
        UserError: `smoothing` or `target_threshold` outside [0, 1).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.0,
        target_threshold: float | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)
        _check_fraction("smoothing", smoothing)
        if target_threshold is not None:
            _check_fraction("target_threshold", target_threshold)
        self.smoothing = smoothing
        self.target_threshold = target_threshold

    def forward(
        self, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor
    ) -> Tensor:
        loss = mixed_bce(logits, labels, partner_labels, lam, self.smoothing, self.target_threshold)
        if self.class_weights is None:
            return loss
        return loss + self._of_positives(logits, labels, partner_labels, lam, self.class_weights)

    def _of_positives(
        self, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor, weights: Tensor
    ) -> Tensor:
        """What the weights add to the loss: (weight - 1) * target * -log(sigmoid(logit))."""
        label, partner, other = sparse_targets(
            labels == partner_labels,
            lam.float(),
            logits.shape[1],
            self.smoothing,
            self.target_threshold,
        )
        costs = (weights - 1) * F.softplus(-logits.float())
        total = (label - other) * costs.gather(1, labels[:, None]).squeeze(1)
        total = total + (partner - other) * costs.gather(1, partner_labels[:, None]).squeeze(1)
        return (total + other * costs.sum(1)).sum() / logits.numel()


class MixedCrossEntropy(nn.Module):
    """Softmax cross-entropy with `dense_target`, mean over the batch.

    It equals timm's `SoftTargetCrossEntropy` on the dense target and, where `lam` is 1,
    `torch.nn.functional.cross_entropy` with `label_smoothing`. The dense target is not built:
    sum(y * log p) splits into the two labels and the mean over all classes.

    Args of `forward` and return value are those of `MixedBinaryCrossEntropy`.

    Args:
        class_weights: float32 [K], or None. As PyTorch's `weight` on dense targets: the term of a
            class is multiplied by its weight, and the mean is over the batch.

    Raises:
        UserError: `smoothing` outside [0, 1).
    """

    class_weights: Tensor | None

    def __init__(self, smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)
        _check_fraction("smoothing", smoothing)
        self.smoothing = smoothing

    def forward(
        self, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor
    ) -> Tensor:
        log_probs = F.log_softmax(logits.float(), dim=1)
        if self.class_weights is not None:
            log_probs = log_probs * self.class_weights
        label_log_probs = log_probs.gather(1, labels[:, None]).squeeze(1)
        partner_log_probs = log_probs.gather(1, partner_labels[:, None]).squeeze(1)
        lam = lam.float()
        expected = lam * label_log_probs + (1.0 - lam) * partner_log_probs
        if self.smoothing > 0:
            expected = (1.0 - self.smoothing) * expected + self.smoothing * log_probs.mean(1)
        return -expected.mean()


def create_loss(
    name: str,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
    class_weights: Tensor | None = None,
) -> nn.Module:
    """Create the loss `bce` (`MixedBinaryCrossEntropy`) or `ce` (`MixedCrossEntropy`).

    Raises:
        UserError: unknown name, a value out of range, or a threshold for `ce`.
    """
    if name == "bce":
        return MixedBinaryCrossEntropy(smoothing, target_threshold, class_weights)
    if name == "ce":
        if target_threshold is not None:
            raise UserError("target_threshold belongs to the loss 'bce': leave it out for 'ce'")
        return MixedCrossEntropy(smoothing, class_weights)
    nearest = suggestion(name, ("bce", "ce"), cutoff=0.0)
    raise UserError(f"unknown loss {name!r}{nearest} The choices are: bce, ce")


def balanced_weights(labels: npt.NDArray[np.int64], num_classes: int) -> Tensor:
    """Weights of the classes with which all count alike: N / (classes with images * own images).

    scikit-learn's "balanced". Their mean over the images is 1; a class without images gets 1.

    Args:
        labels: int64 [N].

    Returns:
        float32 [num_classes].
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0).astype(np.float32))


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} is {value}: choose a value of at least 0 and below 1")

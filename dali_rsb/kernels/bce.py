"""Binary cross-entropy on mixed targets that are kept sparse.

`mixed_bce_plain` defines the meaning and serves CPUs. On a GPU a Triton kernel makes the loss and
its gradient from one pass over the logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dali_rsb.kernels.triton_support import runs_triton


def mixed_bce(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    lam: Tensor,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
) -> Tensor:
    """Binary cross-entropy with logits, mean over batch and classes.

    The target of a row is lam * smooth(label) + (1 - lam) * smooth(partner's label), where
    smoothing s over K classes gives a label 1 - s + s/K and the other classes s/K; equal labels
    add up. With `target_threshold`, each class above it (strictly) is a full positive and each
    other class a negative. The kernel differs from the plain version by the order of its float32
    sums and by a rounding of the gradient to the dtype of the logits. It is differentiable once,
    deterministic, and waits for nothing.

    Args:
        logits: floating [B, K]; computed in float32 whatever the dtype.
        labels, partner_labels: int64 [B], in [0, K).
        lam: float32 [B], the weight of `labels`.

    Returns:
        float32 scalar.
    """
    if runs_triton(logits):
        from dali_rsb.kernels.bce_triton import mixed_bce_triton

        return mixed_bce_triton(logits, labels, partner_labels, lam, smoothing, target_threshold)
    return mixed_bce_plain(logits, labels, partner_labels, lam, smoothing, target_threshold)


def mixed_bce_plain(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    lam: Tensor,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
) -> Tensor:
    """`mixed_bce` in PyTorch, without the dense target.

    The target's rows hold three values, that of the label, that of the partner's label and that
    of all other classes, and sum(softplus(z) - y * z) splits by them.
    """
    logits = logits.float()
    label_target, partner_target, other_target = sparse_targets(
        labels == partner_labels, lam.float(), logits.shape[1], smoothing, target_threshold
    )
    label_logits = logits.gather(1, labels[:, None]).squeeze(1)
    partner_logits = logits.gather(1, partner_labels[:, None]).squeeze(1)
    positive = (label_target - other_target) * label_logits
    positive = positive + (partner_target - other_target) * partner_logits
    if smoothing > 0:  # otherwise other_target is 0
        positive = positive + other_target * logits.sum(1)
    return (F.softplus(logits).sum() - positive.sum()) / logits.numel()


def sparse_targets(
    same: Tensor,
    lam: Tensor,
    num_classes: int,
    smoothing: float,
    target_threshold: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets [B] of the label, of the partner's label and of any other class.

    For equal labels the first is their sum and the second counts as any other class.
    """
    off = smoothing / num_classes
    on = 1.0 - smoothing + off
    # The order of operations is `dense_target`'s, for the same rounding at the threshold.
    partner_weight = 1.0 - lam
    label = on * lam + torch.where(same, on * partner_weight, off * partner_weight)
    other = off * lam + off * partner_weight
    partner = torch.where(same, other, off * lam + on * partner_weight)
    if target_threshold is None:
        return label, partner, other
    return (
        (label > target_threshold).float(),
        (partner > target_threshold).float(),
        (other > target_threshold).float(),
    )

"""Binary cross-entropy on sparse mixed targets: the device kernel of `dali_rsb.kernels.bce`.

A program makes the loss of one row and, in the same pass, the gradient of its logits. The rows'
losses are added by PyTorch, in a fixed order. The gradient is kept as sigmoid(z) - y, which has
the full precision of float16 where 1 / (B * K) has not, and the backward pass scales it.
"""

# Triton gives the arguments of kernels their types, and constants have upper-case names.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
MAX_BLOCK = 1024  # logits that a program reads at once


@triton.jit
def _mixed_bce_kernel(
    logits,  # [B, K]
    labels,  # int64 [B]
    partner_labels,  # int64 [B]
    lams,  # [B]
    losses,  # float32 [B]: out
    gradient,  # [B, K]: out, sigmoid(z) - y, if GRADIENT
    row_stride,
    column_stride,
    num_classes,
    on,
    off,
    threshold,
    scale,  # of the losses
    THRESHOLD: tl.constexpr,
    GRADIENT: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label, partner = tl.load(labels + row), tl.load(partner_labels + row)
    lam = tl.load(lams + row).to(tl.float32)
    # As in `bce._targets`: the launch forbids fused multiply-adds, which round otherwise.
    rest = 1.0 - lam
    other_target = off * lam + off * rest
    if label == partner:
        label_target = on * lam + on * rest
        partner_target = other_target
    else:
        label_target = on * lam + off * rest
        partner_target = off * lam + on * rest
    if THRESHOLD:
        label_target = tl.where(label_target > threshold, 1.0, 0.0)
        partner_target = tl.where(partner_target > threshold, 1.0, 0.0)
        other_target = tl.where(other_target > threshold, 1.0, 0.0)

    row_logits = logits + row * row_stride
    total = tl.full([BLOCK], 0.0, tl.float32)
    for block in range(NUM_BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        valid = column < num_classes
        place = column.to(tl.int64) * column_stride
        z = tl.load(row_logits + place, mask=valid, other=0.0).to(tl.float32)
        y = tl.where(column == partner, partner_target, other_target)
        y = tl.where(column == label, label_target, y)
        e = tl.exp(-tl.abs(z))
        # log(1 + e) with all its digits where e is small (Goldberg 1991, theorem 4).
        sum_ = 1.0 + e
        log1p = tl.where(sum_ == 1.0, e, tl.log(sum_) * (e / (sum_ - 1.0)))
        # A logit of minus infinity, a class that is masked out, costs nothing where y is 0.
        loss = (tl.maximum(z, 0.0) - tl.where(y == 0.0, 0.0, y * z)) + log1p
        total += tl.where(valid, loss, 0.0)
        if GRADIENT:
            sigmoid = tl.where(z >= 0, 1.0, e) / sum_
            out = gradient + row * num_classes + column
            tl.store(out, (sigmoid - y).to(gradient.dtype.element_ty), mask=valid)
    tl.store(losses + row, tl.sum(total) * scale)


@triton.jit
def _scale_kernel(gradient, factor, output, numel, scale, BLOCK: tl.constexpr):
    """output = gradient * (factor * scale), in float32; `factor` is a scalar on the device."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < numel
    scaled = tl.load(gradient + place, mask=valid).to(tl.float32) * (tl.load(factor) * scale)
    tl.store(output + place, scaled.to(output.dtype.element_ty), mask=valid)


# As operators of their own these are opaque to torch.compile, which need not know Triton then.
@torch.library.custom_op(
    "dali_rsb::mixed_bce",
    mutates_args=(),
    schema="(Tensor logits, Tensor labels, Tensor partner_labels, Tensor lam, float smoothing, "
    "float? target_threshold, bool needs_gradient) -> (Tensor, Tensor)",
)
def _mixed_bce(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    lam: Tensor,
    smoothing: float,
    target_threshold: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and sigmoid(z) - y with the shape and dtype of the logits, or an empty tensor."""
    batch, num_classes = logits.shape
    losses = torch.empty(batch, dtype=torch.float32, device=logits.device)
    gradient = logits.new_empty(logits.shape if needs_gradient else (0,))
    off = smoothing / num_classes
    block = min(triton.next_power_of_2(num_classes), MAX_BLOCK)
    with torch.cuda.device_of(logits):
        _mixed_bce_kernel[(batch,)](
            logits,
            labels.contiguous(),
            partner_labels.contiguous(),
            lam.contiguous(),
            losses,
            gradient,
            *logits.stride(),
            num_classes,
            1.0 - smoothing + off,
            off,
            0.0 if target_threshold is None else target_threshold,
            1 / (batch * num_classes),
            THRESHOLD=target_threshold is not None,
            GRADIENT=needs_gradient,
            NUM_BLOCKS=triton.cdiv(num_classes, block),
            BLOCK=block,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return losses.sum(), gradient


@_mixed_bce.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    lam: Tensor,
    smoothing: float,
    target_threshold: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    gradient = logits.new_empty(logits.shape if needs_gradient else (0,))
    return logits.new_empty((), dtype=torch.float32), gradient


@torch.library.custom_op(
    "dali_rsb::scale_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor factor, float scale) -> Tensor",
)
def _scale_gradient(gradient: Tensor, factor: Tensor, scale: float) -> Tensor:
    output = torch.empty_like(gradient)
    with torch.cuda.device_of(gradient):
        _scale_kernel[(triton.cdiv(gradient.numel(), MAX_BLOCK),)](
            gradient, factor, output, gradient.numel(), scale, BLOCK=MAX_BLOCK, num_warps=NUM_WARPS
        )
    return output


@_scale_gradient.register_fake
def _(gradient: Tensor, factor: Tensor, scale: float) -> Tensor:
    return torch.empty_like(gradient)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, loss_gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    scaled = _scale_gradient(gradient, loss_gradient, 1 / gradient.numel())
    return scaled, None, None, None, None, None, None


_mixed_bce.register_autograd(_backward, setup_context=_save_gradient)


def mixed_bce_triton(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    lam: Tensor,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
) -> Tensor:
    """`mixed_bce` on the GPU of the logits: two launches forward, one backward."""
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor
    loss, _ = _mixed_bce(
        logits, labels, partner_labels, lam, smoothing, target_threshold, needs_gradient
    )
    return loss

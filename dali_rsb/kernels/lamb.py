"""One LAMB step as operations on lists of tensors: what `lamb_triton` does in five launches.

This is the reference implementation: it defines the meaning, serves CPUs, float64 and several
devices, and never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The integer type as wide as a gradient of each supported dtype.
_BITS_DTYPE = {torch.float32: torch.int32, torch.float64: torch.int64}
SUPPORTED_DTYPES = tuple(_BITS_DTYPE)

# The CPU has no multi-tensor kernels; there it pays to finish one part of the parameters while it
# is in the cache. A ResNet-50 step on one core: 96 ms, with whole lists 171 ms, timm's 132 ms.
_CPU_BUCKET_ELEMENTS = 2**19


@dataclass
class Bucket:
    """Parameters of one group on one device in one dtype, with their gradients and moments."""

    device: torch.device
    dtype: torch.dtype
    num_elements: int = 0
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)

    def has_room(self, p: Tensor) -> bool:
        return self.device.type != "cpu" or self.num_elements + p.numel() <= _CPU_BUCKET_ELEMENTS


def buckets_of(entries: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> list[Bucket]:
    """Sort (parameter, gradient, first moment, second moment) of one group into buckets."""
    buckets: list[Bucket] = []
    open_buckets: dict[tuple[torch.device, torch.dtype], Bucket] = {}
    for p, grad, exp_avg, exp_avg_sq in entries:
        bucket = open_buckets.get((p.device, p.dtype))
        if bucket is None or not bucket.has_room(p):
            bucket = Bucket(p.device, p.dtype)
            buckets.append(bucket)
            open_buckets[p.device, p.dtype] = bucket
        bucket.num_elements += p.numel()
        bucket.params.append(p)
        bucket.grads.append(grad)
        bucket.exp_avgs.append(exp_avg)
        bucket.exp_avg_sqs.append(exp_avg_sq)
    return buckets


def foreach_lamb(
    groups: Sequence[dict[str, Any]],
    buckets_of_group: Sequence[list[Bucket]],
    max_grad_norm: float | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Tensor:
    """Make one LAMB step in place, or none where the gradients' norm is not a finite number.

    Args:
        groups: hyper-parameters as in `dali_rsb.optim.Lamb`, and `step`, a 0-dim float32 tensor.
        buckets_of_group: the parameters of each group that have a gradient.
        max_grad_norm: limit of the norm of all unscaled gradients; None for no limit.
        grad_scale: 0-dim, what the gradients were multiplied by; None for 1.
        found_inf: 0-dim, not 0 for a step to skip whatever the norm is; None for 0.

    Returns:
        0-dim float32 on the first parameter's device: 1 for a skipped step, else 0.
    """
    buckets = [bucket for buckets in buckets_of_group for bucket in buckets]
    norm = _gradient_norm(buckets) if buckets else None
    skip = _must_skip(groups[0]["step"].device, norm, found_inf)
    skipped = skip.float()
    flag: Tensor | None = skip
    if _flag_is_at_hand(groups, buckets):
        if skip:
            return skipped
        flag = None
    divisor = _gradient_divisor(norm, max_grad_norm, grad_scale)
    for group, buckets in zip(groups, buckets_of_group, strict=True):
        _count_step(group, flag)
        for bucket in buckets:
            bucket_flag = None if flag is None else _on(bucket.device, flag)
            _scale_gradients(bucket, divisor, bucket_flag)
            _update_moments(bucket, group, bucket_flag)
            _update_params(bucket, group, bucket_flag)
    return skipped


def _flag_is_at_hand(groups: Sequence[dict[str, Any]], buckets: Sequence[Bucket]) -> bool:
    """Whether all is on the CPU: reading the flag then waits for nothing, and spares the masks."""
    devices = [group["step"].device for group in groups] + [bucket.device for bucket in buckets]
    return all(device.type == "cpu" for device in devices)


# The scalars of a step are 0-dim tensors, in float64 because 1 - 0.999^t taken in float32 is off
# by 3e-5 at t = 1. `skip` is a 0-dim bool tensor: each function runs its ordinary operations, on
# operands for which they change nothing where it is true.


def _on(device: torch.device, scalar: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return scalar.to(device=device, dtype=dtype, non_blocking=True)


def _gradient_norm(buckets: Sequence[Bucket]) -> Tensor:
    """L2 norm of all gradients, as a float64 scalar on the first bucket's device."""
    device = buckets[0].device
    norms = [
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(bucket.grads)))
        for bucket in buckets
    ]
    return torch.linalg.vector_norm(torch.stack([_on(device, n, torch.float64) for n in norms]))


def _must_skip(device: torch.device, norm: Tensor | None, found_inf: Tensor | None) -> Tensor:
    skip = torch.zeros((), dtype=torch.bool, device=device)
    if norm is not None:
        skip = _on(device, norm.isfinite().logical_not())
    if found_inf is not None:
        skip = skip.logical_or(_on(device, found_inf != 0))
    return skip


def _gradient_divisor(
    norm: Tensor | None, max_grad_norm: float | None, grad_scale: Tensor | None
) -> Tensor | None:
    """What to divide every gradient by to unscale it and clip the global norm; None for 1."""
    if max_grad_norm is None or norm is None:
        return grad_scale
    if grad_scale is None:
        return (norm / max_grad_norm).clamp_(min=1.0)
    # scale * max(norm / scale / max_grad_norm, 1), as the norm still contains the scale.
    return torch.maximum(norm / max_grad_norm, _on(norm.device, grad_scale, torch.float64))


def _count_step(group: dict[str, Any], skip: Tensor | None) -> None:
    step = group["step"]
    step.add_(1 if skip is None else _on(step.device, skip.logical_not()))


def _scale_gradients(bucket: Bucket, divisor: Tensor | None, skip: Tensor | None) -> None:
    """Divide the gradients in place. On a skipped step make them zero, inf and NaN included."""
    if divisor is not None:
        divisor = _on(bucket.device, divisor, bucket.dtype)
    if skip is not None:
        # Multiplying the bits as integers: as floats, 0 * inf would be NaN.
        bits_dtype = _BITS_DTYPE[bucket.dtype]
        bits = [grad.view(bits_dtype) for grad in bucket.grads]
        torch._foreach_mul_(bits, skip.logical_not().to(bits_dtype))
        if divisor is not None:
            # -0.0 is the zero that changes no bit of what it is added to, -0.0 included.
            divisor = divisor.masked_fill(skip, -1.0)
    if divisor is not None:
        torch._foreach_div_(bucket.grads, divisor)


def _update_moments(bucket: Bucket, group: dict[str, Any], skip: Tensor | None) -> None:
    beta1, beta2 = group["betas"]
    if skip is None and group["grad_averaging"]:
        torch._foreach_lerp_(bucket.exp_avgs, bucket.grads, 1 - beta1)  # one pass fewer
    else:
        grad_weight = 1 - beta1 if group["grad_averaging"] else 1.0
        torch._foreach_mul_(bucket.exp_avgs, _decay(bucket, beta1, skip))
        torch._foreach_add_(bucket.exp_avgs, bucket.grads, alpha=grad_weight)
    torch._foreach_mul_(bucket.exp_avg_sqs, _decay(bucket, beta2, skip))
    torch._foreach_addcmul_(bucket.exp_avg_sqs, bucket.grads, bucket.grads, value=1 - beta2)


def _decay(bucket: Bucket, beta: float, skip: Tensor | None) -> float | Tensor:
    if skip is None:
        return beta
    decay = torch.full((), beta, dtype=bucket.dtype, device=bucket.device)
    return decay.masked_fill_(skip, 1.0)


def _update_params(bucket: Bucket, group: dict[str, Any], skip: Tensor | None) -> None:
    # With c1 = 1 - beta1^t, c2 = 1 - beta2^t and scale = sqrt(c2) / c1 the update is scale times
    # m / (sqrt(v) + eps * sqrt(c2)) + weight_decay / scale * p: the bias correction then costs no
    # pass over the tensors. The lists below hold the update without that factor.
    root_c2, scale = _bias_correction(bucket, group)
    step_size = -group["lr"] * scale
    eps = group["eps"] * root_c2
    if skip is not None:
        step_size.masked_fill_(skip, 0.0)
        eps.masked_fill_(skip, torch.inf)  # keeps 0 / 0 away where group["eps"] is 0

    denominators = torch._foreach_sqrt(bucket.exp_avg_sqs)
    # Without `alpha` the overload for numbers is taken, and it reads the tensor on the host.
    torch._foreach_add_(denominators, eps.to(bucket.dtype), alpha=1)
    if group["weight_decay"] != 0:
        decay = (group["weight_decay"] / scale).to(bucket.dtype)
        updates = list(torch._foreach_mul(bucket.params, decay))
        torch._foreach_addcdiv_(updates, bucket.exp_avgs, denominators)
    else:
        updates = list(torch._foreach_div(bucket.exp_avgs, denominators))

    if group["weight_decay"] != 0 or group["always_adapt"]:
        step_sizes = _trust_ratios(bucket.params, updates, scale, group["trust_clip"]) * step_size
        torch._foreach_addcmul_(bucket.params, updates, step_sizes.to(bucket.dtype).unbind())
    else:
        torch._foreach_mul_(updates, step_size.to(bucket.dtype))
        torch._foreach_add_(bucket.params, updates)


def _bias_correction(bucket: Bucket, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """sqrt(1 - beta2^t) and its quotient by 1 - beta1^t, as float64 scalars."""
    if not group["bias_correction"]:
        one = torch.ones((), dtype=torch.float64, device=bucket.device)
        return one, one
    beta1, beta2 = group["betas"]
    # t is 0 where the very first step overflows; what comes out of it is then not used.
    t = _on(bucket.device, group["step"], torch.float64).clamp(min=1)
    root_c2 = (1 - beta2**t).sqrt()
    return root_c2, root_c2 / (1 - beta1**t)


def _trust_ratios(
    params: list[Tensor], updates: list[Tensor], scale: Tensor, trust_clip: bool
) -> Tensor:
    """||p|| / ||scale * update|| for each pair, 1 where either norm is 0."""
    param_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(updates)) * scale
    ratios = param_norms / update_norms
    ratios.masked_fill_(~((param_norms > 0) & (update_norms > 0)), 1.0)
    return ratios.clamp_(max=1.0) if trust_clip else ratios

"""LAMB (You et al. 2020, arXiv 1904.00962) on lists of tensors, never waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The integer type as wide as a gradient of each supported dtype.
_BITS_DTYPE = {torch.float32: torch.int32, torch.float64: torch.int64}

# The CPU has no multi-tensor kernels; there it pays to finish one part of the parameters while it
# is in the cache. A ResNet-50 step on one core: 96 ms, with whole lists 171 ms, timm's 132 ms.
_CPU_BUCKET_ELEMENTS = 2**19


@dataclass
class _Bucket:
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


class Lamb(torch.optim.Optimizer):
    """LAMB with the semantics, defaults and state of `timm.optim.Lamb`.

    With N the L2 norm of all gradients of all groups, per parameter p with gradient g::

        g = g / max(N / max_grad_norm, 1)
        m = beta1 * m + (1 - beta1) * g             # factor 1 without grad_averaging
        v = beta2 * v + (1 - beta2) * g * g
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p
        r = ||p|| / ||u||                           # 1 where either norm is 0
        p = p - lr * r * u

    The trust ratio r applies to groups with weight decay, and to all with `always_adapt`;
    `trust_clip` bounds it by 1. `max_grad_norm=None` turns the clipping off; as in timm, the value
    given to the constructor holds for all groups.

    Parameters are float32 or float64, in any memory format, on one or more devices; for half
    precision train under autocast. `step` never waits for the device. It overwrites `p.grad` with
    the unscaled and clipped gradient. The learning rate is read from `group["lr"]` at each step.
    The state (`exp_avg`, `exp_avg_sq`, and `group["step"]`, a 0-dim float32 tensor on the device of
    the group's first parameter) is interchangeable with timm's through `state_dict`.

    `torch.amp.GradScaler.step` hands over the loss scale and the overflow flag as tensors
    (`grad_scale`, `found_inf`). A step with an overflow leaves parameters, moments and step count
    as they were and zeros in `p.grad`.

    Raises:
        ValueError: a hyper-parameter out of range, half-precision parameters, or a loaded state of
            a LAMB variant that this class does not have.
        RuntimeError: sparse gradients.
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler looks for this attribute

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"Invalid {name}: {value}, must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Invalid betas: {betas}, must be in [0, 1)")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ValueError(f"Invalid max_grad_norm: {max_grad_norm}, must be above 0 or None")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "grad_averaging": grad_averaging,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for variant in ("caution", "decoupled_decay"):
                if group.get(variant):
                    raise ValueError(f"Cannot load the state of a LAMB with {variant}=True")
            if "step" in group:
                # timm keeps the step on the CPU, apex as an int.
                group["step"] = torch.as_tensor(
                    group["step"], dtype=torch.float32, device=group["params"][0].device
                )
        for p, moments in self.state.items():
            for name, moment in moments.items():
                # A checkpoint from another memory format would keep foreach off its fast path.
                if moment.stride() != p.stride():
                    moments[name] = torch.empty_like(p).copy_(moment)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return the loss of `closure`, if given.

        As in timm, a group's step count advances even when none of its parameters has a gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # GradScaler sets these for the time of its call. `grad_scale` is None after an explicit
        # `unscale_`; `found_inf` is the int 0 where there was no gradient to check.
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        skip = found_inf != 0 if isinstance(found_inf, Tensor) else None

        buckets_of_group = [self._collect(group) for group in self.param_groups]
        divisor = _gradient_divisor(
            [bucket for buckets in buckets_of_group for bucket in buckets],
            self.defaults["max_grad_norm"],
            grad_scale,
        )
        for group, buckets in zip(self.param_groups, buckets_of_group, strict=True):
            _count_step(group, skip)
            for bucket in buckets:
                bucket_skip = None if skip is None else _on(bucket.device, skip)
                _scale_gradients(bucket, divisor, bucket_skip)
                _update_moments(bucket, group, bucket_skip)
                _update_params(bucket, group, bucket_skip)
        return loss

    def _collect(self, group: dict[str, Any]) -> list[_Bucket]:
        buckets: list[_Bucket] = []
        open_buckets: dict[tuple[torch.device, torch.dtype], _Bucket] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("Lamb does not support sparse gradients")
            if p.dtype not in _BITS_DTYPE:
                raise ValueError(
                    f"Lamb does not support {p.dtype} parameters: keep them in float32 and "
                    "train under autocast"
                )
            state = self.state[p]
            if not state:
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            bucket = open_buckets.get((p.device, p.dtype))
            if bucket is None or not bucket.has_room(p):
                bucket = _Bucket(p.device, p.dtype)
                buckets.append(bucket)
                open_buckets[p.device, p.dtype] = bucket
            bucket.num_elements += p.numel()
            bucket.params.append(p)
            bucket.grads.append(p.grad)
            bucket.exp_avgs.append(state["exp_avg"])
            bucket.exp_avg_sqs.append(state["exp_avg_sq"])
        return buckets


# The scalars of a step are 0-dim tensors, in float64 because 1 - 0.999^t taken in float32 is off
# by 3e-5 at t = 1. `skip` is a 0-dim bool tensor: each function runs its ordinary operations, on
# operands for which they change nothing where it is true.


def _on(device: torch.device, scalar: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return scalar.to(device=device, dtype=dtype, non_blocking=True)


def _gradient_divisor(
    buckets: list[_Bucket], max_grad_norm: float | None, grad_scale: Tensor | None
) -> Tensor | None:
    """What to divide every gradient by to unscale it and clip the global norm; None for 1."""
    if max_grad_norm is None or not buckets:
        return grad_scale
    device = buckets[0].device
    norms = [
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(bucket.grads)))
        for bucket in buckets
    ]
    norm = torch.linalg.vector_norm(torch.stack([_on(device, n, torch.float64) for n in norms]))
    if grad_scale is None:
        return (norm / max_grad_norm).clamp_(min=1.0)
    # scale * max(norm / scale / max_grad_norm, 1), as the norm still contains the scale.
    return torch.maximum(norm / max_grad_norm, _on(device, grad_scale, torch.float64))


def _count_step(group: dict[str, Any], skip: Tensor | None) -> None:
    if "step" not in group:
        device = group["params"][0].device
        group["step"] = torch.zeros((), dtype=torch.float32, device=device)
    step = group["step"]
    step.add_(1 if skip is None else _on(step.device, skip.logical_not()))


def _scale_gradients(bucket: _Bucket, divisor: Tensor | None, skip: Tensor | None) -> None:
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


def _update_moments(bucket: _Bucket, group: dict[str, Any], skip: Tensor | None) -> None:
    beta1, beta2 = group["betas"]
    if skip is None and group["grad_averaging"]:
        torch._foreach_lerp_(bucket.exp_avgs, bucket.grads, 1 - beta1)  # one pass fewer
    else:
        grad_weight = 1 - beta1 if group["grad_averaging"] else 1.0
        torch._foreach_mul_(bucket.exp_avgs, _decay(bucket, beta1, skip))
        torch._foreach_add_(bucket.exp_avgs, bucket.grads, alpha=grad_weight)
    torch._foreach_mul_(bucket.exp_avg_sqs, _decay(bucket, beta2, skip))
    torch._foreach_addcmul_(bucket.exp_avg_sqs, bucket.grads, bucket.grads, value=1 - beta2)


def _decay(bucket: _Bucket, beta: float, skip: Tensor | None) -> float | Tensor:
    if skip is None:
        return beta
    decay = torch.full((), beta, dtype=bucket.dtype, device=bucket.device)
    return decay.masked_fill_(skip, 1.0)


def _update_params(bucket: _Bucket, group: dict[str, Any], skip: Tensor | None) -> None:
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


def _bias_correction(bucket: _Bucket, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
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

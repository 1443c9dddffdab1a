"""LAMB (You et al. 2020, arXiv 1904.00962), never waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dali_rsb.kernels.lamb import SUPPORTED_DTYPES, buckets_of, foreach_lamb
from dali_rsb.kernels.triton_support import triton_obstacle

if TYPE_CHECKING:
    from dali_rsb.kernels.lamb_triton import LambKernels

LambBackend = Literal["auto", "triton", "foreach"]

_TRITON_DEVICES = ("cuda",)


def kernel_obstacle(params: Iterable[Tensor]) -> str | None:
    """Why the Triton kernels cannot update these parameters; None where they can."""
    params = list(params)
    if any(p.device.type not in _TRITON_DEVICES for p in params):
        return "the parameters are not on a GPU"
    if len({p.device for p in params}) > 1:
        return "the parameters are on several devices"
    if any(p.dtype != torch.float32 for p in params):
        return "the parameters are not float32"
    if not all(_is_dense(p) for p in params):
        return "a parameter is a view with gaps"
    return triton_obstacle()


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a block of memory, each its own place, in whatever order."""
    # That of such tensors, and only theirs, is the layout that `empty_like` preserves.
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


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
    precision train under autocast. The learning rate is read from `group["lr"]` at each step. The
    state (`exp_avg`, `exp_avg_sq`, and `group["step"]`, a 0-dim float32 tensor on the device of
    the group's first parameter) is interchangeable with timm's through `state_dict`.

    `step` never waits for a GPU. Where N is inf or NaN it leaves parameters, moments and step
    counts as they were, and `skipped` is 1 (timm's would fill all with NaN). What it leaves in
    `p.grad` is not specified. `torch.amp.GradScaler.step` hands over the loss scale and the
    overflow flag as tensors (`grad_scale`, `found_inf`): then N is the norm of the unscaled
    gradients.

    Backends: "triton" makes a step in five launches and can average the parameters in the same
    pass (`ModelEma.hand_over`), for float32 parameters on one GPU; "foreach" uses PyTorch's
    operations on lists and works everywhere; "auto" takes the former where it can. They agree up
    to rounding.

    Capturing a step in a CUDA graph ("triton"): make one step before, and call `upload` before
    each replay, so that the graph sees the learning rate.

    Attributes:
        skipped: 0-dim float32 on the device: 1 if the last step was skipped, else 0.

    Raises:
        ValueError: a hyper-parameter out of range, half-precision parameters, or a loaded state of
            a LAMB variant that this class does not have; or
            backend="triton" for parameters that it cannot update.
        RuntimeError: sparse gradients.
    """

    skipped: Tensor
    # For the time of a step; without a value, as GradScaler asks whether they are there.
    grad_scale: Tensor | None
    found_inf: Tensor | None
    # Here, so that copies made by `copy` and `pickle` have them too.
    _backend: LambBackend = "auto"
    _chosen: Literal["triton", "foreach"] | None = None
    _kernels: LambKernels | None = None
    _averages: Mapping[Tensor, Tensor] | None = None
    _average_weight = 0.0

    # What it can do beyond PyTorch's optimizers, see `dali_rsb.optim.protocol`.
    _step_supports_amp_scaling = True  # torch.amp.GradScaler looks for this attribute too
    takes_norm = True

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
        backend: LambBackend = "auto",
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
        self._backend = backend
        super().__init__(params, defaults)

    @property
    def backend(self) -> Literal["triton", "foreach"]:
        """What `step` uses."""
        if self._chosen is None:
            obstacle = kernel_obstacle(self._all_params())
            if self._backend == "triton" and obstacle is not None:
                raise ValueError(f"Lamb cannot use backend='triton': {obstacle}")
            self._chosen = "foreach" if self._backend == "foreach" or obstacle else "triton"
        return self._chosen

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._chosen, self._kernels = None, None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._chosen, self._kernels = None, None
        device = self._device
        for group in self.param_groups:
            for name in ("trust_clip", "always_adapt"):  # which apex has not
                group.setdefault(name, self.defaults[name])
            for variant in ("caution", "decoupled_decay"):
                if group.get(variant):
                    raise ValueError(f"Cannot load the state of a LAMB with {variant}=True")
            if "step" in group:
                # timm keeps the step on the CPU, apex as an int.
                device = group["params"][0].device if group["params"] else device
                group["step"] = torch.as_tensor(group["step"], dtype=torch.float32, device=device)
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
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        if not isinstance(found_inf, Tensor):
            found_inf = None
        self._start_counts()
        if self._kernels is not None and self._kernels.device != self._device:
            self._chosen, self._kernels = None, None  # the model was moved
        if self.backend == "triton":
            self._step_triton(grad_scale, found_inf)
        else:
            self._step_foreach(grad_scale, found_inf)
        self._averages = None
        return loss

    def fuse_averages(self, averages: Mapping[Tensor, Tensor], weight: float) -> set[Tensor]:
        """Let the next `step` also move each EMA by `weight` towards its updated parameter.

        Args:
            averages: the EMA of each parameter, a tensor like it.
            weight: 1 - decay.

        Returns:
            The parameters whose EMA the next step will update, whether or not it skips.
        """
        if self.backend != "triton":
            return set()
        params = set(self._all_params())
        self._averages = {
            p: average
            for p, average in averages.items()
            if p in params
            and average.dtype == p.dtype
            and average.device == p.device
            and _same_order(average, p)
        }
        self._average_weight = weight
        return set(self._averages)

    def describe(self) -> str:
        """What `step` runs on, and why not on Triton."""
        if self.backend == "triton":
            return "LAMB and the EMA of the parameters run in Triton kernels"
        why = kernel_obstacle(self._all_params()) or "as optimizer.backend asks"
        return f"LAMB runs on PyTorch's foreach operations ({why})"

    def upload(self) -> None:
        """Bring learning rates, betas and such to the device; `step` does, but not in a capture."""
        if self._kernels is None:
            return
        values = []
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            values.append(
                [
                    0.0 if isinstance(group["lr"], Tensor) else group["lr"],
                    math.log(beta1) if beta1 else -math.inf,
                    math.log(beta2) if beta2 else -math.inf,
                    beta1,
                    beta2,
                    1 - beta1 if group["grad_averaging"] else 1.0,
                    group["eps"],
                    group["weight_decay"],
                    group["bias_correction"],
                    group["weight_decay"] != 0 or group["always_adapt"],
                    group["trust_clip"],
                ]
            )
        self._kernels.set_hyper(values, self._average_weight)

    def _step_foreach(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        entries = [
            [(p, p.grad, *self._moments(p, p.grad)) for p in group["params"] if p.grad is not None]
            for group in self.param_groups
        ]
        self.skipped = foreach_lamb(
            self.param_groups,
            [buckets_of(group_entries) for group_entries in entries],
            self.defaults["max_grad_norm"],
            grad_scale,
            found_inf,
        )

    def _step_triton(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        kernels = self._triton_kernels()
        device = self._device
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            self.upload()
        for number, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Tensor):
                kernels.set_lr(number, group["lr"])
        grads: list[Tensor | None] = []
        exp_avgs: list[Tensor | None] = []
        exp_avg_sqs: list[Tensor | None] = []
        for p in kernels.params:
            grad = p.grad
            exp_avg, exp_avg_sq = None, None
            if grad is not None:
                exp_avg, exp_avg_sq = self._moments(p, grad)
                if not _same_order(grad, p):
                    grad = torch.empty_like(p).copy_(grad)
            grads.append(grad)
            exp_avgs.append(exp_avg)
            exp_avg_sqs.append(exp_avg_sq)
        averages = None
        if self._averages is not None:
            averages = [self._averages.get(p) for p in kernels.params]
        kernels.step(
            grads,
            exp_avgs,
            exp_avg_sqs,
            averages,
            self.defaults["max_grad_norm"],
            _scalar_on(device, grad_scale),
            _scalar_on(device, found_inf),
        )
        self.skipped = kernels.skipped

    def _triton_kernels(self) -> LambKernels:
        if self._kernels is None:
            from dali_rsb.kernels.lamb_triton import LambKernels

            group_of = [
                number for number, group in enumerate(self.param_groups) for _ in group["params"]
            ]
            steps = [group["step"] for group in self.param_groups]
            self._kernels = LambKernels(self._all_params(), group_of, steps)
        return self._kernels

    def _moments(self, p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Both moments of a parameter, zeros at its first gradient."""
        if grad.is_sparse:
            raise RuntimeError("Lamb does not support sparse gradients")
        state = self.state[p]
        if not state:
            if p.dtype not in SUPPORTED_DTYPES:
                raise ValueError(
                    f"Lamb does not support {p.dtype} parameters: keep them in float32 and "
                    "train under autocast"
                )
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        return state["exp_avg"], state["exp_avg_sq"]

    def _start_counts(self) -> None:
        for group in self.param_groups:
            if "step" not in group:
                device = group["params"][0].device if group["params"] else self._device
                group["step"] = torch.zeros((), dtype=torch.float32, device=device)

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def _device(self) -> torch.device:
        params = next(group["params"] for group in self.param_groups if group["params"])
        device: torch.device = params[0].device
        return device


def _same_order(a: Tensor, b: Tensor) -> bool:
    """Do the elements of two tensors of one shape lie in the same order, without gaps in `b`?"""
    if a.stride() == b.stride():
        return True
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or ours == theirs for size, ours, theirs in strides)


def _scalar_on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.to(device, torch.float32, non_blocking=True)

"""Optimizers by name, and LAMB's backends."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from dali_rsb.errors import UserError, suggestion
from dali_rsb.optim.groups import param_groups
from dali_rsb.optim.lamb import Lamb, kernel_obstacle

Backend = Literal["auto", "triton", "foreach", "apex"]

_FUSED_DEVICES = ("cuda",)  # where PyTorch's fused optimizers are taken
_APEX_DEVICES = ("cuda",)

_APEX_FIX = (
    "build NVIDIA's from source: pip install -v --no-build-isolation --config-settings "
    '"--build-option=--cpp_ext" --config-settings "--build-option=--cuda_ext" '
    "git+https://github.com/NVIDIA/apex, or set optimizer.backend=auto"
)

_Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class _Entry:
    """One optimizer.

    Attributes:
        create: makes it from parameter groups, options and a backend.
        options: those it has beside the learning rate and the weight decay.
        backends: implementations to choose from.
    """

    create: Callable[[_Groups, dict[str, Any], Backend], torch.optim.Optimizer]
    options: tuple[str, ...]
    backends: tuple[Backend, ...] = ("auto",)


def create_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    max_grad_norm: float | None = None,
    backend: Backend = "auto",
    layer_decay: float | None = None,
    layer_decay_min_scale: float = 0.0,
) -> torch.optim.Optimizer:
    """Create `lamb`, `sgd` or `adamw` over the model's trainable parameters.

    Weight decay spares biases, normalisation weights and what the model names, and `layer_decay`
    lowers the learning rate from the head down to the stem, see `param_groups`; a group's rate is
    `lr` times its `lr_scale`. An option left None takes the optimizer's own default, and an option
    the optimizer does not have is ignored, so that one configuration serves all three.
    `max_grad_norm` is the limit inside LAMB (`math.inf` turns
    it off); for the others the training loop clips.

    `backend` is LAMB's: see `Lamb`, or "apex" for NVIDIA apex's FusedLAMB. That one is the same
    arithmetic as timm's, with fewer options (`max_grad_norm` must be a number; no trust clip), it
    leaves the update in `p.grad`, and it cannot skip a step itself: the training step reads from
    the device, once an update, whether to. On a GPU SGD and AdamW take PyTorch's fused
    implementation, which can.

    Raises:
        UserError: unknown name, a backend of another optimizer or one that cannot run here, or
            `layer_decay` for a model that does not say what its layers are.
    """
    if name not in _OPTIMIZERS:
        nearest, choices = suggestion(name, _OPTIMIZERS, cutoff=0.0), ", ".join(_OPTIMIZERS)
        raise UserError(f"unknown optimizer {name!r}{nearest} The choices are: {choices}")
    entry = _OPTIMIZERS[name]
    if backend not in entry.backends:
        having = " or ".join(n for n, other in _OPTIMIZERS.items() if backend in other.backends)
        raise UserError(
            f"optimizer.backend={backend} is for optimizer.name={having}; "
            "set optimizer.backend=auto"
        )
    given = {
        "betas": betas,
        "eps": eps,
        "momentum": momentum,
        "nesterov": nesterov,
        "max_grad_norm": max_grad_norm,
    }
    options: dict[str, Any] = {
        option: given[option] for option in entry.options if given[option] is not None
    }
    options |= {"lr": lr, "weight_decay": 0.0}
    groups = param_groups(model, weight_decay, layer_decay, layer_decay_min_scale)
    for group in groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return entry.create(groups, options, backend)


def _create_lamb(
    groups: _Groups, options: dict[str, Any], backend: Backend
) -> torch.optim.Optimizer:
    if backend == "apex":
        return _create_apex(groups, options)
    if options.get("max_grad_norm") == math.inf:
        options["max_grad_norm"] = None
    if backend == "triton":
        obstacle = kernel_obstacle(_parameters(groups))
        if obstacle is not None:
            raise UserError(
                f"optimizer.backend=triton cannot run: {obstacle}; set optimizer.backend=auto"
            )
    return Lamb(groups, backend=backend, **options)


def _create_torch(
    optimizer_class: type[torch.optim.Optimizer],
    groups: _Groups,
    options: dict[str, Any],
    backend: Backend,
) -> torch.optim.Optimizer:
    """SGD or AdamW; on a GPU fused, which takes a flag on the device to skip a step."""
    parameters = _parameters(groups)
    is_fused = all(p.device.type in _FUSED_DEVICES for p in parameters)
    optimizer = optimizer_class(groups, fused=is_fused or None, **options)  # type: ignore[call-arg]
    if is_fused and options.get("momentum"):
        # Else a skipped first step leaves these uninitialised; from zeros it is the same start.
        for p in parameters:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    optimizer.register_load_state_dict_post_hook(_restore_implementation)
    return optimizer


_OPTIMIZERS = {
    "lamb": _Entry(_create_lamb, ("betas", "eps", "max_grad_norm"), get_args(Backend)),
    "sgd": _Entry(partial(_create_torch, torch.optim.SGD), ("momentum", "nesterov")),
    "adamw": _Entry(partial(_create_torch, torch.optim.AdamW), ("betas", "eps")),
}


def _parameters(groups: _Groups) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


def _restore_implementation(optimizer: torch.optim.Optimizer) -> None:
    """A state saved on another device brings along that device's implementation: undo it."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = optimizer.defaults["fused"], None
        for p in group["params"]:
            step = optimizer.state[p].get("step")
            if step is not None and group["fused"]:
                optimizer.state[p]["step"] = step.to(p.device, torch.float32)


def _create_apex(groups: _Groups, options: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from apex.optimizers import FusedLAMB
    except ImportError as error:
        if importlib.util.find_spec("apex") is None:
            raise UserError(f"optimizer.backend=apex needs NVIDIA apex; {_APEX_FIX}") from error
        raise UserError(
            "optimizer.backend=apex: the package `apex` that is installed has no apex.optimizers; "
            "the package index's apex is another project: pip uninstall apex, then "
            f"{_APEX_FIX}"
        ) from error
    if any(p.device.type not in _APEX_DEVICES for p in _parameters(groups)):
        raise UserError("optimizer.backend=apex needs a GPU; set optimizer.backend=auto")
    try:
        optimizer: Any = FusedLAMB(groups, **options)
    except RuntimeError as error:
        raise UserError(
            f"optimizer.backend=apex: apex was built without its kernels ({error}); {_APEX_FIX}"
        ) from error
    optimizer.register_load_state_dict_post_hook(_count_in_integers)
    optimizer.describe = lambda: "LAMB runs in apex's FusedLAMB (a synchronisation each update)"
    return cast(torch.optim.Optimizer, optimizer)


def _count_in_integers(optimizer: torch.optim.Optimizer) -> None:
    """Apex counts a group's steps in an int, timm and `Lamb` in a tensor."""
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = int(group["step"])

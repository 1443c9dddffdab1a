"""Optimizers by name."""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import nn

from dali_rsb.errors import UserError
from dali_rsb.optim.groups import param_groups
from dali_rsb.optim.lamb import Lamb

# Each optimizer and the options it has beside the learning rate and the weight decay.
_OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], tuple[str, ...]]] = {
    "lamb": (Lamb, ("betas", "eps", "max_grad_norm")),
    "sgd": (torch.optim.SGD, ("momentum", "nesterov")),
    "adamw": (torch.optim.AdamW, ("betas", "eps")),
}


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
) -> torch.optim.Optimizer:
    """Create `lamb`, `sgd` or `adamw` over the model's trainable parameters.

    Weight decay spares biases and normalisation weights, see `param_groups`. An option left None
    takes the optimizer's own default, and an option the optimizer does not have is ignored, so that
    one configuration serves all three. `max_grad_norm` is the limit inside LAMB (`math.inf` turns
    it off); for the others the training loop clips.

    Raises:
        UserError: unknown name.
    """
    if name not in _OPTIMIZERS:
        nearest = difflib.get_close_matches(name, _OPTIMIZERS, n=1, cutoff=0.0)[0]
        choices = ", ".join(_OPTIMIZERS)
        raise UserError(
            f"unknown optimizer {name!r}, did you mean {nearest!r}? The choices are: {choices}"
        )
    optimizer_class, option_names = _OPTIMIZERS[name]
    given = {
        "betas": betas,
        "eps": eps,
        "momentum": momentum,
        "nesterov": nesterov,
        "max_grad_norm": max_grad_norm,
    }
    options: dict[str, Any] = {
        option: given[option] for option in option_names if given[option] is not None
    }
    if options.get("max_grad_norm") == math.inf:
        options["max_grad_norm"] = None
    groups = param_groups(model, weight_decay)
    return optimizer_class(groups, lr=lr, weight_decay=0.0, **options)  # type: ignore[call-arg]

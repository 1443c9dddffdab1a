"""Parameter groups: which parameters are decayed, which are not."""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups without and with weight decay.

    As in timm, a parameter of at most one dimension (normalisation weights, biases) or whose name
    ends with `.bias` is not decayed. The order is [not decayed, decayed]; an empty group is left
    out, and `weight_decay=0` gives one group. Frozen parameters are skipped.
    """
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = weight_decay == 0 or parameter.ndim <= 1 or name.endswith(".bias")
        (not_decayed if exempt else decayed).append(parameter)
    groups = [
        {"params": not_decayed, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]

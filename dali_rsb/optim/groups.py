"""Parameter groups: which parameters are decayed, and how the learning rate falls with depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

from torch import nn

from dali_rsb.errors import UserError

# What a model's `group_matcher` returns, as in timm: patterns of each kind of layer in the order of
# depth, or a function of a name.
_Pattern = str | Iterable[tuple[str, tuple[float, ...] | None]] | None
_Matcher = Mapping[str, _Pattern] | Callable[[str], Any]

_UNMATCHED = (float("inf"),)  # the head: deeper than all layers
_JOIN_PREVIOUS = 99999.0  # timm's MATCH_PREV_GROUP: a key that ends so joins the layer before it


def param_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float | None = None,
    layer_decay_min_scale: float = 0.0,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups, as timm does.

    Without `layer_decay` the groups are [not decayed, decayed], as those of timm's
    `param_groups_weight_decay`: a parameter is not decayed that has at most one dimension
    (normalisation weights, biases), whose name ends with `.bias`, or that the model's
    `no_weight_decay()` names (a ViT's position embedding and class token). An empty group is left
    out, and `weight_decay=0` gives one group.

    With `layer_decay` there are up to two groups a layer, in the order of the model's parameters,
    as those of timm's `param_groups_layer_decay`; `lr_scale` of the layer n layers before the last
    is `max(layer_decay ** n, layer_decay_min_scale)`. The layers are those of the model's
    `group_matcher()`, and what it does not match is the last one. As in timm, a name that ends with
    `.bias` is no reason here: a 2-D bias is decayed.

    Frozen parameters are left out.

    Raises:
        UserError: `layer_decay` for a model without `group_matcher`.
    """
    exempt: Iterable[str] = getattr(model, "no_weight_decay", set)()
    if layer_decay is None:
        return _by_weight_decay(model, weight_decay, exempt)
    layers = layers_of(
        model, "the learning rate cannot decay by them; leave out optimizer.layer_decay"
    )
    last = max(layers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.ndim > 1 and not _matches(name, exempt)
        key = (layers[name], is_decayed)
        if key not in groups:
            groups[key] = {
                "params": [],
                "weight_decay": weight_decay if is_decayed else 0.0,
                "lr_scale": max(layer_decay ** (last - layers[name]), layer_decay_min_scale),
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())


def _by_weight_decay(
    model: nn.Module, weight_decay: float, exempt: Iterable[str]
) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_exempt = parameter.ndim <= 1 or name.endswith(".bias") or _matches(name, exempt)
        (not_decayed if is_exempt or weight_decay == 0 else decayed).append(parameter)
    groups = [
        {"params": not_decayed, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def layers_of(model: nn.Module, otherwise: str, coarse: bool = False) -> dict[str, int]:
    """The layer of each parameter by its name, counted from 0 at the input.

    Args:
        otherwise: what cannot be done without them, and the fix, for the message.
        coarse: a layer is a stage, not a block.

    Raises:
        UserError: the model has no `group_matcher`.
    """
    group_matcher: Any = getattr(model, "group_matcher", None)
    if group_matcher is None:
        raise UserError(
            f"{type(model).__name__} does not say what its layers are (it has no group_matcher): "
            f"{otherwise}"
        )
    depth_of = _depth_function(group_matcher(coarse=coarse))
    depths = {name: depth_of(name) for name, _ in model.named_parameters()}
    numbers: dict[tuple[float, ...], int] = {}
    for depth in sorted(set(depths.values())):
        joins = bool(numbers) and depth[-1] == _JOIN_PREVIOUS
        numbers[depth] = len(set(numbers.values())) - (1 if joins else 0)
    return {name: numbers[depth] for name, depth in depths.items()}


def _depth_function(matcher: _Matcher) -> Callable[[str], tuple[float, ...]]:
    """What gives a parameter's name a depth to sort by: (kind, numbers in the name, suffix)."""
    if not isinstance(matcher, Mapping):

        def by_function(name: str) -> tuple[float, ...]:
            depth = matcher(name)
            return tuple(depth) if isinstance(depth, Iterable) else (depth,)

        return by_function
    patterns: list[tuple[re.Pattern[str], int, tuple[float, ...]]] = []
    for ordinal, pattern in enumerate(matcher.values()):
        if isinstance(pattern, str):
            patterns.append((re.compile(pattern), ordinal, ()))
        elif pattern is not None:
            patterns += [(re.compile(p), ordinal, suffix or ()) for p, suffix in pattern]

    def by_pattern(name: str) -> tuple[float, ...]:
        for pattern, ordinal, suffix in patterns:
            match = pattern.match(name)
            if match:
                numbers = [float(group) for group in match.groups() if group is not None]
                return (float(ordinal), *numbers, *suffix)
        return _UNMATCHED

    return by_pattern

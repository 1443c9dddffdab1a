"""Freezes parts of a model: parameters that do not learn, norms whose statistics stay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dali_rsb.errors import UserError
from dali_rsb.optim.groups import layers_of

Part = Literal["backbone"] | int


def freeze(
    model: nn.Module, part: Part | None, classifier: Collection[str], all_norms: bool = False
) -> list[nn.Module]:
    """Freeze a part of a model, in place: its parameters need no gradients any more.

    A frozen parameter has no optimizer state (see `param_groups`) and its EMA equals it. The
    statistics of the batch norms in the part are frozen with it.

    Args:
        part: "backbone" for all but the classifier; a number for the stem and so many stages, as
            the model's `group_matcher(coarse=True)` counts them; None for nothing.
        classifier: names of the classifier's parameters.
        all_norms: freeze the affine parameters and the statistics of every batch norm.

    Returns:
        The norms that have to be in evaluation mode throughout the training.

    Raises:
        UserError: there are fewer stages, or the model does not say what they are.
    """
    parameters = dict(model.named_parameters())
    frozen = _names(model, part, classifier)
    norms: list[nn.Module] = []
    for path, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        own = {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
        if all_norms or (own and own <= frozen):
            frozen |= own
            norms.append(module)
    for name in frozen:
        parameters[name].requires_grad_(False)
    return norms


def _names(model: nn.Module, part: Part | None, classifier: Collection[str]) -> set[str]:
    if part is None:
        return set()
    names = {name for name, _ in model.named_parameters()}
    if part == "backbone":
        return names - set(classifier)
    layers = layers_of(model, "model.freeze counts stages; set model.freeze=backbone", coarse=True)
    num_stages = max(layers.values()) - 1  # between stem and classifier
    if part > num_stages:
        raise UserError(
            f"model.freeze={part}: the model has {num_stages} stages; give fewer, or "
            "model.freeze=backbone"
        )
    return {name for name, layer in layers.items() if layer <= part} - set(classifier)

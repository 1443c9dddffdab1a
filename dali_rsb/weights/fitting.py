"""Loads weights into a model: all of them, or all but the head; whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dali_rsb.dataset.classes import first_difference, join_classes
from dali_rsb.errors import UserError

if TYPE_CHECKING:
    from dali_rsb.weights.weights import Weights

Head = Literal["auto", "keep", "replace"]


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a model of the same architecture.

    Raises:
        UserError: names or shapes differ; names the first that does.
    """
    _check_fit(module.state_dict(), weights, source)
    module.load_state_dict(weights)


def load_initial(
    model: nn.Module,
    weights: Weights,
    classes: Sequence[str],
    head: Head,
    classifier: Collection[str],
) -> str:
    """Load weights to go on from, on other classes perhaps; everything but the head must fit.

    With "auto" the head is kept where the source names the same classes. In a kept head each row
    follows the name of its class. A replaced head stays as the model has initialised it.

    Args:
        classes: the outputs of the model, in their order.
        head: what becomes of the weights' classifier.
        classifier: names of the model's classifier parameters.

    Returns:
        What has become of the head, and why: a line for the log.

    Raises:
        UserError: the weights are of another architecture, or a head to be kept does not fit.
    """
    own = model.state_dict()
    tensors = dict(weights.tensors)
    theirs = weights.classes
    misfit = next((name for name in classifier if _shape(own, name) != _shape(tensors, name)), None)
    same_names = theirs is not None and sorted(theirs) == sorted(classes)
    if head == "keep" and misfit is not None:
        raise UserError(
            f"model.head=keep: {misfit} is {_shape(tensors, misfit)} in {weights.source} and "
            f"{_shape(own, misfit)} in the model; set model.head=replace"
        )
    if head == "keep" or (head == "auto" and same_names and misfit is None):
        message = "the head is kept, its classes are the same"
        if theirs is not None and same_names and list(theirs) != list(classes):
            rows = torch.from_numpy(join_classes(classes, theirs).positions)
            tensors |= {name: tensors[name][rows] for name in classifier}
            message = "the head is kept, its rows in the new order of the same classes"
        elif not same_names:
            message = "the head is kept as model.head=keep asks, " + _difference(theirs, classes)
    else:
        tensors |= {name: own[name] for name in classifier}
        why = "as model.head=replace asks" if head == "replace" else _difference(theirs, classes)
        message = f"the head ({', '.join(classifier)}) is new, {why}"
    _check_fit(own, tensors, weights.source)
    model.load_state_dict(tensors)
    return f"weights from {weights.source} ({weights.kind}): {message}"


def _difference(theirs: Sequence[str] | None, classes: Sequence[str]) -> str:
    if theirs is None:
        return "as the weights do not name their classes"
    if len(theirs) != len(classes):
        return f"for {len(classes)} classes in place of {len(theirs)}"
    found = first_difference(sorted(theirs), sorted(classes))
    if found is None:
        return "as it has another form"
    return f"as the classes differ: {found[1]} there, {found[2]} here"


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"


def _check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    for name in [*own, *weights]:
        if name not in weights or name not in own or own[name].shape != weights[name].shape:
            raise UserError(
                f"{source} is of another architecture: {name} is {_shape(weights, name)} there and "
                f"{_shape(own, name)} in the model; set model.name and model.num_classes to those "
                "of the checkpoint"
            )

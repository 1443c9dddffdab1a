"""Averages of weights: of all given, or greedily of those that help; and their norm statistics.

Uniform and greedy soups: Wortsman et al. 2022, arXiv:2203.05482. The statistics of batch norms are
no weights: the mean of several models' statistics belongs to none of the mean model's activations,
so they are computed again (as in Izmailov et al. 2018, arXiv:1803.05407).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dali_rsb.dataset.classes import first_difference
from dali_rsb.errors import UserError
from dali_rsb.system.names import short_path
from dali_rsb.weights.weights import Weights

# What the run of one source says that holds for an average too; its accuracy does not.
_SHARED = ("config", "environment", "images")


def check_alike(sources: Sequence[Weights]) -> None:
    """Refuse to average weights that do not mean the same.

    Raises:
        UserError: names the first difference from the first source: architecture, classes, or the
            name, shape or type of a tensor.
    """
    first = sources[0]
    for other in sources[1:]:
        difference = _difference(first, other)
        if difference:
            raise UserError(f"{other.source} is no match for {first.source}: {difference}")


def _difference(a: Weights, b: Weights) -> str:
    if a.architecture != b.architecture:
        return f"it is a {b.architecture}, not a {a.architecture}"
    if (a.classes is None) != (b.classes is None):
        return "only one of them names its classes; export the other with --classes first"
    if found := first_difference(a.classes or (), b.classes or ()):
        label, ours, theirs = found
        return f"class {label} is {theirs} there and {ours} here; average models of one dataset"
    for name in [*a.tensors, *b.tensors]:
        ours, theirs = (_kind(weights.tensors.get(name)) for weights in (a, b))
        if ours != theirs:
            return f"{name} is {theirs} there and {ours} here"
    return ""


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def averaged(sources: Sequence[Weights]) -> Weights:
    """The mean of some weights, with the description of the first; see `mean_of` and `check_alike`.

    What its run says of accuracy and epoch is not the mean's and left out; "averaged" names the
    sources.
    """
    first = sources[0]
    run = {key: first.run[key] for key in _SHARED if key in first.run}
    return replace(
        first,
        tensors=mean_of([weights.tensors for weights in sources]),
        source=f"the mean of {len(sources)} sources",
        kind="EMA" if all(weights.kind == "EMA" for weights in sources) else "model",
        run={**run, "averaged": [short_path(weights.source) for weights in sources]},
    )


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, summed in float64; others are those of the first."""
    result = {}
    for name, tensor in states[0].items():
        if not tensor.is_floating_point():
            result[name] = tensor.clone()
            continue
        total = torch.zeros(tensor.shape, dtype=torch.float64)
        for state in states:
            total += state[name]
        result[name] = (total / len(states)).to(tensor.dtype)
    return result


def norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a model that keep statistics of their inputs."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


@torch.no_grad()
def recompute_norm_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the statistics of all batch norms by the mean of those of some batches.

    Each batch counts alike, whatever its size: give batches of one size. Nothing else of the model
    is in training mode, so that dropout and the like stay off.

    Args:
        model: on the batches' device.
        batches: normalised images, float32 [B, 3, H, W] each.

    Returns:
        The number of images.
    """
    num_images = 0
    with _collecting(model):
        for images in batches:
            model(images)
            num_images += len(images)
    return num_images


@contextmanager
def _collecting(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode with a cumulative average, from zero; afterwards as before."""
    layers = norm_layers(model)
    momenta = [layer.momentum for layer in layers]
    was_training = model.training
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's cumulative average
        layer.train()
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(was_training)


def with_norm_statistics(
    weights: Weights, batches: Iterable[Tensor], device: torch.device
) -> Weights:
    """Weights whose norm statistics are computed again; see `recompute_norm_statistics`."""
    model = weights.model().to(device)
    recompute_norm_statistics(model, batches)
    buffers = dict(model.named_buffers())
    tensors = {
        name: buffers[name].to("cpu", tensor.dtype) if name in buffers else tensor
        for name, tensor in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


@dataclass(frozen=True)
class Soup:
    """What a greedy average has come to.

    Attributes:
        weights: the average.
        top1: its accuracy in percent, by which its ingredients were chosen.
        ingredients: the sources that are in it, best first.
        trials: every source, best first, with its own accuracy and that of the average with it.
    """

    weights: Weights
    top1: float
    ingredients: Sequence[Weights]
    trials: Sequence[tuple[Weights, float, float]]


def greedy_soup(
    sources: Sequence[Weights],
    judge: Callable[[Weights], float],
    combine: Callable[[Sequence[Weights]], Weights],
) -> Soup:
    """Average greedily: from the best on, keep each that does not lower the accuracy.

    Args:
        judge: accuracy in percent, on images that are in no source's training set.
        combine: average of several, with its norm statistics.
    """
    accuracies = [judge(weights) for weights in sources]
    order = sorted(range(len(sources)), key=lambda i: -accuracies[i])
    best = order[0]
    soup, top1, ingredients = sources[best], accuracies[best], [sources[best]]
    trials = [(sources[best], top1, top1)]
    for i in order[1:]:
        candidate = combine([*ingredients, sources[i]])
        with_it = judge(candidate)
        trials.append((sources[i], accuracies[i], with_it))
        if with_it >= top1:
            soup, top1, ingredients = candidate, with_it, [*ingredients, sources[i]]
    return Soup(soup, top1, ingredients, trials)

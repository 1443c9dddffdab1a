"""The accuracies that were published for the recipes, for runs that really are those recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dali_rsb.config import Config, load_config
from dali_rsb.config.asking import differences
from dali_rsb.config.recipes import recipes
from dali_rsb.evaluation.imagenet import are_imagenets

# Top-1 in percent of ResNet-50 on ImageNet-1k at 224 px, Wightman et al. 2021, arXiv:2110.00476.
PUBLISHED = {"a1": 80.4, "a2": 79.8, "a3": 78.1}

# Beside the sections data and run, keys that change how a run is carried out, not what is learnt.
_OF_THE_MACHINE = frozenset(
    (
        *("name", "augment.backend", "optimizer.backend"),
        *("evaluation.every", "evaluation.batch_per_device"),
    )
)
# The keys of these sections that do change what is learnt, or what is measured.
_LEARNT = frozenset(
    (
        *("data.mean", "data.std", "data.sampling", "data.exclude", "data.val_fraction"),
        "run.max_steps",
    )
)


@dataclass(frozen=True)
class Nearest:
    """The recipe that a run's configuration is most like.

    Attributes:
        recipe: its name.
        differing: the keys in which the run learns otherwise, with the recipe's value and its own.
    """

    recipe: str
    differing: dict[str, tuple[Any, Any]]


def nearest_recipe(config: Config) -> Nearest:
    """The recipe with the fewest keys that differ."""
    found = [
        Nearest(name, _learning(differences(load_config(path), config)))
        for name, path in recipes().items()
    ]
    return min(found, key=lambda one: len(one.differing))


def published_top1(nearest: Nearest, classes: Sequence[str] | None) -> float | None:
    """What was published for a run like this one; None where it is no such run.

    Args:
        nearest: of the run.
        classes: of the run's model; None where nobody knows them.
    """
    if nearest.differing or classes is None or not are_imagenets(classes):
        return None
    return PUBLISHED.get(nearest.recipe)


def _learning(found: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    return {
        key: values
        for key, values in found.items()
        if key in _LEARNT
        or not (key in _OF_THE_MACHINE or key.startswith(("data.", "run.", "tracking.")))
    }

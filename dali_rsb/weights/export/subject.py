"""What is exported: weights with their description completed, their model, images to compare on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dali_rsb.constants import TIMM_PREFIX
from dali_rsb.errors import UserError
from dali_rsb.weights.export.accuracy import KnownAccuracy, known_accuracy
from dali_rsb.weights.weights import Preprocessing, Weights, num_outputs

# The fields of `Preprocessing` that decide the pixels of an evaluation.
PREPROCESSING = ("size", "crop_ratio", "interpolation", "mean", "std")


@dataclass(frozen=True)
class Subject:
    """Weights that are ready to be exported.

    Attributes:
        weights: with an architecture and a preprocessing.
        model: the eager model, in evaluation mode; what an export must agree with.
        images: float32 [N, 3, H, W] in [0, 1], not normalised; at least 2.
        images_are: where they come from, for messages.
        is_assumed: nobody has said the preprocessing; it is this package's default.
        accuracy: of these weights, None if it is not known.
    """

    weights: Weights
    model: nn.Module
    images: Tensor
    images_are: str
    is_assumed: bool = False
    accuracy: KnownAccuracy | None = None

    @classmethod
    def of(
        cls, weights: Weights, images: Tensor, images_are: str, is_assumed: bool = False
    ) -> Subject:
        """Build the model of complete weights.

        Raises:
            UserError: the weights are of another architecture than they say.
        """
        return cls(
            weights, weights.model(), images, images_are, is_assumed, known_accuracy(weights)
        )

    @property
    def preprocessing(self) -> Preprocessing:
        assert self.weights.preprocessing is not None
        return self.weights.preprocessing

    @property
    def timm_name(self) -> str:
        """The architecture's name in timm; ours are timm's."""
        assert self.weights.architecture is not None
        return self.weights.architecture.removeprefix(TIMM_PREFIX)

    @property
    def num_classes(self) -> int:
        classes = self.weights.classes
        return len(classes) if classes else num_outputs(self.weights.tensors)

    @property
    def normalise(self) -> Normalise:
        return Normalise(self.preprocessing.mean, self.preprocessing.std)


class Normalise(nn.Module):
    """(images - mean) / std, for images float32 [B, 3, H, W] in [0, 1]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


def completed(
    weights: Weights,
    architecture: str | None,
    classes: Sequence[str] | None,
    default: Preprocessing,
    given: Mapping[str, Any],
) -> tuple[Weights, bool]:
    """Weights with what their source does not say, or says otherwise than the user.

    Args:
        architecture: of a source that names none.
        classes: names of the outputs; they replace the source's.
        default: the preprocessing of a source that names none.
        given: fields of `Preprocessing` that the user sets.

    Returns:
        The weights; whether a part of their preprocessing is the default's.

    Raises:
        UserError: nobody names the architecture, the source names another, or there are more or
            fewer names than outputs.
    """
    if weights.architecture is None and architecture is None:
        raise UserError(f"{weights.source} does not say its architecture; give it by --model NAME")
    if architecture is not None and weights.architecture not in (None, architecture):
        raise UserError(
            f"{weights.source} is a {weights.architecture}, not a {architecture}; leave out --model"
        )
    if classes is not None:
        num_classes = len(weights.classes or ()) or num_outputs(weights.tensors)
        if len(classes) != num_classes:
            raise UserError(
                f"--classes names {len(classes)} classes, but {weights.source} has {num_classes} "
                "outputs; give the name of output i in line i"
            )
    preprocessing = replace(weights.preprocessing or default, **given)
    is_assumed = weights.preprocessing is None and not given.keys() >= set(PREPROCESSING)
    weights = replace(
        weights,
        architecture=weights.architecture or architecture,
        classes=weights.classes if classes is None else tuple(classes),
        preprocessing=preprocessing,
    )
    return weights, is_assumed

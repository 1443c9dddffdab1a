"""Weights with all that is known about them: `Weights`, and the model that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.weights.fitting import load_exactly


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its images in an evaluation.

    Attributes:
        mean, std: of the channels, of values in [0, 1].
        size: side of the centre crop in pixels.
        crop_ratio: size / shorter edge after the resize.
        interpolation: filter of the resize.
        train_size: side of the training images in pixels, where it is known.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    crop_ratio: float
    interpolation: Literal["bilinear", "bicubic"]
    train_size: int | None = None


@dataclass(frozen=True)
class Weights:
    """The weights of one model and their description; what a source does not say is None.

    Attributes:
        tensors: the model's state dict, on the CPU, under timm's names.
        source: where they come from, as the user named it; for messages.
        architecture: name for `dali_rsb.create_model`, such as resnet50 or timm:convnext_tiny.
        classes: names of the outputs, in their order.
        preprocessing: of their images.
        kind: "EMA" or "model" where a checkpoint holds both, else "model".
        run: of a checkpoint, what else it says: "config", "updates", "epoch", "top1" (the run's
            best, not always that of these weights), "environment"; empty for others.
    """

    tensors: Mapping[str, Tensor]
    source: str
    architecture: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    kind: Literal["model", "EMA"] = "model"
    run: Mapping[str, Any] = field(default_factory=dict)

    def model(self, architecture: str | None = None) -> nn.Module:
        """The model with these weights, in evaluation mode, float32, on the CPU.

        Args:
            architecture: where the source does not say it.

        Raises:
            UserError: nobody names the architecture, or the weights are of another.
        """
        name = self.architecture or architecture
        if name is None:
            raise UserError(
                f"{self.source} does not say its architecture; give model.name=NAME "
                "(dali-rsb help model)"
            )
        num_classes = len(self.classes) if self.classes else num_outputs(self.tensors)
        model = create_model(name, num_classes)
        load_exactly(model, self.tensors, self.source)
        return model.eval()


# First words of the classifiers' names: those of timm's and torchvision's models.
_CLASSIFIERS = ("fc", "head", "heads", "classifier", "classif", "last_linear")


def num_outputs(tensors: Mapping[str, Tensor]) -> int:
    """Number of classes of a state dict: the rows of its last matrix in a classifier, or at all."""
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    # A safetensors file has its tensors in the order of their names, not of the layers.
    heads = [t for name, t in matrices.items() if name.partition(".")[0] in _CLASSIFIERS]
    last = (heads or [*matrices.values()])[-1:]
    return len(last[0]) if last else 1

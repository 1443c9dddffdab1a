"""Opens weights that are to be evaluated, with the configuration that they are evaluated by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dali_rsb import config as cfg
from dali_rsb.config import override_config
from dali_rsb.errors import UserError
from dali_rsb.evaluation import imagenet
from dali_rsb.evaluation.report import Subject
from dali_rsb.evaluation.rows import Model
from dali_rsb.models.precision import choose_precision
from dali_rsb.run.checkpointer import checkpoint_to_evaluate
from dali_rsb.weights.sources import open_weights
from dali_rsb.weights.weights import Weights, num_outputs

# Of weights with an EMA; "judged" are those that an evaluation judged, the EMA where there is one.
Use = Literal["both", "model", "ema", "judged"]


@dataclass(frozen=True)
class OpenedSubject:
    """Weights of the command line.

    Attributes:
        subject: what they are.
        weights: one of each kind, the trained ones first.
        config: their run's, or defaults with what they say of themselves; then the overrides.
        ways: how they want their images: section `evaluation` for each size.
    """

    subject: Subject
    weights: tuple[Weights, ...]
    config: cfg.Config
    ways: tuple[cfg.Evaluation, ...]

    def models(self, device: torch.device) -> list[Model]:
        """The models on the device.

        Raises:
            UserError: the weights are of another architecture than the model's, or the device does
                not have their precision.
        """
        precision = choose_precision(self.config.run.amp, device)
        data, models = self.config.data, []
        for weights in self.weights:
            # Module.to knows memory_format, its type stub does not.
            module = weights.model().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            models.append(Model(self.subject, weights.kind, module, data.mean, data.std, precision))
        return models


def open_subjects(
    words: Sequence[str],
    use: Use,
    overrides: Sequence[str],
    sizes: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
) -> list[OpenedSubject]:
    """Open all weights of a command line.

    Args:
        words: what names them, see `open_weights`.
        use: of weights with an EMA, which.
        overrides: section.key=value, for all of them.
        sizes: values of evaluation.size to evaluate at; by default the one of the weights.
        class_names: names of the outputs of weights that have none.

    Raises:
        UserError: weights that cannot be opened, whose class names nobody says, or that an override
            does not fit.
    """
    found = [open_weights(word, ema=use != "model") for word in words]
    if class_names is not None and all(weights.classes is not None for weights in found):
        raise UserError("all weights have class names of their own: leave --classes out")
    return [
        _opened(number, weights, use, overrides, sizes, class_names)
        for number, weights in enumerate(found, start=1)
    ]


def _opened(
    number: int,
    weights: Weights,
    use: Use,
    overrides: Sequence[str],
    sizes: Sequence[str],
    class_names: Sequence[str] | None,
) -> OpenedSubject:
    source = weights.source
    if use == "ema" and weights.kind != "EMA":
        raise UserError(f"{source} has no EMA: leave --use ema out")
    classes, remark = _classes(weights, class_names)
    both = [weights]
    if use == "both" and weights.kind == "EMA":
        both.insert(0, open_weights(source, ema=False))
    tree = weights.run.get("config") or _described(weights, len(classes))
    config = override_config(tree, overrides)
    if config.model.num_classes != len(classes):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but {source} has {len(classes)} "
            "classes; leave model.num_classes out: images of some of them are evaluated by their "
            "names"
        )
    is_named = any(override.startswith("model.name=") for override in overrides)
    architecture = config.model.name if weights.run or is_named else weights.architecture
    ways = [
        override_config(tree, [*overrides, f"evaluation.size={size}"]).evaluation
        for size in dict.fromkeys(sizes)
    ]
    subject = Subject(
        number,
        source,
        str(checkpoint_to_evaluate(Path(source).expanduser())) if weights.run else None,
        architecture,
        weights.run.get("epoch"),
        tuple(one.kind for one in both),
        classes,
        remark,
    )
    described = [replace(one, architecture=architecture, classes=classes) for one in both]
    return OpenedSubject(subject, tuple(described), config, tuple(ways or [config.evaluation]))


def _classes(
    weights: Weights, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], str | None]:
    """The names of the outputs, and a remark if the weights do not say them.

    Raises:
        UserError: nobody says them.
    """
    if weights.classes is not None:
        return tuple(weights.classes), None
    outputs = num_outputs(weights.tensors)
    if class_names is not None and len(class_names) != outputs:
        raise UserError(
            f"{weights.source} has {outputs} outputs, and --classes names {len(class_names)}: give "
            "the name of output i in line i"
        )
    if class_names is not None:
        return tuple(class_names), "class names by --classes"
    if outputs == imagenet.NUM_CLASSES:
        remark = "no class names there: taken for ImageNet's synsets in their sorted order"
        return imagenet.imagenet_classes(), remark
    raise UserError(
        f"{weights.source} has {outputs} outputs and no class names: give the name of output i in "
        "line i by --classes FILE"
    )


def _described(weights: Weights, num_classes: int) -> dict[str, Any]:
    """A configuration of weights that no run made: what they say, and the defaults."""
    tree: dict[str, Any] = {
        "name": "weights",
        "model": {"num_classes": num_classes},
        "run": {"device": "auto"},
    }
    if weights.architecture is not None:
        tree["model"]["name"] = weights.architecture
    if (images := weights.preprocessing) is not None:
        tree["data"] = {"mean": images.mean, "std": images.std}
        tree["evaluation"] = {
            "size": images.size,
            "crop_ratio": images.crop_ratio,
            "interpolation": images.interpolation,
        }
    return tree

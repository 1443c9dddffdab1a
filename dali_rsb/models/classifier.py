"""Where a model's classifier is: the layers whose rows are the classes."""

from __future__ import annotations

from typing import Any

from torch import nn

from dali_rsb.errors import UserError
from dali_rsb.models.resnet import ResNet


def classifier_parameters(model: nn.Module) -> list[str]:
    """Names of the classifier's parameters; a distilled model of timm has two classifiers.

    Raises:
        UserError: the model has none, or does not say which it is.
    """
    names = ["fc"]
    if not isinstance(model, ResNet):
        cfg: Any = getattr(model, "pretrained_cfg", None) or {}
        classifier = cfg.get("classifier") or ()
        names = [classifier] if isinstance(classifier, str) else list(classifier)
    prefixes = tuple(f"{name}." for name in names)
    found = [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
    if not prefixes or not found:
        raise UserError(
            f"{type(model).__name__} does not say which of its layers is the classifier; choose "
            "another model.name"
        )
    return found

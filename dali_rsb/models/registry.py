"""The table of model names, and `create_model`, which also builds any timm model by `timm:NAME`."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from dali_rsb.constants import TIMM_PREFIX
from dali_rsb.errors import UserError
from dali_rsb.models.resnet import BasicBlock, Bottleneck, ResNet, ResNetSpec

_ResNetD = partial(ResNetSpec, deep_stem=True, avg_pool_shortcut=True)
_SEResNet = partial(ResNetSpec, squeeze_excite_ratio=1 / 16)
_ResNetRS = partial(
    ResNetSpec,
    Bottleneck,
    deep_stem=True,
    conv_stem_pool=True,
    avg_pool_shortcut=True,
    squeeze_excite_ratio=1 / 4,
)

# Stage depths: table 1 of arXiv:1512.03385 and, for ResNet-RS, the configurations released with
# arXiv:2103.07579. Ratios of squeeze-excite: section 6.4 of arXiv:1709.01507 and the same release.
RESNET_SPECS = {
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNetSpec(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetSpec(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetSpec(Bottleneck, (3, 4, 23, 3)),
    "resnet152": ResNetSpec(Bottleneck, (3, 8, 36, 3)),
    "resnet18d": _ResNetD(BasicBlock, (2, 2, 2, 2)),
    "resnet34d": _ResNetD(BasicBlock, (3, 4, 6, 3)),
    "resnet50d": _ResNetD(Bottleneck, (3, 4, 6, 3)),
    "resnet101d": _ResNetD(Bottleneck, (3, 4, 23, 3)),
    "resnet152d": _ResNetD(Bottleneck, (3, 8, 36, 3)),
    "resnet200d": _ResNetD(Bottleneck, (3, 24, 36, 3)),
    "seresnet18": _SEResNet(BasicBlock, (2, 2, 2, 2)),
    "seresnet34": _SEResNet(BasicBlock, (3, 4, 6, 3)),
    "seresnet50": _SEResNet(Bottleneck, (3, 4, 6, 3)),
    "seresnet101": _SEResNet(Bottleneck, (3, 4, 23, 3)),
    "seresnet152": _SEResNet(Bottleneck, (3, 8, 36, 3)),
    "resnetrs50": _ResNetRS((3, 4, 6, 3)),
    "resnetrs101": _ResNetRS((3, 4, 23, 3)),
    "resnetrs152": _ResNetRS((3, 8, 36, 3)),
    "resnetrs200": _ResNetRS((3, 24, 36, 3)),
    "resnetrs270": _ResNetRS((4, 29, 53, 4)),
    "resnetrs350": _ResNetRS((4, 36, 72, 4)),
    "resnetrs420": _ResNetRS((4, 44, 87, 4)),
}


def list_models() -> list[str]:
    """Return the names of the built-in models, family by family, smallest first."""
    return list(RESNET_SPECS)


def create_model(
    name: str, num_classes: int = 1000, drop_path: float = 0.0, dropout: float = 0.0
) -> nn.Module:
    """Build a model with fresh weights, in float32 and the default memory format.

    The model maps images [B, 3, H, W] to logits [B, num_classes].

    Args:
        name: one of `list_models()`, or `timm:NAME` for any model of an installed timm.
        num_classes: at least 1.
        drop_path: stochastic-depth rate of the last block, in [0, 1); rates grow linearly from 0.
        dropout: probability of dropout before the classifier, in [0, 1).

    Raises:
        UserError: the name is unknown, a value is out of range, timm is wanted and not installed,
            or the timm model has no such rate.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; give at least 1")
    for key, rate in (("drop_path", drop_path), ("dropout", dropout)):
        if not 0.0 <= rate < 1.0:
            raise UserError(f"{key} is {rate}; give a probability of at least 0 and below 1")
    if name.startswith(TIMM_PREFIX):
        return _create_timm_model(
            name.removeprefix(TIMM_PREFIX), num_classes, drop_path=drop_path, dropout=dropout
        )
    if name not in RESNET_SPECS:
        raise UserError(
            f"unknown model {name!r}; the nearest names are {_nearest(name, list_models())}; "
            f"write {TIMM_PREFIX}NAME for a model of timm"
        )
    return ResNet(RESNET_SPECS[name], num_classes, drop_path, dropout)


def check_input_sizes(model: nn.Module, name: str, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that a model cannot take, as those of timm's transformers.

    Args:
        model: of `create_model`.
        name: of the model, for the message.
        sizes: sides of square images in pixels, by what sets them.

    Raises:
        UserError: the model takes images of one size alone, and this is another.
    """
    facts = getattr(model, "pretrained_cfg", None) or {}
    if not facts.get("fixed_input_size"):
        return
    side = facts["input_size"][-1]
    if wrong := [key for key, size in sizes.items() if size != side]:
        raise UserError(
            f"model {name} takes images of {side} x {side} pixels alone; set "
            f"{' '.join(f'{key}={side}' for key in wrong)}"
        )


def check_batch_of_one(model: nn.Module, size_px: int, frozen_norms: Sequence[nn.Module]) -> None:
    """Refuse a batch of one image where a batch norm would have one value of each channel.

    Args:
        size_px: side of the image, which may be 1 pixel by the last batch norms.
        frozen_norms: of the model's, those that do not look at the batch.

    Raises:
        UserError: there is such a batch norm.
    """
    duplicate, frozen = copy.deepcopy((model, list(frozen_norms)))
    duplicate.to("meta").train()
    for norm in frozen:
        norm.eval()
    try:
        duplicate(torch.empty(1, 3, size_px, size_px, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"batch norm has nothing to normalise in one image of {size_px} px: set "
            "optimizer.batch_size, or run.batch_per_device, to 2 images a device or more"
        ) from error


def _create_timm_model(
    name: str, num_classes: int, *, drop_path: float, dropout: float
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"model {TIMM_PREFIX}{name} needs timm ({error}); run: pip install timm"
        ) from error
    architecture, _, weights_tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = _nearest(architecture, timm.list_models())
        raise UserError(f"timm has no model {architecture!r}; the nearest names are {nearest}")
    if weights_tag:
        raise UserError(
            f"{TIMM_PREFIX}{name} asks for the pretrained weights {weights_tag!r}, and none are "
            f"loaded here; write {TIMM_PREFIX}{architecture}"
        )
    # A rate of 0 is passed too, because some timm models default to another; those that know no
    # such rate refuse the keyword, which is harmless for 0.
    rates = {"drop_path_rate": drop_path, "drop_rate": dropout}
    while True:
        try:
            return timm.create_model(architecture, num_classes=num_classes, **rates)
        except TypeError as error:
            refused = next((key for key in rates if f"keyword argument '{key}'" in str(error)), "")
            if not refused:
                raise
            if rates.pop(refused) > 0.0:
                key = "drop_path" if refused == "drop_path_rate" else "dropout"
                raise UserError(
                    f"timm model {architecture!r} has no {key}; set {key} to 0"
                ) from error


def _nearest(name: str, candidates: Sequence[str]) -> str:
    """The three candidates closest in spelling, closest first."""
    return ", ".join(difflib.get_close_matches(name, candidates, n=3, cutoff=0.0))

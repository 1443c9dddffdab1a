"""What timm and the Hugging Face hub write beside weights: config.json, read into `Weights`.

Its keys are `architecture`, `num_classes`, `label_names` and `pretrained_cfg` (mean, std,
input_size, crop_pct, interpolation and more); older files hold those of `pretrained_cfg` alone.
Our own exports say more under a key of their own (see `export.config_json`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD, TIMM_PREFIX
from dali_rsb.dataset.classes import checked_names
from dali_rsb.errors import UserError
from dali_rsb.models import list_models
from dali_rsb.weights.weights import Preprocessing, Weights, num_outputs

logger = logging.getLogger(__name__)

# What timm knows no key for: which weights these are, the run that they come from, and the size of
# its training images.
OWN_KEY = "dali_rsb"

# timm's tags name the data of a model's last training last: sw_in12k_ft_in1k, r160_in1k_384.
_TRAINED_ON_IMAGENET_1K = re.compile(r"(^|_)in1k(_\d+)?$")


def architecture_name(timm_name: str) -> str:
    """Our name of a timm model: the built-in one, or timm:NAME; a tag of weights is left out."""
    name = timm_name.partition(".")[0]
    return name if name in list_models() else f"{TIMM_PREFIX}{name}"


def described(
    tensors: Mapping[str, Tensor],
    source: str,
    config: Mapping[str, Any],
    kind: Literal["model", "EMA"] = "model",
) -> Weights:
    """Weights with the description that a config.json gives of them.

    Args:
        tensors: the state dict.
        source: as the user named it.
        config: content of the file.
        kind: see `Weights`.

    Raises:
        UserError: it names no architecture of timm, or a value is not what timm writes.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise UserError(
            f"{source}: its config.json names no architecture of timm; give a model that timm "
            "wrote, or the file of weights alone and model.name=NAME"
        )
    cfg = config.get("pretrained_cfg", config)
    if not isinstance(cfg, Mapping):
        raise UserError(f"{source}: pretrained_cfg in its config.json is no mapping; repair it")
    own = config.get(OWN_KEY)
    own = own if isinstance(own, Mapping) else {}
    if own.get("kind") in ("model", "EMA"):
        kind = own["kind"]
    run, train_size = own.get("run"), own.get("train_size")
    if config.get("model_args"):
        logger.warning(
            "%s: model_args of its config.json are not used: %.100s", source, config["model_args"]
        )
    preprocessing = _preprocessing(cfg, source) if "mean" in cfg or "input_size" in cfg else None
    if preprocessing is not None and isinstance(train_size, int):
        preprocessing = replace(preprocessing, train_size=train_size)
    return Weights(
        tensors,
        source,
        architecture_name(architecture),
        _classes(config, cfg, tensors, source),
        preprocessing,
        kind,
        run if isinstance(run, Mapping) else {},
    )


def _classes(
    config: Mapping[str, Any], cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
) -> tuple[str, ...] | None:
    names = config.get("label_names", cfg.get("label_names", cfg.get("labels")))
    outputs = config.get("num_classes", cfg.get("num_classes")) or num_outputs(tensors)
    if names is None:
        is_imagenet = _TRAINED_ON_IMAGENET_1K.search(str(cfg.get("tag") or ""))
        return _imagenet_1k() if is_imagenet and outputs == 1000 else None
    if isinstance(names, Mapping):  # by number, where some have no name
        if {str(key) for key in names} != {str(i) for i in range(outputs)}:
            return None
        names = [names.get(str(i), names.get(i)) for i in range(outputs)]
    if not isinstance(names, (list, tuple)) or len(names) != outputs:
        raise UserError(
            f"{source}: label_names in its config.json are not the names of its {outputs} classes; "
            "repair or remove them"
        )
    return checked_names(names, f"{source}: label_names of its config.json")


def _imagenet_1k() -> tuple[str, ...] | None:
    """ImageNet-1k's synsets in the order of the labels; None without timm, which knows them."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    return tuple(ImageNetInfo("imagenet-1k").label_names())


def _preprocessing(cfg: Mapping[str, Any], source: str) -> Preprocessing:
    def value(*keys: str, default: Any) -> Any:
        """The first of the keys that is given, as in timm's `resolve_data_config`."""
        return next((cfg[key] for key in keys if cfg.get(key) is not None), default)

    try:
        _, *train = map(int, value("input_size", default=(3, 224, 224)))
        _, *test = map(int, value("test_input_size", "input_size", default=(3, 224, 224)))
        mean = tuple(map(float, value("mean", default=IMAGENET_MEAN)))
        std = tuple(map(float, value("std", default=IMAGENET_STD)))
        crop_ratio = float(value("test_crop_pct", "crop_pct", default=0.875))
        if len(train) != 2 or len(test) != 2 or len(mean) != 3 or len(std) != 3:
            raise ValueError("sizes are [3, height, width], mean and std three numbers")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{source}: pretrained_cfg of its config.json is not as timm writes it "
            f"({' '.join(str(error).split())[:80]}); repair it"
        ) from error
    interpolation, crop_mode = cfg.get("interpolation", "bicubic"), cfg.get("crop_mode", "center")
    if interpolation not in ("bilinear", "bicubic"):
        logger.warning("%s asks for interpolation %s; bicubic is used", source, interpolation)
        interpolation = "bicubic"
    if crop_mode not in ("center", None) or len({*train}) > 1 or len({*test}) > 1:
        logger.warning(
            "%s asks for a crop of %s by %s pixels in mode %s; the central square is used",
            source,
            *test,
            crop_mode,
        )
    return Preprocessing(
        mean,  # three each
        std,
        test[0],
        crop_ratio,
        interpolation,
        train[0],
    )

"""`--to hub`: a folder that timm loads by `local-dir:` or, once it is pushed, by `hf-hub:`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dali_rsb.errors import UserError
from dali_rsb.weights.export import safetensors_file
from dali_rsb.weights.export.config_json import config_json, preprocessing_json
from dali_rsb.weights.export.model_card import model_card
from dali_rsb.weights.export.subject import Subject
from dali_rsb.weights.hub import CONFIG_FILE, WEIGHT_FILES

CARD = "README.md"
WEIGHTS = WEIGHT_FILES[0]
FILES = (WEIGHTS, CONFIG_FILE, CARD)
# What timm knows of an architecture beside its weights: how to give it another head, for example.
_OF_ARCHITECTURE = ("fixed_input_size", "pool_size", "first_conv", "classifier")


def write(subject: Subject, folder: Path) -> None:
    """Write weights, configuration and model card into an empty folder.

    Raises:
        UserError: timm does not know the architecture.
    """
    safetensors_file.write(subject, folder / WEIGHTS)
    text = json.dumps(timm_config(subject), indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(subject), encoding="utf-8")


def reload(folder: Path) -> Callable[[Tensor], Tensor]:
    """The model that timm makes of a folder."""
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def timm_config(subject: Subject) -> dict[str, Any]:
    """The content of config.json, by which timm knows architecture, images and class names."""
    import timm

    if not timm.is_model(subject.timm_name):
        raise UserError(
            f"timm {timm.__version__} has no model {subject.timm_name}; use --to safetensors"
        )
    known = timm.get_pretrained_cfg(subject.timm_name).to_dict()
    config = config_json(subject)
    config["num_features"] = subject.model.num_features
    cfg = config["pretrained_cfg"] = {
        "custom_load": False,  # the weights have the model's own names
        "crop_mode": "center",
        **{key: known[key] for key in _OF_ARCHITECTURE if key in known},
        **config["pretrained_cfg"],
        **preprocessing_json(subject),
    }
    if cfg["input_size"] != list(known["input_size"]):
        cfg["pool_size"] = None  # the size of the last feature map, another one now
    return config

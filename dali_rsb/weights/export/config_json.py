"""The description that travels with exported weights: timm's config.json, and what only we know.

A hub folder has it as a file, the other formats as a text in their metadata; `open_weights` reads
both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from dali_rsb.weights.description import OWN_KEY
from dali_rsb.weights.export.accuracy import named_images
from dali_rsb.weights.export.subject import Subject
from dali_rsb.weights.state_dicts import METADATA_CONFIG

# Key of a metadata text with the names of the classes, for whoever wants no more.
METADATA_CLASSES = "label_names"

# Where a run's configuration says what `Preprocessing` does.
_PREPARED = {"data": ("mean", "std"), "evaluation": ("size", "crop_ratio", "interpolation")}


def config_json(subject: Subject) -> dict[str, Any]:
    """All that is known of weights, as values of JSON, under timm's keys as far as it has some.

    `input_size` is that of the evaluation: whoever takes timm's transform as it is gets the images
    that the accuracy belongs to.
    """
    weights = subject.weights
    own: dict[str, Any] = {"kind": weights.kind, "run": _run(subject)}
    if not subject.is_assumed:
        own["train_size"] = subject.preprocessing.train_size
    cfg: dict[str, Any] = {"num_classes": subject.num_classes}
    if not subject.is_assumed:
        cfg |= preprocessing_json(subject)
    config: dict[str, Any] = {
        "architecture": subject.timm_name,
        "num_classes": subject.num_classes,
        "pretrained_cfg": cfg,
        OWN_KEY: own,
    }
    if weights.classes is not None:
        config["label_names"] = list(weights.classes)
    return config


def preprocessing_json(subject: Subject) -> dict[str, Any]:
    """How images are prepared, under the keys of timm's pretrained_cfg."""
    of = subject.preprocessing
    return {
        "input_size": [3, of.size, of.size],
        "interpolation": of.interpolation,
        "crop_pct": of.crop_ratio,
        "mean": list(of.mean),
        "std": list(of.std),
    }


def metadata(subject: Subject) -> dict[str, str]:
    """The texts that go into a file's metadata."""
    texts = {METADATA_CONFIG: json.dumps(config_json(subject))}
    if subject.weights.classes is not None:
        texts[METADATA_CLASSES] = json.dumps(subject.weights.classes)
    return texts


def _run(subject: Subject) -> dict[str, Any]:
    run = dict(subject.weights.run)
    run.pop("top1", None)  # the best of the run, which need not be that of these weights
    if images := named_images(run):
        run["images"] = images
    if "config" in run:
        run["config"] = _without_paths(run["config"])
        if not subject.is_assumed:
            _prepare(run["config"], subject)
    if subject.accuracy is not None:
        run["accuracy"] = asdict(subject.accuracy)
    return run


def _prepare(config: dict[str, Any], subject: Subject) -> None:
    """Let a run's configuration prepare images as the export says, which may be otherwise."""
    for section, names in _PREPARED.items():
        values = {name: getattr(subject.preprocessing, name) for name in names}
        config[section] = {**config.get(section, {}), **values}


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration without paths: elsewhere they mean nothing, and tell of a disk."""
    return {
        section: {
            key: None if isinstance(value, str) and PurePath(value).is_absolute() else value
            for key, value in values.items()
        }
        if isinstance(values, Mapping)
        else values
        for section, values in config.items()
    }

"""What a run takes over from the weights that it begins with: how their images were prepared.

Mean, deviation, sizes, crop and interpolation belong to weights as much as their numbers do. Where
the configuration does not set them they are the weights' own, and the run's configuration says so:
a run that goes on has them in its checkpoint and needs the weights no more.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from dali_rsb import config as cfg
from dali_rsb.weights.weights import Preprocessing

# Where the configuration says what an attribute of `Preprocessing` does.
_KEYS = {
    "mean": "data.mean",
    "std": "data.std",
    "size": "evaluation.size",
    "crop_ratio": "evaluation.crop_ratio",
    "interpolation": "evaluation.interpolation",
    "train_size": "augment.size",
}


def with_preprocessing(
    config: cfg.Config, preprocessing: Preprocessing
) -> tuple[cfg.Config, list[str]]:
    """The configuration with what it does not set itself from the weights' description.

    Returns:
        The configuration, and lines for the log, none where nothing was taken over.
    """
    values = _values(preprocessing)
    values = {key: value for key, value in values.items() if not _is_set(config, key)}
    # As one writes them on a command line, in 80 columns.
    said = " ".join(f"{key}={_text(value)}" for key, value in values.items())
    head = "from the weights: "
    lines = textwrap.wrap(said, 80 - len(head), break_long_words=False, break_on_hyphens=False)
    return cfg.with_values(config, values), [head + line for line in lines]


def as_described(config: cfg.Config, preprocessing: Preprocessing) -> cfg.Config:
    """The configuration with the weights' preprocessing, whatever it says itself."""
    return cfg.with_values(config, _values(preprocessing))


def as_begun(config: cfg.Config, begun: Mapping[str, Any]) -> cfg.Config:
    """The configuration of a run that goes on, with what it once took over from its weights.

    Args:
        begun: the configuration in its checkpoint, as plain values.
    """
    values = {}
    for key in _KEYS.values():
        section, _, name = key.partition(".")
        if not _is_set(config, key) and name in begun.get(section, {}):
            values[key] = begun[section][name]
    return cfg.with_values(config, values)


def _values(preprocessing: Preprocessing) -> dict[str, Any]:
    """What a description says, by key of the configuration."""
    said = {key: getattr(preprocessing, name) for name, key in _KEYS.items()}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in said.items()
        if value is not None
    }


def _is_set(config: cfg.Config, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in getattr(config, section).model_fields_set


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(f'{number:.4g}' for number in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

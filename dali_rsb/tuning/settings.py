"""The training loader's settings, resolved once for a run: what the configuration gives, else what
tuning has stored for this machine, dataset and augmentation, else the defaults."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
import nvidia.dali
import torch

from dali_rsb.config import Config
from dali_rsb.dataset import DatasetIndex
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings, default_settings
from dali_rsb.run.processes import Processes
from dali_rsb.system.cpus import available_cpus, cpu_model
from dali_rsb.tuning.store import Tuned, load_tuned

NAMES = tuple(field.name for field in fields(LoaderSettings))


@dataclass(frozen=True)
class ResolvedSettings:
    """A run's settings of the training loader, and where they come from.

    Attributes:
        settings: what the loader is built with.
        tuned: what tuning has stored, or None.
        origin: a line for the log that says which settings come from tuning, or None.
        given: names of the settings that the configuration or tuning says.
    """

    settings: LoaderSettings
    tuned: Tuned | None = None
    origin: str | None = None
    given: frozenset[str] = frozenset()

    def is_given(self, name: str) -> bool:
        """Whether the configuration or tuning says this setting, not the default."""
        return name in self.given


def resolve_settings(
    config: Config, index: DatasetIndex, processes: Processes, batch_per_device: int
) -> ResolvedSettings:
    """What the configuration gives, else what tuning found for this machine, else the defaults."""
    given = given_settings(config)
    tuned = load_tuned(tuning_key(config, index, processes, batch_per_device))
    settings = default_settings(
        processes.device, processes.local_world_size, batch_per_device, config.augment.size
    )
    if tuned is None:
        return ResolvedSettings(replace(settings, **given), given=frozenset(given))
    settings = replace(settings, **{**tuned.settings, **given})
    used = {name: value for name, value in tuned.settings.items() if name not in given}
    values = ", ".join(f"data.{name}={value}" for name, value in used.items())
    origin = f"{values} from tuning on {tuned.date}; set a key to override it"
    if not used:
        origin = f"the configuration sets all that tuning found on {tuned.date}"
    return ResolvedSettings(settings, tuned, origin, frozenset(given) | frozenset(tuned.settings))


def given_settings(config: Config) -> dict[str, Any]:
    """The loader's settings that the configuration sets."""
    given = {name: getattr(config.data, name) for name in NAMES}
    return {name: value for name, value in given.items() if value not in (None, "auto")}


def tuning_key(
    config: Config, index: DatasetIndex, processes: Processes, batch_per_device: int
) -> dict[str, Any]:
    """All that the fastest settings depend on: machines of one kind share them."""
    augment, on_gpu = config.augment, processes.device.type == "cuda"
    names = (
        "size",
        "scale",
        "ratio",
        "interpolation",
        "randaugment",
        "backend",
        "repeats",
        "copies",
    )
    return {
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "processes": processes.local_world_size,
        "gpu": torch.cuda.get_device_name(processes.device) if on_gpu else None,
        "dali": nvidia.dali.__version__,
        "decode": get_args(DecodeSetting),
        "images": str(index.origin.resolve()),
        "sizes": _digest(index.widths, index.heights),
        "augment": {name: getattr(augment, name) for name in names},
        "batch_per_device": batch_per_device,
    }


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]

"""Settings of the loader that depend on the machine: their defaults, and what tuning has stored.

`python -m dali_rsb.tune` measures them (see `dali_rsb.tuning.search`) and stores the result for
one kind of machine, one dataset and one augmentation; training looks it up. None of them changes
which images come, or their draws.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import nvidia.dali
import torch

from dali_rsb.config import Config
from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.storage import USER_CACHE
from dali_rsb.errors import UserError
from dali_rsb.loader.executor import Division, default_pipelines
from dali_rsb.run.processes import Processes
from dali_rsb.system.cpus import available_cpus, cpu_model, threads_per_process

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
DecodeSetting = Literal["roi", "full"]
NAMES = ("threads", "prefetch", "pipelines", "batches_per_run", "decode", "hw_decoder_load")

# A run of the CPU graph costs milliseconds for each layer of RandAugment before the first image,
# and interrupts PyTorch's threads, which wait for each other. Rare long runs serve small images
# best: on the quickstart (32 px, 2 cores) training keeps 94 % of the model's own rate with runs of
# 256 images and 98 % with runs of 1,024. Of large images, runs of more would only take memory.
PIXELS_PER_CPU_RUN = 256 * 160**2
MAX_IMAGES_PER_CPU_RUN = 1024


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of a training loader; the names are those of the configuration's section `data`."""

    threads: int
    prefetch: int = 3
    pipelines: int = 1
    batches_per_run: int = 1
    decode: DecodeSetting = "roi"
    hw_decoder_load: float = 0.65

    @property
    def division(self) -> Division:
        """How threads and runs are divided among the pipelines, none of which lacks a thread."""
        return Division(self.threads, self.prefetch, min(self.pipelines, self.threads))


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        settings: values by name, of those that were searched.
        date: day of the measurement, such as 2026-05-01.
        img_per_s, default_img_per_s: loader alone, with these settings and with the defaults.
    """

    settings: Mapping[str, Any]
    date: str
    img_per_s: float
    default_img_per_s: float


def default_settings(processes: Processes, batch_per_device: int, size_px: int) -> LoaderSettings:
    """The loader's settings where nobody has tuned; `size_px` is the images' side."""
    on_gpu = processes.device.type == "cuda"
    threads = threads_per_process(processes.local_world_size)
    return LoaderSettings(
        threads,
        pipelines=default_pipelines(processes.device, threads),
        batches_per_run=1 if on_gpu else _batches_per_cpu_run(batch_per_device, size_px),
    )


def _batches_per_cpu_run(batch_per_device: int, size_px: int) -> int:
    images = min(MAX_IMAGES_PER_CPU_RUN, PIXELS_PER_CPU_RUN // size_px**2)
    return max(1, images // batch_per_device)


def loader_settings(
    config: Config, index: DatasetIndex, processes: Processes, batch_per_device: int
) -> LoaderSettings:
    """What the configuration gives, else what tuning found for this machine, else the defaults."""
    tuned = find_tuned(config, index, processes, batch_per_device)
    found: Mapping[str, Any] = {} if tuned is None else tuned.settings
    defaults = default_settings(processes, batch_per_device, config.augment.size)
    return replace(defaults, **{**found, **given_settings(config)})


def given_settings(config: Config) -> dict[str, Any]:
    """The loader's settings that the configuration sets."""
    given = {name: getattr(config.data, name) for name in NAMES}
    return {name: value for name, value in given.items() if value is not None}


def find_tuned(
    config: Config, index: DatasetIndex, processes: Processes, batch_per_device: int
) -> Tuned | None:
    """What `python -m dali_rsb.tune` has stored for this machine, dataset and augmentation."""
    return load_tuned(tuning_key(config, index, processes, batch_per_device))


def tuning_key(
    config: Config, index: DatasetIndex, processes: Processes, batch_per_device: int
) -> dict[str, Any]:
    """All that the fastest settings depend on: machines of one kind share them."""
    augment, on_gpu = config.augment, processes.device.type == "cuda"
    names = ("size", "scale", "ratio", "interpolation", "randaugment", "repeats", "copies")
    return {
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "processes": processes.local_world_size,
        "gpu": torch.cuda.get_device_name(processes.device) if on_gpu else None,
        "dali": nvidia.dali.__version__,
        "images": str(index.origin.resolve()),
        "sizes": _digest(index.widths, index.heights),
        "augment": {name: getattr(augment, name) for name in names},
        "batch_per_device": batch_per_device,
    }


def describe_tuned(config: Config, tuned: Tuned) -> str:
    """One line: which settings come from tuning."""
    used = {k: v for k, v in tuned.settings.items() if getattr(config.data, k) is None}
    if not used:
        return f"the configuration sets all that tuning found on {tuned.date}"
    values = ", ".join(f"data.{name}={value}" for name, value in used.items())
    return f"{values} from tuning on {tuned.date}; set a key to override it"


def load_tuned(key: Mapping[str, Any]) -> Tuned | None:
    """What is stored for a key, None if nothing is; a file that cannot be read counts as nothing.

    Args:
        key: the machine, the dataset and the augmentation, as JSON values.
    """
    try:
        path = _file_of(key)
    except RuntimeError:  # this user has no home directory
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] != _as_json(key) or not stored["settings"].keys() <= set(NAMES):
            return None
        return Tuned(
            stored["settings"], stored["date"], stored["img_per_s"], stored["default_img_per_s"]
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s) and is not used: tune again", path, error)
        return None


def store_tuned(key: Mapping[str, Any], tuned: Tuned) -> Path:
    """Store a result in place of an earlier one, whole or not at all; return its file.

    Raises:
        UserError: the user's cache cannot be written.
    """
    try:
        path = _file_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            text = json.dumps({"key": _as_json(key), **asdict(tuned)}, indent=2)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot store the result in {USER_CACHE / 'tuned'} ({reason}): set HOME to a folder "
            "that you can write"
        ) from error
    return path


def _as_json(key: Mapping[str, Any]) -> Any:
    """The key as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(key))


def _file_of(key: Mapping[str, Any]) -> Path:
    text = json.dumps([FORMAT_VERSION, key], sort_keys=True)
    name = hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
    return USER_CACHE.expanduser() / "tuned" / f"{name}.json"


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]

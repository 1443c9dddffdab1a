"""Reads files of weights: safetensors, and state dicts that timm, torchvision and others save."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import DamagedCheckpointError, find_fault

SAFETENSORS = ".safetensors"
# Key of a safetensors file's metadata under which the text of its config.json may stand.
METADATA_CONFIG = "config"

# Where programs put the weights among what else a run needs: those of timm's and torchvision's
# references. An EMA is preferred, as by timm's own loading.
_EMA_KEYS = ("state_dict_ema", "model_ema")
_MODEL_KEYS = ("state_dict", "model_state", "model")
# What DistributedDataParallel or an EMA, and torch.compile, put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class StateDict:
    """The weights in a file.

    Attributes:
        tensors: by name, without the prefixes of wrappers, on the CPU.
        kind: "EMA" where the file says so.
        architecture: timm's name, where the file says it.
        config: content of the config.json that a safetensors file carries; empty for others.
        timm_arguments: those that timm's train.py ran with, by which it prepared its images; None
            for other files.
    """

    tensors: dict[str, Tensor]
    kind: Literal["model", "EMA"] = "model"
    architecture: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    timm_arguments: Mapping[str, Any] | None = None


def of_saved(saved: Any, path: Path, ema: bool) -> StateDict:
    """The weights in what `torch.save` wrote: a state dict, or one among what a program saved.

    Args:
        saved: content of the file.
        path: of the file, for messages.
        ema: of a file with both, take the EMA.

    Raises:
        UserError: it holds no weights.
        DamagedCheckpointError: they are not finite.
    """
    saved = saved if isinstance(saved, dict) else {}
    keys = [*(_EMA_KEYS if ema else ()), *_MODEL_KEYS, None, *_EMA_KEYS]
    for key in keys:
        tensors = _unwrapped(saved if key is None else saved.get(key))
        if tensors:
            break
    else:
        raise UserError(f"{path} holds no model weights; give a checkpoint or a state dict")
    # As timm's train.py saves them.
    architecture, arguments = saved.get("arch"), saved.get("args")
    return StateDict(
        checked_finite(tensors, path),
        "EMA" if key in _EMA_KEYS else "model",
        architecture if isinstance(architecture, str) else None,
        timm_arguments=vars(arguments) if isinstance(arguments, argparse.Namespace) else None,
    )


def read_safetensors(path: Path) -> StateDict:
    """Read a safetensors file.

    Raises:
        UserError: safetensors is not installed, or the file holds no weights.
        DamagedCheckpointError: it is damaged or another kind of file, or not finite.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UserError(f"{path} needs safetensors ({error}); pip install safetensors") from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get(METADATA_CONFIG, "{}")
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path} is no whole safetensors file ({' '.join(str(error).split())[:80]}); copy or "
            "download it again"
        ) from error
    if not tensors:
        raise UserError(f"{path} holds no model weights; give a file with a model's tensors")
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    return StateDict(
        checked_finite(_without_wrappers(tensors), path),
        config=config if isinstance(config, dict) else {},  # other programs' own
    )


def checked_finite(tensors: dict[str, Tensor], source: Path | str) -> dict[str, Tensor]:
    """The same tensors.

    Raises:
        DamagedCheckpointError: inf or NaN is among them.
    """
    if fault := find_fault({"model": tensors}):
        raise DamagedCheckpointError(f"{source} {fault}; give other weights")
    return tensors


def _unwrapped(values: Any) -> dict[str, Tensor]:
    """The tensors by their own names; none where anything else is among them."""
    if not isinstance(values, dict):
        return {}
    # PyTorch's AveragedModel counts its updates beside the weights.
    values = {name: value for name, value in values.items() if name != "n_averaged"}
    if not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in values.items()):
        return {}
    return _without_wrappers(values)


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {_own_name(name): tensor for name, tensor in tensors.items()}


def _own_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name

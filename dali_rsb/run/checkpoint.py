"""Checkpoints: one file with all that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from dali_rsb.errors import UserError

FORMAT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: temporary file, fsync, rename, fsync of the folder.

    Args:
        state: tensors, numbers, strings, and lists and dictionaries of those.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are ever unpickled.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint or of another format version.
    """
    state = _load(path)
    if not isinstance(state, dict) or "format_version" not in state:
        raise UserError(f"{path} is not a dali_rsb checkpoint; weights alone go to model.weights")
    if state["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {state['format_version']}, this version reads "
            f"{FORMAT_VERSION}; use the dali_rsb version that wrote it"
        )
    return state


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read model weights: a checkpoint's (EMA if it has one) or a plain state dict's (timm's).

    Raises:
        UserError: the file is missing, truncated or holds no weights.
    """
    state = _load(path)
    if isinstance(state, dict) and "format_version" in state:
        return state["ema"] or state["model"]
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} holds no model weights; give a checkpoint or a state dict")
    return state


def load_into(module: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Load weights into a model of the same architecture.

    Raises:
        UserError: names or shapes differ; names the first that does.
    """
    own = module.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own or own[name].shape != weights[name].shape:
            theirs = tuple(weights[name].shape) if name in weights else "absent"
            ours = tuple(own[name].shape) if name in own else "absent"
            raise UserError(
                f"{source} is of another architecture: {name} is {theirs} there and {ours} in the "
                "model; set model.name and model.num_classes to those of the checkpoint"
            )
    module.load_state_dict(weights)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of an existing .pt file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch reports a truncated or foreign file by several exception types.
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint (truncated or another kind of file); use "
            "another one, such as best.pt or last.pt of the run"
        ) from error

"""Checkpoints: one file with all that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any, cast

import torch

from dali_rsb.errors import UserError
from dali_rsb.run.sealed_file import DamagedFileError, SealingWriter, read_seal
from dali_rsb.system.atomic import atomic_file

FORMAT_VERSION = 1


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read, or whose content cannot be right."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; it replaces another only once it is proved.

    Args:
        state: tensors, numbers, strings, and lists and dictionaries of those.

    Raises:
        OSError: it cannot be written, or reads otherwise than it was written.
    """
    with atomic_file(path) as file:
        writer = SealingWriter(file)
        try:
            torch.save({"format_version": FORMAT_VERSION, **state}, cast(IO[bytes], writer))
        except RuntimeError as error:
            raise writer.error or error from error
        seal = writer.seal()
        file.flush()
        _prove(Path(file.name), seal)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are ever unpickled.

    Where the file gives other readers an EMA as the model (see `with_judged_weights`), "model" is
    the trained weights all the same.

    Raises:
        UserError: the file is missing, not a checkpoint or of another format version.
        DamagedCheckpointError: it is damaged, its weights are not finite or its position is
            impossible.
    """
    state = _load(path)
    if not isinstance(state, dict) or "format_version" not in state:
        raise UserError(f"{path} is not a dali_rsb checkpoint; weights alone go to model.weights")
    if state["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {state['format_version']}, this version reads "
            f"{FORMAT_VERSION}; use the dali_rsb version that wrote it"
        )
    if "trained_model" in state:
        state["model"] = state.pop("trained_model")
    if fault := find_fault(state):
        raise DamagedCheckpointError(f"{path} {fault}; use another checkpoint of the run")
    return state


def with_judged_weights(state: dict[str, Any]) -> dict[str, Any]:
    """A state whose weights are, for whoever reads it, those that an evaluation judged: the EMA.

    torchvision's programs read "model", timm and many others "state_dict".
    """
    ema = state.get("ema")
    if ema is None:
        return {**state, "state_dict": state["model"]} if "model" in state else state
    return {**state, "model": ema, "state_dict": ema, "trained_model": state["model"]}


def find_fault(state: dict[str, Any]) -> str | None:
    """What cannot be right in a checkpoint, after its name in a sentence; None if nothing is."""
    for part in ("model", "ema"):
        weights = state.get(part)
        for name, tensor in weights.items() if isinstance(weights, dict) else ():
            if isinstance(tensor, torch.Tensor) and not bool(tensor.isfinite().all()):
                return f"holds inf or NaN in {part}.{name}"
    done, per_epoch = state.get("updates_done", 0), state.get("updates_per_epoch", 1)
    if not isinstance(done, int) or not isinstance(per_epoch, int) or done < 0 or per_epoch < 1:
        return f"holds an impossible position: {done!r} updates of {per_epoch!r} an epoch"[:150]
    try:
        epochs = int(state["config"]["schedule"]["epochs"])
    except (KeyError, TypeError, ValueError):
        epochs = done
    if done > epochs * per_epoch:
        return f"stands at update {done}, beyond its {epochs} epochs of {per_epoch} updates"[:150]
    best = state.get("best_top1", 0.0)
    if not isinstance(best, (int, float)) or not math.isfinite(best) or not 0 <= best <= 100:
        return f"holds an impossible best accuracy: {best!r}"[:150]
    return None


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read model weights: a checkpoint's (EMA if it has one) or a plain state dict's (timm's).

    Raises:
        UserError: the file is missing, damaged or holds no weights.
    """
    state = _load(path)
    if isinstance(state, dict) and "format_version" in state:
        state = state.get("ema") or state.get("model")
    elif isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} holds no model weights; give a checkpoint or a state dict")
    if fault := find_fault({"model": state}):
        raise DamagedCheckpointError(f"{path} {fault}; give other weights")
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


def _prove(path: Path, seal: str) -> None:
    try:
        if read_seal(path) == seal:
            return
    except DamagedFileError:
        pass
    raise OSError(f"{path.name} reads otherwise than it was written")


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of an existing .pt file")
    try:
        read_seal(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except DamagedFileError as error:
        raise DamagedCheckpointError(
            f"{path} is damaged: {error}; use another checkpoint of the run"
        ) from error
    # torch reports a truncated or foreign file by several exception types.
    except Exception as error:
        raise DamagedCheckpointError(
            f"{path} cannot be read as a checkpoint (truncated or another kind of file); use "
            "another checkpoint of the run"
        ) from error

"""Checkpoints: one file with all that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import argparse
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
    state = read_saved(path)
    if not is_checkpoint(state):
        raise UserError(f"{path} is not a dali_rsb checkpoint; weights alone go to model.weights")
    return checked_checkpoint(state, path)


def is_checkpoint(saved: Any) -> bool:
    """Is what a file holds one of this project's checkpoints, of whatever version?"""
    return isinstance(saved, dict) and "format_version" in saved


def checked_checkpoint(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """What `load_checkpoint` makes of a file that has been read; raises as it does."""
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


def _prove(path: Path, seal: str) -> None:
    try:
        if read_seal(path) == seal:
            return
    except DamagedFileError:
        pass
    raise OSError(f"{path.name} reads otherwise than it was written")


def read_saved(path: Path) -> Any:
    """What `torch.save` wrote into a file, on the CPU; tensors and plain values alone.

    `argparse.Namespace` counts as plain: timm's and torchvision's programs save their options.

    Raises:
        UserError: there is no such file.
        DamagedCheckpointError: it is damaged, another kind of file, or holds other objects.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of an existing .pt file")
    try:
        read_seal(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except DamagedFileError as error:
        raise DamagedCheckpointError(
            f"{path} is damaged: {error}; use another checkpoint of the run"
        ) from error
    # torch reports a truncated or foreign file by several exception types.
    except Exception as error:
        if objects := _objects(path):
            raise DamagedCheckpointError(
                f"{path} cannot be read: it holds {objects} beside tensors, and code of a file is "
                "never run; save the weights alone, torch.save(model.state_dict(), PATH)"
            ) from error
        raise DamagedCheckpointError(
            f"{path} cannot be read as a checkpoint (truncated or another kind of file); copy it "
            "again, or use another checkpoint"
        ) from error


def _objects(path: Path) -> str:
    """The first class or function that unpickling a file would call; empty if none is known."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file in the format before 1.6, or none of torch's
        return ""
    return names[0][:60] if names else ""

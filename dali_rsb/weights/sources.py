"""Opens weights by what a user writes: a run, a file or folder, timm:NAME.TAG or hf:REPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dali_rsb.constants import HUB_PREFIX, TIMM_PREFIX
from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import checked_checkpoint, is_checkpoint, read_saved
from dali_rsb.run.checkpointer import checkpoint_to_evaluate
from dali_rsb.weights.hub import (
    from_folder,
    from_hub,
    from_timm,
    is_model_folder,
    of_state_dict,
)
from dali_rsb.weights.state_dicts import SAFETENSORS, of_saved, read_safetensors
from dali_rsb.weights.weights import Preprocessing, Weights


def open_weights(source: str, ema: bool = True) -> Weights:
    """Read weights and what their source says about them. Nothing but tensors is unpickled.

    Args:
        source: a run folder (its best checkpoint), a checkpoint, a file of weights (safetensors,
            or a state dict under timm's or torchvision's names), a folder as timm or the Hugging
            Face hub write it, timm:NAME.TAG, or hf:OWNER/NAME.
        ema: of a file with both, take the EMA; else the trained weights.

    Raises:
        UserError: there is nothing, it is damaged, or it holds no weights.
    """
    if source.startswith(TIMM_PREFIX):
        return from_timm(source)
    if source.startswith(HUB_PREFIX):
        return from_hub(source)
    path = Path(source).expanduser()
    if is_model_folder(path):
        return from_folder(path, source)
    path = checkpoint_to_evaluate(path)
    if not path.is_file():
        raise UserError(
            f"no weights at {path}; give the path of a run, a checkpoint or a file of weights, or "
            "timm:NAME.TAG or hf:OWNER/NAME"
        )
    if path.suffix == SAFETENSORS:
        return of_state_dict(read_safetensors(path), source)
    saved = read_saved(path)
    if is_checkpoint(saved):
        state = checked_checkpoint(saved, path)
        try:
            return _of_checkpoint(state, source, ema)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no whole checkpoint of a run ({type(error).__name__}: {error}); give "
                "another one"
            ) from error
    return of_state_dict(of_saved(saved, path, ema), source)


def _of_checkpoint(state: dict[str, Any], source: str, ema: bool) -> Weights:
    config = state["config"]
    data, evaluation = config["data"], config["evaluation"]
    takes_ema = ema and state.get("ema") is not None
    return Weights(
        state["ema"] if takes_ema else state["model"],
        source,
        config["model"]["name"],
        tuple(state["classes"]),
        Preprocessing(
            tuple(data["mean"]),
            tuple(data["std"]),
            evaluation["size"],
            evaluation["crop_ratio"],
            evaluation["interpolation"],
            config["augment"]["size"],
        ),
        "EMA" if takes_ema else "model",
        {
            "config": config,
            "updates": state["updates_done"],
            "epoch": state["updates_done"] / state["updates_per_epoch"],
            "top1": state["best_top1"],
            **({"environment": state["environment"]} if "environment" in state else {}),
        },
    )

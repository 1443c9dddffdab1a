"""Opens weights by what a user writes: a run, a checkpoint or a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import load_checkpoint, load_weights
from dali_rsb.run.checkpointer import checkpoint_to_evaluate
from dali_rsb.weights.weights import Preprocessing, Weights


def open_weights(source: str, ema: bool = True) -> Weights:
    """Read weights and what their source says about them.

    Args:
        source: a run folder (its best checkpoint), a checkpoint, or a file of weights.
        ema: of a checkpoint with both, take the EMA; else the trained weights.

    Raises:
        UserError: there is nothing, it is damaged, or it holds no weights.
    """
    path = checkpoint_to_evaluate(Path(source).expanduser())
    try:
        state = load_checkpoint(path)
    except UserError:
        if not path.is_file() or path.suffix == ".pt":
            raise
        return Weights(load_weights(path), source)
    return _of_checkpoint(state, source, ema)


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
        ),
        "EMA" if takes_ema else "model",
        {
            "config": config,
            "epoch": state["updates_done"] / state["updates_per_epoch"],
            "top1": state["best_top1"],
        },
    )

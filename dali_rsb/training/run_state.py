"""What a checkpoint holds of a run, and how a run goes on from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.classes import check_same_order
from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.environment import environment
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.training.step import TrainStep

logger = logging.getLogger(__name__)

# Sections that say what is learnt; a resumed run that changes them is told so.
RECIPE_SECTIONS = ("augment", "mixing", "model", "loss", "optimizer", "schedule", "ema")

# Keys of other sections that do.
_RECIPE_KEYS = (
    ("data", "val_fraction"),
    ("data", "sampling"),
    ("evaluation", "size"),
    ("evaluation", "crop_ratio"),
    ("evaluation", "interpolation"),
)

# Keys without which the state of a model or an optimizer means nothing.
_FIXED_KEYS = (("model", "name"), ("model", "num_classes"), ("optimizer", "name"))

# What a run cannot go on without, and its type.
_PARTS = {
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
    "updates_done": int,
    "updates_per_epoch": int,
    "best_top1": float,
    "config": dict,
}


@dataclass(frozen=True)
class Progress:
    """Where a run stands, beside its step.

    Attributes:
        best_top1: the best accuracy so far, in percent.
        is_epoch_open: the last update of an epoch is done, its evaluation and row are not.
        meter: the meter's `state_dict`, None for an epoch's first update.
        partial_sums: the meters' `partial_sums` of all processes.
        run_id: by which tracking services know the run, "" where none has taken its numbers.
    """

    best_top1: float = 0.0
    is_epoch_open: bool = False
    meter: Mapping[str, Any] | None = None
    partial_sums: Sequence[Tensor] = ()
    run_id: str = ""


def run_state(
    step: TrainStep,
    meter: Meter,
    updates_per_epoch: int,
    best_top1: float,
    is_epoch_open: bool,
    config: Mapping[str, Any],
    classes: Sequence[str],
    processes: Processes,
    run_id: str = "",
) -> dict[str, Any]:
    """All that a later run needs to go on with the same bits, and what others need of it.

    A copy on the CPU, which later updates do not change. All processes must call it: norm
    statistics and the sums of the meter differ between them. "model" and "ema" have the mean.

    Args:
        best_top1, is_epoch_open, run_id: see `Progress`.
        config: the whole configuration, as plain values.
        classes: names of the classes, in the order of the labels.
    """
    own: dict[str, Any] = {"partial_sums": meter.partial_sums(), "norm_statistics": {}}
    if processes.world_size > 1:
        own["norm_statistics"] = cpu_copy(step.norm_statistics())
    ranks = processes.gather(own)
    state = cpu_copy(step.state_dict()) if processes.is_first else {}
    for part in ranks[0]["norm_statistics"] if state else ():
        of_ranks = [rank["norm_statistics"][part] for rank in ranks]
        for name in of_ranks[0]:
            state[part][name] = torch.stack([values[name] for values in of_ranks]).mean(0)
    return {
        **state,
        "updates_done": step.updates_done,
        "updates_per_epoch": updates_per_epoch,
        "best_top1": best_top1,
        "is_epoch_open": is_epoch_open,
        "meter": meter.state_dict(),
        "ranks": ranks,
        "config": dict(config),
        "classes": list(classes),
        "environment": environment(processes),
        **({"run_id": run_id} if run_id else {}),
    }


def cpu_copy(value: Any) -> Any:
    """A copy of a state on the CPU, down to its tensors."""
    if isinstance(value, Tensor):
        copied = value.detach().to("cpu")
        return copied.clone() if copied.data_ptr() == value.data_ptr() else copied
    if isinstance(value, dict):
        return {key: cpu_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cpu_copy(item) for item in value)
    return value


def restore_run(
    path: Path,
    step: TrainStep,
    updates_per_epoch: int,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    train: DatasetIndex,
    processes: Processes,
) -> Progress:
    """Let a step go on from a checkpoint; warns of changes to the recipe.

    Args:
        updates_per_epoch: of the run that goes on, in which the step's position is counted.
        config: of that run, as plain values.
        defaults: a configuration's, which the checkpoint had where keys are newer than it.
        train: the training images; their labels must mean what the checkpoint's did.

    Raises:
        UserError: it cannot be read, or is of another model, optimizer, order of classes or
            length of an epoch.
    """
    state = load_checkpoint(path)
    _check_parts(path, state)
    saved = state["config"]
    for section, key in _FIXED_KEYS:
        theirs, ours = saved[section][key], config[section][key]
        if theirs != ours:
            raise UserError(
                f"{path} was trained with {section}.{key}={theirs}, not {ours}; set "
                f"{section}.{key}={theirs}, or start again from model.weights={path}"
            )
    if classes := state.get("classes"):
        check_same_order(classes, train, path, config["data"]["class_order"])
    position = _position(path, state, updates_per_epoch)
    step.load_state_dict(state, path)
    step.updates_done = position
    ranks = state.get("ranks", ())
    if len(ranks) == processes.world_size:
        step.load_norm_statistics(ranks[processes.rank]["norm_statistics"])
    of_sections = [(section, key) for section in RECIPE_SECTIONS for key in config[section]]
    for section, key in [*of_sections, *_RECIPE_KEYS]:
        value = config[section][key]
        before = saved.get(section, {}).get(key, defaults[section][key])
        if before != value:
            logger.warning("resuming with %s.%s=%s, was %s", section, key, value, before)
    return Progress(
        float(state["best_top1"]),
        bool(state.get("is_epoch_open", False)),
        state.get("meter"),
        [rank["partial_sums"] for rank in ranks],
        str(state.get("run_id", "")),
    )


def _check_parts(path: Path, state: Mapping[str, Any]) -> None:
    for name, kind in _PARTS.items():
        # An accuracy of 0 may have been saved as an integer.
        kinds = (int, float) if kind is float else kind
        if not isinstance(state.get(name), kinds):
            raise UserError(
                f"{path} has no usable {name!r}: it is no checkpoint of a run; resume from "
                "another one, or start again without --resume"
            )
    if not all(isinstance(state["config"].get(section), dict) for section in RECIPE_SECTIONS):
        raise UserError(f"{path} has an incomplete configuration; resume from another checkpoint")


def _position(path: Path, state: Mapping[str, Any], updates_per_epoch: int) -> int:
    """Updates done, counted in epochs of `updates_per_epoch`."""
    epoch, update = divmod(state["updates_done"], state["updates_per_epoch"])
    if update and state["updates_per_epoch"] != updates_per_epoch:
        raise UserError(
            f"{path} stands in the middle of an epoch of {state['updates_per_epoch']} updates, "
            f"this run's have {updates_per_epoch}; resume with the same "
            "optimizer.batch_size and images"
        )
    return int(epoch * updates_per_epoch + update)

"""What a checkpoint holds of a run, and how a run goes on from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.classes import check_same_order
from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.training.step import TrainStep

logger = logging.getLogger(__name__)

# Sections that say what is learnt; a resumed run that changes them is told so.
RECIPE_SECTIONS = ("augment", "mixing", "model", "loss", "optimizer", "schedule", "ema")

# Keys without which the state of a model or an optimizer means nothing.
_FIXED_KEYS = (("model", "name"), ("model", "num_classes"), ("optimizer", "name"))


def run_state(
    step: TrainStep,
    updates_per_epoch: int,
    best_top1: float,
    config: Mapping[str, Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """All that a later run needs to go on with the same bits, and what others need of it.

    Args:
        best_top1: the best accuracy so far, in percent.
        config: the whole configuration, as plain values.
        classes: names of the classes, in the order of the labels.
    """
    return {
        **step.state_dict(),
        "updates_done": step.updates_done,
        "updates_per_epoch": updates_per_epoch,
        "best_top1": best_top1,
        "config": dict(config),
        "classes": list(classes),
    }


def restore_run(
    path: Path,
    step: TrainStep,
    updates_per_epoch: int,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    train: DatasetIndex,
) -> float:
    """Let a step go on from a checkpoint; warns of changes to the recipe.

    Args:
        updates_per_epoch: of the run that goes on, in which the step's position is counted.
        config: of that run, as plain values.
        defaults: a configuration's, which the checkpoint had where keys are newer than it.
        train: the training images; their labels must mean what the checkpoint's did.

    Returns:
        The best accuracy so far, in percent.

    Raises:
        UserError: it cannot be read, or is of another model, optimizer, order of classes or
            length of an epoch.
    """
    state = load_checkpoint(path)
    saved = state["config"]
    for section, key in _FIXED_KEYS:
        theirs, ours = saved[section][key], config[section][key]
        if theirs != ours:
            raise UserError(
                f"{path} was trained with {section}.{key}={theirs}, not {ours}; set "
                f"{section}.{key}={theirs}, or start again from model.weights={path}"
            )
    check_same_order(state["classes"], train, path, config["data"]["class_order"])
    step.load_state_dict(state, path)
    step.updates_done = _position(path, state, updates_per_epoch)
    for section in RECIPE_SECTIONS:
        for key, value in config[section].items():
            before = saved[section].get(key, defaults[section][key])
            if before != value:
                logger.warning("resuming with %s.%s=%s, was %s", section, key, value, before)
    return float(state["best_top1"])


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

"""The command `python -m dali_rsb.evaluate RUN_OR_CHECKPOINT [section.key=value ...]`.

Evaluates the weights (and the EMA) of a checkpoint on the validation images of its run, or on
others: `data.val=PATH evaluation.size=288 evaluation.crop_ratio=1.0`. Prints a table. Classes are
joined by their names; where the images are of some of the model's classes only, a second row tells
how well it chooses among these alone, as one evaluates on ImageNet-A and -R.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dali_rsb.config import override_config
from dali_rsb.errors import UserError, run_command
from dali_rsb.evaluation.of_classes import OfClasses
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.checkpointer import checkpoint_to_evaluate
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import processes
from dali_rsb.training.assembly import build_model, validation
from dali_rsb.training.datasets import open_validation
from dali_rsb.weights.fitting import load_exactly


def main() -> None:
    parser = argparse.ArgumentParser(prog="dali-rsb evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a .pt file, or a run folder (its best)")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    arguments = parser.parse_args()
    path = checkpoint_to_evaluate(arguments.checkpoint)
    state = load_checkpoint(path)
    config = override_config(state["config"], arguments.overrides)
    _check_num_classes(config.model.num_classes, state["classes"], path)
    with (
        processes(config.run.device, config.run.timeout) as this_process,
        console_messages(this_process.is_first),
    ):
        with this_process.first_goes_ahead("indexing the images"):
            whose = f"the classes of {path}"
            index = open_validation(config.data, state["classes"], whose)
        evaluation = validation(config, index, this_process)
        models: dict[str, nn.Module] = {}
        for name, weights in (("model", state["model"]), ("EMA", state["ema"])):
            if weights is not None:
                models[name] = build_model(config.model, this_process.device)
                load_exactly(models[name], weights, str(path))
        present = np.unique(index.labels)
        if len(present) < index.num_classes:
            labels = torch.from_numpy(present).to(this_process.device)
            models |= {
                f"{name}, {len(present)} classes": OfClasses(model, labels)
                for name, model in models.items()
            }
        results = evaluation.evaluate(list(models.values()))
        evaluation.loader.close()
    if this_process.is_first:
        width = max(8, *(len(name) + 1 for name in models))
        print(f"{'':{width}}{'top-1 %':>9}{'top-5 %':>9}{'loss':>9}{'images':>9}")
        for name, result in zip(models, results, strict=True):
            print(
                f"{name:{width}}{result.top1:9.3f}{result.top5:9.3f}{result.loss:9.4f}"
                f"{result.count:9,}"
            )


def _check_num_classes(num_classes: int, classes: Sequence[str], path: Path) -> None:
    if num_classes != len(classes):
        raise UserError(
            f"model.num_classes={num_classes}, but {path} has {len(classes)} classes; leave "
            "model.num_classes out: images of some of them are evaluated by their names"
        )


if __name__ == "__main__":
    run_command(main)

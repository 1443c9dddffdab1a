"""Makes a whole configuration of a folder of images and a source of weights, for fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dali_rsb import config as cfg
from dali_rsb.config.mistakes import MISSING_SOURCE
from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer
from dali_rsb.training.datasets import Datasets, open_datasets
from dali_rsb.training.trainer import Trainer
from dali_rsb.weights.sources import open_weights
from dali_rsb.weights.weights import Weights

# Folders give their images in two parts where they hold one of the first and one of the second.
_TRAIN_NAMES, _VAL_NAMES = ("train", "training"), ("val", "valid", "validation")
_VAL_FRACTION = "data.val_fraction"
DEFAULT_VAL_FRACTION = 0.2
# A small folder gets so many updates an epoch at least, down to so small a batch.
_LEAST_UPDATES, _LEAST_BATCH = 8, 8


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning as the command line asks for it.

    Attributes:
        images: where they are, see `images_in`.
        overrides: of the user, as section.key=value.
        source: of the weights, None where a run goes on.
    """

    images: Mapping[str, Any]
    overrides: Sequence[str]
    source: str | None

    def build(self, config: cfg.Config, processes: Processes, resume: Path | None) -> Trainer:
        """The run: a new one, or one that goes on as its checkpoint says, overrides apart.

        Args:
            config: the recipe with images and overrides.

        Raises:
            UserError: there are no weights, or see `build_trainer`.
        """
        if resume is not None:
            begun = {**load_checkpoint(resume)["config"], "name": config.name}
            # The images may lie elsewhere by now; how they are split stays.
            paths = {key: path for key, path in self.images.items() if key != _VAL_FRACTION}
            going_on = cfg.with_values(cfg.override_config(begun, self.overrides), paths)
            return build_trainer(going_on, processes, resume)
        if self.source is None:
            raise UserError(MISSING_SOURCE)
        datasets = open_datasets(config.data, None, processes)
        with processes.first_goes_ahead("opening the weights"):
            weights = open_weights(self.source)
        fitted = self._fitted(config, datasets, weights, processes.world_size)
        return build_trainer(fitted, processes, None, weights)

    def _fitted(
        self, config: cfg.Config, datasets: Datasets, weights: Weights, world_size: int
    ) -> cfg.Config:
        """The recipe with what images and weights decide; what the user sets stays."""
        given = {override.partition("=")[0] for override in self.overrides}
        batch = _fitting_batch(config.optimizer.batch_size, len(datasets.train), world_size)
        share = -(-len(datasets.val) // world_size)
        values: dict[str, Any] = {
            "model.weights": self.source,
            "model.num_classes": len(datasets.train.classes),
            "optimizer.batch_size": batch,
            "evaluation.batch_per_device": min(config.evaluation.batch_per_device, share),
        }
        if weights.architecture is not None:
            values["model.name"] = weights.architecture
        elif "model.name" not in given:
            raise UserError(
                f"{self.source} does not say its architecture; give model.name=NAME, as "
                "model.name=resnet50 (dali-rsb help model)"
            )
        fitted = {key: value for key, value in values.items() if key not in given}
        return cfg.with_values(config, fitted)


def images_in(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of a configuration that a folder of images decides, with their values.

    Args:
        folder: of class folders, or one that holds training and validation images apart; or
            another form that `data.train` takes.
        overrides: of the user.
    """
    train, val = (
        next((folder / name for name in names if _holds_folders(folder / name)), None)
        for names in (_TRAIN_NAMES, _VAL_NAMES)
    )
    given = {override.partition("=")[0] for override in overrides}
    images: dict[str, Any] = {"data.train": str(train or folder)}
    if train is not None and val is not None:
        images["data.val"] = str(val)
    elif "data.val" not in given:
        images[_VAL_FRACTION] = DEFAULT_VAL_FRACTION
    return {key: value for key, value in images.items() if key not in given}


def _holds_folders(path: Path) -> bool:
    try:
        return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())
    except OSError:  # whoever indexes it says why
        return False


def _fitting_batch(batch_size: int, num_images: int, world_size: int) -> int:
    """The recipe's batch, halved until an epoch has some updates and holds it at all."""
    least = max(_LEAST_BATCH, world_size)
    while batch_size > least and batch_size * _LEAST_UPDATES > num_images:
        batch_size //= 2
    while batch_size > world_size and batch_size > num_images:
        batch_size //= 2
    return batch_size

"""The loading of a recipe, for measurements of the loader alone by one process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dali_rsb.config import Config, load_config
from dali_rsb.config.recipes import find_config
from dali_rsb.dataset import DatasetIndex
from dali_rsb.draws.samples import TrainSamples
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import train_samples


@dataclass(frozen=True)
class RecipeLoading:
    """How a recipe loads its training images.

    Attributes:
        config: the recipe.
        device: where it augments.
    """

    config: Config
    device: torch.device

    @classmethod
    def of_recipe(cls, name: str) -> RecipeLoading:
        """A recipe that comes with the package, on the GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load_config(find_config(name)), device)

    @property
    def name(self) -> str:
        """As people write it."""
        return self.config.name.upper() if len(self.config.name) < 4 else self.config.name

    @property
    def epochs(self) -> int:
        """Of a whole run."""
        return self.config.schedule.epochs

    def samples(self, index: DatasetIndex) -> TrainSamples:
        """The images of an index, augmented as in training; all of them are one batch.

        They are neither repeated, which takes more of them, nor mixed, which the model's side does.

        Raises:
            UserError: augment.backend cannot run.
        """
        batch, config = len(index), self.config
        alone = config.model_copy(
            update={
                "optimizer": config.optimizer.model_copy(update={"batch_size": batch}),
                "augment": config.augment.model_copy(update={"repeats": 1}),
            }
        )
        settings = LoaderSettings(threads=1)
        samples = train_samples(alone, index, Processes(self.device), batch, settings)
        return replace(samples, mixing=None)

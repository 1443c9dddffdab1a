"""The tracking services that a run can report to, and which package and extra each needs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from dali_rsb.errors import UserError
from dali_rsb.run.records import PictureTable, RunInfo
from dali_rsb.run.trackers.points import Point


class Service(Protocol):
    """A run in a tracking service: made of a `RunInfo`, on a thread of its own.

    Whatever it raises makes the feed begin again with a new one, at the next checkpoint.
    """

    def begin(self, last_images: int) -> int:
        """Make the run there, or find it again.

        Args:
            last_images: place of the last point that it can have; later ones there are of what was
                lost, as the run goes on from an earlier checkpoint, and must go.

        Returns:
            Place of the last point that it has, -1 for none: later ones are to come.
        """

    def log(self, points: Sequence[Point]) -> None:
        """Take points, in their order; returns once they are out of this process's hands."""

    def log_checkpoint(self, path: Path, alias: str) -> None:
        """Take a checkpoint as an artifact, under the alias "latest" or "best"."""

    def close(self) -> None:
        """End the run there, if it has begun."""


@dataclass(frozen=True)
class Kind:
    """A kind of service.

    Attributes:
        module: beside this one, which has the class.
        name: of the class.
        packages: that must be importable.
        takes_tables: its module has a function `log_table(run, table)`, which says where it went.
        is_live: it takes points before a checkpoint covers them, and begins with an empty run each
            time; others keep what they have, and get final points only.
    """

    module: str
    name: str
    packages: tuple[str, ...]
    is_live: bool = False
    takes_tables: bool = True

    def make(self, run: RunInfo) -> Service:
        """Import it, which may take seconds, and make one."""
        return cast(Service, getattr(self._imported(), self.name)(run))

    def log_table(self, run: RunInfo, table: PictureTable) -> str:
        """Give it a table of a run, beside the run's numbers; a run that goes on keeps it.

        Returns:
            Where the table is now, for people.
        """
        return str(self._imported().log_table(run, table))

    def _imported(self) -> ModuleType:
        return importlib.import_module(f"{__package__}.{self.module}")


# By the names of tracking.trackers and of the extras in setup.py.
SERVICES = {
    "tensorboard": Kind("tensorboard_events", "TensorBoard", ("tensorboard",), is_live=True),
    "wandb": Kind("wandb_run", "WandbRun", ("wandb",)),
    "trackio": Kind("trackio_run", "TrackioRun", ("trackio",), takes_tables=False),
    "mlflow": Kind("mlflow_run", "MlflowRun", ("mlflow", "sqlalchemy", "alembic")),
}


def check_installed(names: Iterable[str]) -> None:
    """Look whether services can be imported, without importing them.

    Raises:
        UserError: a package is missing.
    """
    for name in names:
        missing = [p for p in SERVICES[name].packages if importlib.util.find_spec(p) is None]
        if missing:
            raise UserError(
                f"tracking.trackers: {name} needs the package {missing[0]}, which is not "
                f"installed; pip install 'dali_rsb[{name}]', or leave {name} out"
            )


def run_name(run: RunInfo) -> str:
    """What the run is called in the services."""
    return run.tracking.name or run.folder.name


def local_folder(run: RunInfo) -> Path:
    """Where services keep local files."""
    folder = run.tracking.folder or run.folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def flat_config(run: RunInfo) -> dict[str, object]:
    """The configuration as values by section.key, and versions and hardware below environment."""
    values: dict[str, object] = {}
    for section, keys in run.config.items():
        if isinstance(keys, dict):
            values |= {f"{section}.{key}": value for key, value in keys.items()}
        else:
            values[section] = keys
    return values | {f"environment.{key}": value for key, value in run.environment.items()}

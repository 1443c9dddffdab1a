"""The folders of runs: runs/NAME, then runs/NAME-2 and so on, or the one that a user names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dali_rsb.errors import UserError
from dali_rsb.run.checkpointer import checkpoint_to_resume, last_checkpoint, newest_intact
from dali_rsb.system.atomic import atomic_file

logger = logging.getLogger(__name__)

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolders:
    """The folders of a configuration's runs.

    Attributes:
        name: of the configuration.
        chosen: the one folder that the user chose, or None for numbered ones.
    """

    name: str
    chosen: Path | None = None

    def find_resume(self, resume: str | None) -> Path | None:
        """The checkpoint to go on from, or None to start from scratch.

        Args:
            resume: a run folder or checkpoint; "last" for the newest run; "auto" for the newest
                run if there is one; or None.

        Raises:
            UserError: there is none where one is asked for.
        """
        if resume is None:
            return None
        if resume not in ("last", "auto"):
            return checkpoint_to_resume(Path(resume))
        folders = [self.chosen] if self.chosen else [*self._existing()][::-1]
        for folder in folders:
            if checkpoint := newest_intact(folder):
                return checkpoint
        if resume == "auto":
            return None
        where = self.chosen or RUNS / self.name
        raise UserError(f"no checkpoint to resume in {where}; start without --resume")

    def open(self, resume: Path | None, config: Mapping[str, Any]) -> Path:
        """Make the folder, or find it again to resume; write the configuration into it.

        Args:
            resume: the checkpoint that the run goes on from, or None.
            config: the whole configuration, as plain values.

        Raises:
            UserError: the chosen folder holds a run that this one does not resume, or the folder
                cannot be written.
        """
        if self.chosen is not None:
            folder = self.chosen
            if resume is None and last_checkpoint(folder) is not None:
                raise UserError(
                    f"run.dir={folder} already holds a run; add --resume or change run.dir"
                )
        elif resume is not None:
            folder = resume.parent
        else:
            folder = self._numbered(len([*self._existing()]) + 1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_config(folder, config_text(config))
        except OSError as error:
            raise UserError(
                f"run folder {folder} cannot be written ({error.strerror or error}); make room, "
                "or set run.dir to another folder"
            ) from error
        logger.info("run folder %s", folder)
        return folder

    def _existing(self) -> Iterator[Path]:
        """The numbered folders that exist, oldest first."""
        number = 1
        while (folder := self._numbered(number)).exists():
            yield folder
            number += 1

    def _numbered(self, number: int) -> Path:
        return RUNS / (self.name if number == 1 else f"{self.name}-{number}")


def config_text(config: Mapping[str, Any]) -> str:
    """What config.yaml holds of a configuration, given as plain values."""
    return yaml.safe_dump(dict(config), sort_keys=False)


def _write_config(folder: Path, text: str) -> None:
    """Write config.yaml; one that says something else stays, as config-1.yaml and so on."""
    path = folder / "config.yaml"
    if path.is_file():
        if path.read_bytes() == text.encode():
            return
        number = 1
        while (earlier := folder / f"config-{number}.yaml").exists():
            number += 1
        path.replace(earlier)
        logger.warning("the configuration has changed; the earlier one is now %s", earlier)
    with atomic_file(path) as file:
        file.write(text.encode())

"""The checkpoints of a run folder: their names, which is written when, which to go on from.

Nobody else knows their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import save_checkpoint

_LAST = "last.pt"
_BEST = "best.pt"


class Checkpointer:
    """Writes the checkpoints of a run.

    Args:
        folder: run folder, which exists; None on other ranks than the first, which write nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @property
    def last(self) -> Path | None:
        """The checkpoint to resume from, None where there is none."""
        return None if self._folder is None else last_checkpoint(self._folder)

    def save(self, state: dict[str, Any], is_best: bool = False) -> None:
        """Write the last checkpoint, each whole or not at all, and the best one too if this is it.

        Args:
            state: see `save_checkpoint`.
        """
        if self._folder is None:
            return
        save_checkpoint(self._folder / _LAST, state)
        if is_best:
            save_checkpoint(self._folder / _BEST, state)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run folder to resume from, None where there is none."""
    path = folder / _LAST
    return path if path.is_file() else None


def checkpoint_to_resume(path: Path) -> Path:
    """The checkpoint that a user means by a run folder or a file.

    Raises:
        UserError: there is none.
    """
    path = path / _LAST if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give a run folder or a .pt file to --resume")
    return path


def checkpoint_to_evaluate(path: Path) -> Path:
    """The best checkpoint of a run folder; a path of a file stays what it is, existing or not."""
    return path / _BEST if path.is_dir() else path

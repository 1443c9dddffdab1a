"""Folders that commands write pictures into: whole or not at all, and nobody else's is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_directory
from dali_rsb.system.names import printable


@contextmanager
def picture_folder(target: Path, own_file: str) -> Iterator[Path]:
    """Yield a new folder that takes the place of `target` when the block ends.

    Args:
        own_file: by which a folder is known to be of the same command, so that it may be replaced.

    Raises:
        UserError: `target` is something else, or cannot be written.
    """
    if target.exists() and not (target.is_dir() and _is_own(target, own_file)):
        raise UserError(
            f"{printable(target, 130)} exists and holds no {own_file}: it would be replaced; give "
            "another folder by --output"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target.absolute(), durable=False) as folder:
            yield folder
    except OSError as error:
        raise UserError(
            f"cannot write {printable(target, 130)} ({error.strerror or error}); make room, or "
            "give another folder by --output"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _is_own(folder: Path, own_file: str) -> bool:
    return (folder / own_file).is_file() or not any(folder.iterdir())

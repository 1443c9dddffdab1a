"""Put a whole directory in place at once, so that no reader ever sees half of it."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new hidden directory beside `target`, which takes its place when the block ends.

    An existing `target` is replaced. Should the block raise, nothing changes. When several
    processes replace `target` at once, each of them succeeds and one complete result stays.

    Raises:
        OSError: the directory cannot be created, or `target` is no directory.
    """
    new = _beside(target, "partial")
    new.mkdir()
    try:
        yield new
        _rename_over(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _rename_over(new: Path, target: Path) -> None:
    try:
        new.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # A directory that is not empty cannot be renamed over: move it away first.
        old = _beside(target, "old")
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            # Another process put its own complete directory there meanwhile: that one stays.
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name.lstrip('.')}-{secrets.token_hex(8)}.{kind}")

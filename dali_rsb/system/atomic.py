"""Put a whole directory in place at once, so that no reader ever sees half of it."""

from __future__ import annotations

import contextlib
import errno
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
    while True:
        try:
            new.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A directory that is not empty cannot be renamed over: move it away and try again. Other
        # processes may do the same at any moment, so that it may be gone, or there again.
        old = _beside(target, "old")
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name.lstrip('.')}-{secrets.token_hex(8)}.{kind}")

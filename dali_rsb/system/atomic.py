"""Put a file or a whole directory in place at once, so that no reader ever sees half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# What a filesystem answers that knows no fsync of directories, and one that does not let us read
# the directory. The new name is in place all the same.
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a new hidden file beside `target`, which takes its place when the block ends.

    An existing `target` is replaced. By then the file and its name are on the disk: a power
    failure leaves the old content or the new one. If the block raises, nothing changes. When
    several processes replace `target` at once, each of them succeeds and one complete file stays.

    Raises:
        OSError: the file cannot be created or written, or `target` is a directory.
    """
    new = _beside(target, "partial")
    try:
        with new.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    _fsync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(target: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a new hidden directory beside `target`, which takes its place when the block ends.

    An existing `target` is replaced. If the block raises, nothing changes. When several processes
    replace `target` at once, each of them succeeds and one complete result stays.

    Args:
        durable: have all of it on the disk before it takes its place. That takes milliseconds for
            each file: leave it out for many small files that can be made again.

    Raises:
        OSError: the directory cannot be created, or `target` is no directory.
    """
    new = _beside(target, "partial")
    new.mkdir()
    try:
        yield new
        if durable:
            _fsync_tree(new)
        _rename_over(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if durable:
        _fsync_directory(target.parent)


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


def _fsync_tree(top: Path) -> None:
    for folder, _, names in os.walk(top):
        for name in names:
            _fsync(Path(folder, name))
        _fsync_directory(Path(folder))


def _fsync_directory(path: Path) -> None:
    try:
        _fsync(path)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

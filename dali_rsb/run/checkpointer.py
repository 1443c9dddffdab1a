"""The checkpoints of a run folder: their names, which is written when, which to go on from.

Nobody else knows their names.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import (
    DamagedCheckpointError,
    find_fault,
    load_checkpoint,
    save_checkpoint,
    with_judged_weights,
)
from dali_rsb.run.records import SavedCheckpoint

logger = logging.getLogger(__name__)

_LAST = "last.pt"
_BEST = "best.pt"

# Seconds after which a checkpoint that could not be written is tried again.
RETRY_S = 60.0


class Checkpointer:
    """Writes the checkpoints of a run, on a thread of its own and in the order of the calls.

    last.pt is the newest, last-1.pt the one before, and so on. A checkpoint takes its place once
    it has been read again and its SHA-256 compared; the best one is written before the last one,
    which is not written without it: whoever goes on from the last one misses nothing. A disk that
    is full or read-only is a warning, until there were too many.

    Args:
        folder: run folder, which exists; None on other ranks than the first, which write nothing.
        keep: how many of the last checkpoints stay, the newest included.
        max_failures: writes that fail in a row before the run must stop.
        every_s: seconds between checkpoints, None for no such rule.
        on_saved: is told of each checkpoint that is in its place, on the thread that wrote it.
    """

    def __init__(
        self,
        folder: Path | None,
        keep: int = 2,
        max_failures: int = 5,
        every_s: float | None = None,
        on_saved: Callable[[SavedCheckpoint], None] = lambda saved: None,
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._max_failures = max_failures
        self._every_s = every_s
        self._on_saved = on_saved
        self._saved_s = time.monotonic()
        self._failures = 0
        self._reason = ""
        self._owed_best: dict[str, Any] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        if folder is not None:
            _remove_partial_files(folder)

    @property
    def last(self) -> Path | None:
        """The checkpoint to resume from, None where there is none; waits until it is written."""
        self.wait()
        return None if self._folder is None else last_checkpoint(self._folder)

    @property
    def best(self) -> Path | None:
        """The best checkpoint, None where there is none; waits until it is written."""
        self.wait()
        return None if self._folder is None else _best_checkpoint(self._folder)

    @property
    def is_due(self) -> bool:
        """Is it time for a checkpoint, by the clock or because the last one failed?"""
        if self._folder is None:
            return False
        waits_s = [self._every_s] if self._every_s is not None else []
        waits_s += [RETRY_S] if self._failures else []
        return bool(waits_s) and time.monotonic() - self._saved_s >= min(waits_s)

    @property
    def has_failed(self) -> bool:
        """Have too many writes in a row failed?"""
        return self._failures >= self._max_failures

    def failure(self) -> str:
        """What to say where too many writes have failed, here or in the first process."""
        # Whichever process is the first to say it is heard, so each names the fix.
        number, reason = self._failures, self._reason
        if self._folder is None:
            number, reason = self._max_failures, "the first process's output says why"
        return (
            f"{number} checkpoints in a row could not be written ({reason}); make room on the disk "
            "and --resume, or raise run.max_checkpoint_failures"
        )

    def save(self, state: dict[str, Any], is_best: bool = False) -> None:
        """Write the last checkpoint, each whole or not at all, and the best one too if this is it.

        Returns before it is written, but not before the one before is.

        Args:
            state: see `save_checkpoint`; nobody may change it afterwards.
        """
        if self._folder is None:
            return
        self.wait()
        self._saved_s = time.monotonic()
        self._writing = self._thread.submit(self._write, self._folder, state, is_best)

    def wait(self) -> bool:
        """Wait until all is written; False if the last one could not be."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        return self._failures == 0

    def close(self) -> None:
        """Wait until all is written, and end the thread."""
        self._thread.shutdown()

    def _write(self, folder: Path, state: dict[str, Any], is_best: bool) -> None:
        if fault := find_fault(state):
            logger.warning("checkpoint not written: it %s", fault)
            return
        if is_best:
            self._owed_best = state
        try:
            if self._owed_best is not None:
                save_checkpoint(folder / _BEST, with_judged_weights(self._owed_best))
                self._owed_best = None
            new = folder / f".{_LAST}.next"
            save_checkpoint(new, state)
            self._rotate(folder)
            new.replace(folder / _LAST)
        except (OSError, RuntimeError) as error:
            self._failures += 1
            self._reason = (getattr(error, "strerror", None) or str(error).split("\n")[0])[:80]
            logger.warning(
                "checkpoint not written (%s), failure %d of run.max_checkpoint_failures=%d in a "
                "row; training goes on and tries again",
                self._reason,
                self._failures,
                self._max_failures,
            )
        else:
            self._failures = 0
            done, is_open = state.get("updates_done", 0), state.get("is_epoch_open", False)
            best = _best_checkpoint(folder)
            self._on_saved(SavedCheckpoint(done, is_open, folder / _LAST, best))

    def _rotate(self, folder: Path) -> None:
        """Move the older checkpoints on by one; last.pt stays until another takes its place."""
        if not (folder / _LAST).is_file():
            return
        names = [_earlier(number) for number in range(self._keep)]
        for older, newer in zip(names[:0:-1], names[-2:0:-1], strict=False):
            with suppress(FileNotFoundError):
                (folder / newer).replace(folder / older)
        if self._keep > 1:
            _link(folder / _LAST, folder / _earlier(1))


def _best_checkpoint(folder: Path) -> Path | None:
    return folder / _BEST if (folder / _BEST).is_file() else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, intact or not; None where there is none."""
    return next(_candidates(folder), None)


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder that can be read; warns of those that cannot.

    Raises:
        DamagedCheckpointError: there are some, and none can be read.
    """
    first: DamagedCheckpointError | None = None
    for path in _candidates(folder):
        try:
            load_checkpoint(path)
        except DamagedCheckpointError as error:
            logger.warning("%s", error)
            first = first or error
        else:
            if first is not None:
                logger.warning("going on from %s instead", path)
            return path
    if first is not None:
        raise first
    return None


def checkpoint_to_resume(path: Path) -> Path:
    """The checkpoint that a user means by a run folder or a file.

    Raises:
        UserError: there is none.
    """
    if path.is_dir():
        found = newest_intact(path)
        path = path / _LAST if found is None else found
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give a run folder or a .pt file to --resume")
    return path


def checkpoint_to_evaluate(path: Path) -> Path:
    """The best checkpoint of a run folder; a path of a file stays what it is, existing or not."""
    return path / _BEST if path.is_dir() else path


def is_best(path: Path) -> bool:
    """Whether a file is a run's best checkpoint, judged by its evaluations."""
    return path.name == _BEST


def _candidates(folder: Path) -> Iterator[Path]:
    """The checkpoints that a run can go on from, newest first; the best one is the last resort."""
    numbers = [
        int(path.stem.removeprefix("last-"))
        for path in folder.glob("last-*.pt")
        if path.stem.removeprefix("last-").isdecimal()
    ]
    names = [_LAST, *map(_earlier, sorted(numbers)), _BEST]
    return (folder / name for name in names if (folder / name).is_file())


def _earlier(number: int) -> str:
    return f"last-{number}.pt" if number else _LAST


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; move it where the filesystem knows no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        source.replace(target)


def _remove_partial_files(folder: Path) -> None:
    """Remove what writes left behind that were killed."""
    for pattern in (".*.partial", f".{_LAST}.next"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()

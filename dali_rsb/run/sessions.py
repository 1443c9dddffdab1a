"""The sessions of a run, each a start or a resumption: how its updates were made.

A line of sessions.jsonl for each, and one where it ended. With the run's configuration that is all
that `dali-rsb replay` needs to make any batch again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dali_rsb.run.trackers.jsonl_file import read_lines
from dali_rsb.system.files import read_text

logger = logging.getLogger(__name__)

SESSIONS = "sessions.jsonl"

# Where a run stands, as (epoch, update of the epoch), both from 0.
Position = tuple[int, int]


@dataclass(frozen=True)
class Session:
    """A start or resumption of a run.

    Attributes:
        config_digest: of the configuration, see `digest_of`; None if not known.
        device: "cpu" or "cuda".
        dtype: name of the type of the mixed images.
        num_images, num_classes: of the training images; None if not known.
        images_digest: of their names and labels, see `DatasetIndex.digest`; None if not known.
        by_kernels: RandAugment is computed by kernels, not by DALI.
        first, last: the position that it begins at, and the one behind its last known update.
        started_s: Unix time; None if not known.
    """

    world_size: int
    device: str
    global_batch: int
    batch_per_device: int
    updates_per_epoch: int = 0
    config_digest: str | None = None
    dtype: str = "float32"
    num_images: int | None = None
    num_classes: int | None = None
    images_digest: str | None = None
    by_kernels: bool = False
    first: Position = (0, 0)
    last: Position = (0, 0)
    started_s: float | None = field(default_factory=time.time)

    def position(self, update: int) -> Position:
        """Of an update that is given by its number in all, from 1, as this session counts."""
        epoch, place = divmod(update - 1, self.updates_per_epoch)
        return epoch, place


def digest_of(config_text: str) -> str:
    """Tells configurations apart, by the text of their files."""
    return hashlib.sha256(config_text.encode()).hexdigest()[:16]


def record_start(folder: Path, session: Session) -> None:
    """Note that a session begins."""
    _append(folder, {"kind": "start", **asdict(session)})


def record_end(folder: Path, position: Position) -> None:
    """Note that the session ends, at the position behind its last update."""
    _append(folder, {"kind": "end", "last": position})


def read_sessions(folder: Path) -> list[Session]:
    """The sessions of a run folder, oldest first; none if it has no sessions.jsonl.

    Where one was killed, its last known update is the last one in metrics.jsonl.

    Raises:
        UserError: a file is there and unreadable.
    """
    sessions: list[Session] = []
    for line in _lines(folder / SESSIONS):
        if line.get("kind") == "start":
            known = {name: line[name] for name in Session.__dataclass_fields__ if name in line}
            first = tuple(known["first"])
            sessions.append(Session(**known | {"first": first, "last": first}))
        elif line.get("kind") == "end" and sessions:
            sessions[-1] = replace(sessions[-1], last=tuple(line["last"]))
    for line in read_lines(folder):
        if line.get("kind") == "update":
            _take_report(sessions, line)
    return sessions


def _take_report(sessions: list[Session], line: dict[str, Any]) -> None:
    """Let the session that reported an update have reached it."""
    for number in reversed(range(len(sessions))):
        started_s = sessions[number].started_s
        if started_s is not None and line["unix_time_s"] >= started_s - 1e-3:  # rounded there
            reached = (line["epoch"] - 1, line["update"])
            last = max(sessions[number].last, reached)
            sessions[number] = replace(sessions[number], last=last)
            return


def standing(sessions: Sequence[Session]) -> list[tuple[Session, Position, Position]]:
    """Which updates of a run each session has made for good, from one position to before another.

    What a later session made again, after it went on from an earlier checkpoint, is its own. A
    session without such an update is left out.
    """
    parts = []
    for number, session in enumerate(sessions):
        later = [other.first for other in sessions[number + 1 :]]
        # A position behind an epoch's last update is the next epoch's first.
        end = min([session.last, *later])
        if session.first < end:
            parts.append((session, session.first, end))
    return parts


def _append(folder: Path, line: dict[str, Any]) -> None:
    """Add a line; a disk that is full or read-only does not stop a run."""
    path = folder / SESSIONS
    try:
        with path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed run's half line
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        logger.warning(
            "cannot write %s (%s): dali-rsb replay will go by the checkpoint", path, error.strerror
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the lines of a file; none if there is no such file. Half lines are skipped."""
    if not path.exists():
        return []
    found = []
    for line in read_text(path, "restore it, or move it away").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found

"""metrics.jsonl: a line for each report of updates and for each epoch, `kind` says which."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dali_rsb.run.records import EpochRow, RunInfo, SavedCheckpoint, UpdateRow
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.files import MissingFileError, read_bytes

NAME = "metrics.jsonl"


class JsonlFile:
    """Appends to metrics.jsonl; drops the lines of what a resumed run does again."""

    def __init__(self, run: RunInfo) -> None:
        self._path = run.folder / NAME
        _rewind(self._path, run)

    def log_update(self, row: UpdateRow) -> None:
        values = asdict(row)
        for rare in ("skipped", "replaced"):  # the key says that there are any
            if not values[rare]:
                del values[rare]
        self._append("update", values)

    def log_epoch(self, row: EpochRow) -> None:
        self._append("epoch", asdict(row))

    def log_checkpoint(self, saved: SavedCheckpoint) -> None:
        """Nothing: the lines are written already."""

    def close(self) -> None:
        """Nothing is left open."""

    def _append(self, kind: str, values: dict[str, Any]) -> None:
        line = {"kind": kind, **values, "unix_time_s": round(time.time(), 3)}
        with self._path.open("a") as file:
            file.write(json.dumps({key: _json_value(value) for key, value in line.items()}) + "\n")


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run folder's metrics.jsonl; none where there is no file.

    Raises:
        UnreadableFileError: it cannot be read.
    """
    lines = parsed_lines(folder / NAME, "restore it, or move it away")
    return (line for line in lines if line is not None)


def parsed_lines(path: Path, fix: str) -> Iterator[dict[str, Any] | None]:
    """The lines of a metrics.jsonl, None for a damaged one; none where there is no file.

    A half line at the end, which is being written, or was when the run was killed, is left out.

    Args:
        fix: what the user can do if it cannot be read, for the message.

    Raises:
        UnreadableFileError: it cannot be read.
    """
    try:
        *whole, last = read_bytes(path, fix).split(b"\n")
    except MissingFileError:
        return
    for text in whole:
        yield _parsed(text)
    if (line := _parsed(last)) is not None:
        yield line


def _rewind(path: Path, run: RunInfo) -> None:
    """Leave out what comes after the update that the run goes on from, and any half line."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and not _is_later(_parsed(line), run)]
    if kept != lines:
        with atomic_file(path) as file:
            file.write(b"".join(kept))


def _is_later(line: dict[str, Any] | None, run: RunInfo) -> bool:
    """Will the run report again what a line reports? Whatever is no such line stays."""
    try:
        if line is None or line["kind"] not in ("update", "epoch"):
            return False
        if line["kind"] == "epoch":
            return bool(line["epoch"] > run.first_epoch)
        # Counted in epochs, as another batch size makes more or fewer updates of one.
        length = line["num_updates"]
        done = (line["epoch"] - 1) * length + line["update"]
        return bool(done * run.updates_per_epoch > run.updates_done * length)
    except (KeyError, TypeError):
        return False


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # not UTF-8 either; nested 10,000 deep
        return None
    return line if isinstance(line, dict) else None


def _json_value(value: Any) -> Any:
    """JSON has neither NaN nor inf: the loss where every update was skipped is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

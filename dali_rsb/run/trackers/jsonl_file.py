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

_NAME = "metrics.jsonl"


class JsonlFile:
    """Appends to metrics.jsonl; drops the lines of what a resumed run does again."""

    def __init__(self, run: RunInfo) -> None:
        self._path = run.folder / _NAME
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
    """The lines of a run folder's metrics.jsonl; none where there is no file."""
    path = folder / _NAME
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        if (line := _parsed(text)) is not None:
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
    except ValueError:  # not UTF-8 either
        return None
    return line if isinstance(line, dict) else None


def _json_value(value: Any) -> Any:
    """JSON has neither NaN nor inf: the loss where every update was skipped is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

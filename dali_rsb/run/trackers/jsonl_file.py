"""metrics.jsonl: a line for each report of updates and for each epoch, `kind` says which."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dali_rsb.run.records import EpochRow, RunInfo, UpdateRow


class JsonlFile:
    """Appends to metrics.jsonl; a resumed run's lines follow those of the run before."""

    def __init__(self, run: RunInfo) -> None:
        self._path = run.folder / "metrics.jsonl"
        _end_last_line(self._path)

    def log_update(self, row: UpdateRow) -> None:
        values = asdict(row)
        if not row.skipped:  # which is rare: the key says that there are any
            del values["skipped"]
        self._append("update", values)

    def log_epoch(self, row: EpochRow) -> None:
        self._append("epoch", asdict(row))

    def close(self) -> None:
        """Nothing is left open."""

    def _append(self, kind: str, values: dict[str, Any]) -> None:
        line = {"kind": kind, **values, "unix_time_s": round(time.time(), 3)}
        with self._path.open("a") as file:
            file.write(json.dumps({key: _json_value(value) for key, value in line.items()}) + "\n")


def _end_last_line(path: Path) -> None:
    """Cut off the half line that a killed run left, lest the next one joins it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _json_value(value: Any) -> Any:
    """JSON has no NaN: the loss where every update was skipped is null."""
    return None if isinstance(value, float) and math.isnan(value) else value

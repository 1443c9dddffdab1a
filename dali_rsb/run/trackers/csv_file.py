"""metrics.csv: a row for each epoch."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dali_rsb.run.records import EpochRow, RunInfo, SavedCheckpoint, UpdateRow
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.files import MissingFileError, UnreadableFileError, read_text

logger = logging.getLogger(__name__)

_NAME = "metrics.csv"
_COLUMNS = [field.name for field in fields(EpochRow)]
_COUNTS = ("epoch", "updates", "skipped")


class CsvFile:
    """Writes metrics.csv; drops the rows of epochs that a resumed run trains again.

    Each time the whole file, so that a row that a full disk refused comes with the next.
    """

    def __init__(self, run: RunInfo) -> None:
        self._path = run.folder / _NAME
        self._rows: list[dict[str, Any]] = []
        text, reason = "", ""
        try:
            text = read_text(self._path, "")
        except MissingFileError:
            pass
        except UnreadableFileError as error:
            reason = error.reason
        if text:
            rows, reason = _rows(text)
            self._rows = [row for row in rows if int(row["epoch"]) <= run.first_epoch]
        if reason:
            _set_aside(self._path, reason)
        self._write()

    def log_update(self, row: UpdateRow) -> None:
        """Nothing: the file has rows of epochs only."""

    def log_epoch(self, row: EpochRow) -> None:
        self._rows.append({name: _cell(value) for name, value in asdict(row).items()})
        self._write()

    def log_checkpoint(self, saved: SavedCheckpoint) -> None:
        """Nothing: the rows are written already."""

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(self._rows)
        with atomic_file(self._path) as new:
            new.write(text.getvalue().encode())


def read_epochs(folder: Path) -> list[EpochRow]:
    """The epochs in a run folder's metrics.csv, without damaged rows; none if there is no file."""
    try:
        rows, _ = _rows(read_text(folder / _NAME, ""))
    except UnreadableFileError:
        return []
    return [EpochRow(**{name: _number(name, cell) for name, cell in row.items()}) for row in rows]


def _cell(value: Any) -> Any:
    """Six digits of a number, which say all that two runs can differ by; metrics.jsonl has all."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _number(column: str, cell: str) -> Any:
    if cell == "":
        return None
    return int(cell) if column in _COUNTS else float(cell)


def _rows(text: str) -> tuple[list[dict[str, Any]], str]:
    """The usable rows of a file, one an epoch, and what is wrong with it, "" if nothing is."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    rows: dict[int, dict[str, Any]] = {}
    num_bad = 0
    try:
        if reader.fieldnames != _COLUMNS:
            return [], "has other columns"
        for row in reader:
            if _is_usable(row):
                rows[int(row["epoch"])] = row
            else:
                num_bad += 1
    except csv.Error as error:
        return [*rows.values()], f"is no CSV ({error})"
    return [*rows.values()], f"has {num_bad} damaged row(s)" if num_bad else ""


def _is_usable(row: dict[str, Any]) -> bool:
    """All cells are numbers, or empty where nothing was measured; none is missing or too many."""
    if len(row) != len(_COLUMNS) or None in row.values():
        return False
    if not all(row[name].isdecimal() for name in _COUNTS):
        return False
    try:
        return all(cell == "" or isinstance(float(cell), float) for cell in row.values())
    except ValueError:
        return False


def _set_aside(path: Path, reason: str) -> None:
    """Keep a damaged file as metrics.csv.damaged, metrics.csv.damaged-2 and so on."""
    number, target = 1, path.with_name(f"{path.name}.damaged")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    path.replace(target)
    logger.warning("%s %s: kept as %s, and written again", path, reason, target.name)

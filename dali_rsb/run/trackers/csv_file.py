"""metrics.csv: a row for each epoch."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields

from dali_rsb.run.records import EpochRow, RunInfo, UpdateRow
from dali_rsb.system.atomic import atomic_file

_COLUMNS = [field.name for field in fields(EpochRow)]


class CsvFile:
    """Writes metrics.csv; drops the rows of epochs that a resumed run trains again."""

    def __init__(self, run: RunInfo) -> None:
        self._path = run.folder / "metrics.csv"
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= run.first_epoch]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self._path) as new:
            new.write(text.getvalue().encode())

    def log_update(self, row: UpdateRow) -> None:
        """Nothing: the file has rows of epochs only."""

    def log_epoch(self, row: EpochRow) -> None:
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(asdict(row))

    def close(self) -> None:
        """Nothing is left open."""

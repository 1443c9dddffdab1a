"""What a run writes: a progress bar on a terminal, lines in a log file, CSV and JSONL."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import sys
import time
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("dali_rsb")


@dataclass(frozen=True)
class EpochRow:
    """A row of metrics.csv. Accuracies and `data_wait` are in percent, None where not measured.

    `skipped` counts the updates skipped for inf or NaN in their gradients; they are in `updates`,
    and not in the loss.
    """

    epoch: int
    updates: int
    train_loss: float
    lr: float
    img_per_s: float
    data_wait: float
    skipped: int
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    ema_top1: float | None
    ema_top5: float | None
    time_s: float


COLUMNS = [field.name for field in fields(EpochRow)]


class RunLog:
    """Writes the files of a run folder; on other ranks than the first it writes nothing.

    Args:
        folder: run folder, which exists; None on other ranks.
        first_epoch: epoch at which the run starts; rows of a resumed run from there on are
            dropped, as those epochs are trained again.
    """

    def __init__(self, folder: Path | None, first_epoch: int = 0) -> None:
        self._folder = folder
        self._bar: tqdm[Any] | None = None
        if folder is None:
            return
        log_file = logging.FileHandler(folder / "train.log")
        log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.setLevel(logging.INFO)
        logger.addHandler(log_file)
        self._log_file = log_file
        self._start_csv(folder / "metrics.csv", first_epoch)

    def start_epoch(self, epoch: int, num_epochs: int, first_update: int, num_updates: int) -> None:
        """Open the progress bar of an epoch, where stderr is a terminal."""
        if self._folder is not None and sys.stderr.isatty():
            self._bar = tqdm(
                desc=f"epoch {epoch + 1}/{num_epochs}",
                initial=first_update,
                total=num_updates,
                unit="update",
                dynamic_ncols=True,
                leave=False,
            )

    def advance(self) -> None:
        """Move the progress bar on by one update."""
        if self._bar is not None:
            self._bar.update()

    def log_update(self, values: dict[str, float], left_s: float) -> None:
        """Report on the updates since the last report.

        Args:
            values: `epoch` and `update` (from 1), `num_epochs`, `num_updates`, `loss`, `lr`,
                `img_per_s`, `data_wait` in percent, `skipped` (updates) if there are any.
            left_s: estimate of the time to the end of the run, in seconds.
        """
        if self._folder is None:
            return
        self._write_json({"kind": "update", **values})
        left = timedelta(seconds=round(left_s))
        numbers = (
            f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
            f"{values['img_per_s']:,.0f} img/s  data wait {values['data_wait']:.1f} %  left {left}"
        )
        if values.get("skipped"):
            numbers += f"  skipped {values['skipped']:.0f}"
        if self._bar is not None:
            self._bar.set_postfix_str(numbers)
        self._say(
            logging.INFO if self._bar is None else logging.DEBUG,
            f"epoch {values['epoch']:.0f}/{values['num_epochs']:.0f}  "
            f"update {values['update']:.0f}/{values['num_updates']:.0f}  {numbers}",
        )

    def log_epoch(self, row: EpochRow, num_epochs: int) -> None:
        """Close the bar and write the row of an epoch."""
        self.close_bar()
        if self._folder is None:
            return
        values = {name: getattr(row, name) for name in COLUMNS}
        with (self._folder / "metrics.csv").open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(values)
        self._write_json({"kind": "epoch", **values})
        accuracies = "".join(
            f"  {name} {values[name]:.2f} %"
            for name in ("val_top1", "val_top5", "ema_top1", "ema_top5")
            if values[name] is not None
        )
        logger.info(
            "epoch %d/%d  train loss %.4f%s  %s img/s  data wait %.1f %%%s",
            row.epoch,
            num_epochs,
            row.train_loss,
            accuracies,
            f"{row.img_per_s:,.0f}",
            row.data_wait,
            f"  skipped {row.skipped}" if row.skipped else "",
        )

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Close the bar and the log file."""
        self.close_bar()
        if self._folder is not None:
            logger.removeHandler(self._log_file)
            self._log_file.close()

    def _say(self, level: int, line: str) -> None:
        """A line for the log file; the terminal shows it only where no bar does."""
        if level == logging.INFO:
            logger.info(line)
        else:
            self._log_file.handle(
                logger.makeRecord(logger.name, logging.INFO, "", 0, line, (), None)
            )

    def _write_json(self, values: dict[str, Any]) -> None:
        assert self._folder is not None
        with (self._folder / "metrics.jsonl").open("a") as file:
            line = {**values, "unix_time_s": round(time.time(), 3)}
            file.write(json.dumps({key: _json_value(value) for key, value in line.items()}) + "\n")

    def _start_csv(self, path: Path, first_epoch: int) -> None:
        """Write the header, and the rows of the epochs before `first_epoch` that exist already."""
        rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= first_epoch]
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _json_value(value: Any) -> Any:
    """JSON has no NaN: the loss where every update was skipped is null."""
    return None if isinstance(value, float) and math.isnan(value) else value

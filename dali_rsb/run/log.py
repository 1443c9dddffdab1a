"""What a run says: lines on the terminal and in train.log, and a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dali_rsb.run.console import OneLineFormatter
from dali_rsb.run.records import EpochRow, UpdateRow

logger = logging.getLogger("dali_rsb")


@contextmanager
def early_messages() -> Iterator[None]:
    """Keep what the package says before there is a run folder, such as which images are left out.

    The first `RunLog` that is made in the meantime takes it over.
    """
    early = _EarlyMessages()
    logger.addHandler(early)
    try:
        yield
    finally:
        logger.removeHandler(early)


class RunLog:
    """Keeps all messages of the package in train.log, and shows the progress of an epoch.

    Those of `early_messages` stand first. On other ranks than the first it is silent.

    Args:
        folder: run folder, which exists; None on other ranks.
    """

    def __init__(self, folder: Path | None) -> None:
        self._bar: tqdm[Any] | None = None
        self._file: logging.FileHandler | None = None
        if folder is not None:
            self._file = _LogFile(folder / "train.log", encoding="utf-8", errors="backslashreplace")
            self._file.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(message)s"))
            logger.setLevel(logging.INFO)
            logger.addHandler(self._file)
        for handler in list(logger.handlers):
            if isinstance(handler, _EarlyMessages):
                handler.hand_over(self._file)

    def start_epoch(self, epoch: int, num_epochs: int, first_update: int, num_updates: int) -> None:
        """Open the progress bar of an epoch, where stderr is a terminal."""
        if self._file is not None and sys.stderr.isatty():
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

    def log_update(self, row: UpdateRow, left_s: float) -> None:
        """Say how the updates since the last report went.

        Args:
            left_s: estimate of the time to the end of the run, in seconds.
        """
        if self._file is None:
            return
        numbers = (
            f"loss {row.loss:.4f}  lr {row.lr:.2e}  {row.img_per_s:,.0f} img/s  "
            f"wait {row.data_wait_percent:.1f} %  left {duration(left_s)}{_skipped(row.skipped)}"
        )
        # Fits 80 columns, where "epoch 100/100 update 5004/5004" would not.
        line = f"epoch {_epochs_done(row)}/{row.num_epochs}  {numbers}"
        if self._bar is None:
            logger.info(line)
        else:  # which shows the numbers; the line is for the file alone
            self._bar.set_postfix_str(numbers)
            self._to_file(logging.INFO, line)

    def log_epoch(self, row: EpochRow, num_epochs: int) -> None:
        """Close the bar and say how an epoch went."""
        self.close_bar()
        if self._file is None:
            return
        epoch = f"epoch {row.epoch}/{num_epochs}"
        logger.info(
            "%s  train loss %.4f  %s img/s  data wait %.1f %%%s",
            epoch,
            row.train_loss,
            f"{row.img_per_s:,.0f}",
            row.data_wait_percent,
            _skipped(row.skipped),
        )
        judged = {"": (row.val_top1, row.val_top5), "EMA ": (row.ema_top1, row.ema_top5)}
        accuracies = [
            f"{name}top-1 {top1:.2f} %  top-5 {top5:.2f} %"
            for name, (top1, top5) in judged.items()
            if top1 is not None and top5 is not None
        ]
        if accuracies:
            logger.info("%s  %s", epoch, "  ".join(accuracies))

    def _to_file(self, level: int, text: str) -> None:
        assert self._file is not None
        self._file.handle(logger.makeRecord(logger.name, level, "", 0, text, (), None))

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Close the bar and the log file."""
        self.close_bar()
        if self._file is not None:
            logger.removeHandler(self._file)
            self._file.close()


class _EarlyMessages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def hand_over(self, log_file: logging.Handler | None) -> None:
        """Give a handler, if there is one, all of them; it takes by itself what comes from now."""
        logger.removeHandler(self)
        if log_file is not None:
            for record in self._records:
                log_file.handle(record)
        self._records.clear()


class _LogFile(logging.FileHandler):
    """A log that a full disk leaves with gaps, without a traceback for each of its lines."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Leave the line out; whatever cannot be written either says so on the terminal."""


def duration(seconds: float) -> str:
    """A time for people: "45 s" below 100 s, "12 min" below 100 min, from there on "9.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def _epochs_done(row: UpdateRow) -> str:
    """With the part of the epoch that goes on, never rounded up to an epoch that is not done."""
    hundredths = 100 * (row.epoch - 1) + 100 * row.update // row.num_updates
    return f"{hundredths / 100:.2f}"


def _skipped(number: int) -> str:
    return f"  skipped {number}" if number else ""

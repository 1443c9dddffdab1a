"""TensorBoard: an event file in RUN/tensorboard, written again when a run is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard.writer import SummaryWriter

from dali_rsb.run.records import PictureTable, RunInfo
from dali_rsb.run.trackers.points import Point
from dali_rsb.run.trackers.services import flat_config, run_name


class TensorBoard:
    """A writer of events. The step of an event is the number of images seen."""

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._folder = run.folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def begin(self, last_images: int) -> int:
        # Whole again rather than purged from a step: a killed writer also lacks points before it.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = SummaryWriter(str(self._folder))
        about = {"name": run_name(self._run), "tags": self._run.tracking.tags}
        for title, values in (("run", about), ("configuration", flat_config(self._run))):
            lines = [f"    {key}: {json.dumps(value)}" for key, value in values.items()]
            self._writer.add_text(title, "\n".join(lines), 0)
        return -1

    def log(self, points: Sequence[Point]) -> None:
        assert self._writer is not None
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.images, point.unix_time_s)
        self._writer.flush()

    def log_checkpoint(self, path: Path, alias: str) -> None:
        """Nothing: TensorBoard knows no artifacts."""

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def log_table(run: RunInfo, table: PictureTable) -> str:
    """Write a table's pictures, and its text in Markdown, into a folder of its own.

    Beside `tensorboard`, which a run that goes on writes again.
    """
    folder = run.folder / f"tensorboard-{table.name}"
    shutil.rmtree(folder, ignore_errors=True)
    first = dict(zip(table.columns, table.rows[0], strict=True))
    texts = [name for name, cell in first.items() if _is_text(cell)]
    lines = [f"| {' | '.join(texts)} |", f"|{' --- |' * len(texts)}"]
    with SummaryWriter(str(folder)) as writer:
        for number, row in enumerate(table.rows):
            cells = dict(zip(table.columns, row, strict=True))
            lines.append(f"| {' | '.join(str(cells[name]) for name in texts)} |")
            for name, cell in cells.items():
                if not _is_text(cell):
                    tag = f"{table.name}/{number}/{name}"
                    writer.add_image(tag, np.asarray(cell), 0, dataformats="HWC")
        writer.add_text(table.name, "\n".join(lines), 0)
    return str(folder)


def _is_text(cell: object) -> bool:
    return not isinstance(cell, Image.Image)

"""TensorBoard: an event file in RUN/tensorboard, written again when a run is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from dali_rsb.run.records import RunInfo
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

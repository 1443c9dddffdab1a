"""Weights & Biases: a run with the id that the checkpoints hold."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from dali_rsb.run.records import PictureTable, RunInfo
from dali_rsb.run.trackers.points import Point
from dali_rsb.run.trackers.services import local_folder, run_name

logger = logging.getLogger(__name__)

# Seconds for the server to answer at the beginning, and to take the rest at the end.
_INIT_S, _FINISH_S = 90.0, 45.0


class WandbRun:
    """A run of W&B, on the axis `images`, which is its step too.

    On a server a resumed run goes on behind its last step. Local files cannot be resumed: they are
    written again from the first point, and `wandb sync` replaces the run by them.
    """

    def __init__(self, run: RunInfo) -> None:
        self._run_info = run
        self._folder = local_folder(run)
        self._run: wandb.Run | None = None

    def begin(self, last_images: int) -> int:
        info, tracking = self._run_info, self._run_info.tracking
        if tracking.is_offline:
            for before in self._folder.glob(f"wandb/offline-run-*-{info.run_id}"):
                shutil.rmtree(before, ignore_errors=True)
        self._run = _init(
            info,
            name=run_name(info),
            id=info.run_id,
            resume="allow",
            config={**info.config, "environment": dict(info.environment)},
        )
        self._run.define_metric("*", step_metric="images")
        if not tracking.is_offline:
            logger.info("W&B: %s", self._run.url)
        last = self._run.step - 1 if self._run.resumed else -1
        if last > last_images:
            logger.warning(
                "W&B has points of this run up to %s images, beyond where it goes on; it cannot "
                "take them back, and gets those behind them",
                f"{last:,}",
            )
        return last

    def log(self, points: Sequence[Point]) -> None:
        assert self._run is not None
        for point in points:
            self._run.log({"images": point.images, **point.values}, step=point.images, commit=True)

    def log_checkpoint(self, path: Path, alias: str) -> None:
        assert self._run is not None
        artifact = wandb.Artifact(f"checkpoint-{self._run_info.run_id}", type="model")
        artifact.add_file(str(path), path.name)
        self._run.log_artifact(artifact, aliases=[alias])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def log_table(run: RunInfo, table: PictureTable) -> str:
    """Log a table in a run of its own, in the same group: local files cannot be added to."""
    name = f"{run_name(run)}-{table.name}"
    made = _init(
        run, name=name, job_type=table.name, group=run_name(run), config={"of_run": run.run_id}
    )
    rows = [
        [wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row]
        for row in table.rows
    ]
    made.log({table.name: wandb.Table(list(table.columns), rows)})
    made.finish()
    return f"wandb sync {made.settings.sync_dir}" if run.tracking.is_offline else str(made.url)


def _init(run: RunInfo, **values: Any) -> wandb.Run:
    folder, tracking = local_folder(run), run.tracking
    # Copies of artifacts that are not sent yet.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    return wandb.init(
        project=tracking.project,
        tags=tracking.tags,
        mode="offline" if tracking.is_offline else "online",
        dir=str(folder),
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,  # reads the metadata of every package: a second of CPU
            init_timeout=_INIT_S,
            finish_timeout=_FINISH_S,
            finish_timeout_raises=True,
        ),
        **values,
    )

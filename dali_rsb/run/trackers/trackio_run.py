"""Trackio: a run whose name holds the id in the checkpoints, as its names must be unique."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dali_rsb.run.records import RunInfo
from dali_rsb.run.trackers.points import Point
from dali_rsb.run.trackers.services import local_folder, run_name


class TrackioRun:
    """A run of Trackio; the step is the number of images seen.

    Online it is where Trackio is set up for (TRACKIO_SPACE_ID, TRACKIO_SERVER_URL, or its own
    folder of this machine), offline in the folder `trackio`.
    """

    def __init__(self, run: RunInfo) -> None:
        self._info = run
        self._name = f"{run_name(run)}-{run.run_id}"
        self._run: Any = None
        if run.tracking.is_offline:  # read when it is imported
            for server in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
                os.environ.pop(server, None)
            os.environ.setdefault("TRACKIO_DIR", str(local_folder(run) / "trackio"))

    def begin(self, last_images: int) -> int:
        import trackio

        project = self._info.tracking.project
        last = self._start(trackio, project)
        if last > last_images:  # a point cannot be taken back, a run can be made again
            self.close()
            for run in trackio.Api().runs(project):
                if run.name == self._name:
                    run.delete()
            last = self._start(trackio, project)
        return last

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, "images": point.images}, step=point.images)

    def log_checkpoint(self, path: Path, alias: str) -> None:
        import trackio

        artifact = trackio.Artifact(f"checkpoint-{self._info.run_id}", type="model")
        artifact.add_file(str(path), path.name)
        self._run.log_artifact(artifact, aliases=[alias])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _start(self, trackio: Any, project: str) -> int:
        """Begin the run or find it again; the step of its last point, -1 for none."""
        info = self._info
        config = {**info.config, "environment": dict(info.environment)}
        config["tags"] = list(info.tracking.tags)
        self._run = trackio.init(
            project, self._name, config=config, resume="allow", embed=False, auto_log_cpu=False
        )
        return int(self._run._next_step) - 1  # there is no public name for it

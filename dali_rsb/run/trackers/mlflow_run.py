"""MLflow: a run with a tag that holds the id in the checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from dali_rsb.run.records import PictureTable, RunInfo
from dali_rsb.run.trackers.points import UPDATES, Point
from dali_rsb.run.trackers.services import flat_config, local_folder, run_name

_ID = "dali_rsb.run_id"
# Parameters that a server takes in one request, and characters of one.
_MAX_BATCH, _MAX_CHARACTERS = 100, 500


class MlflowRun:
    """A run of MLflow; a metric's step is the number of images seen.

    Online it is on the server of MLFLOW_TRACKING_URI, offline in mlflow.db and mlflow-artifacts/.
    """

    def __init__(self, run: RunInfo) -> None:
        self._info = run
        uri, self._artifacts = None, None
        if run.tracking.is_offline:
            folder = local_folder(run)
            uri = _database(folder / "mlflow.db")
            self._artifacts = (folder / "mlflow-artifacts").as_uri()
        self._client = MlflowClient(uri, uri)
        self._run_id = ""

    def begin(self, last_images: int) -> int:
        experiment = self._experiment()
        found = self._found(experiment)
        last = -1
        if found:
            steps = [metric.step for metric in self._client.get_metric_history(found[0], UPDATES)]
            last = max(steps, default=-1)
        if last > last_images:  # a metric cannot be taken back, a run can be made again
            self._client.delete_run(found.pop(0))
            last = -1
        if found:
            self._run_id = found[0]
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create(experiment)
        self._log_params()
        values = {**self._info.config, "environment": dict(self._info.environment)}
        text = yaml.safe_dump(values, sort_keys=False)
        self._client.log_text(self._run_id, text, "config.yaml")
        return last

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            time_ms = round(1000 * point.unix_time_s)
            metrics = [
                Metric(name, value, time_ms, point.images) for name, value in point.values.items()
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def log_checkpoint(self, path: Path, alias: str) -> None:
        self._client.log_artifact(self._run_id, str(path), f"checkpoints/{alias}")

    def close(self) -> None:
        if self._run_id:
            self._client.set_terminated(self._run_id)

    def log_files(self, table: PictureTable) -> str:
        """Give a table's files to the run, or to a new one of its id if there is none."""
        experiment = self._experiment()
        known = self._found(experiment)
        run = known[0] if known else self._create(experiment)
        for path in table.files:
            self._client.log_artifact(run, str(path), table.name)
        if not known:
            self._client.set_terminated(run)
        return f"MLflow's run {run}, artifacts/{table.name}"

    def _found(self, experiment: str) -> list[str]:
        with_id = f"tags.`{_ID}` = '{self._info.run_id}'"
        return [run.info.run_id for run in self._client.search_runs([experiment], with_id)]

    def _experiment(self) -> str:
        name = self._info.tracking.project
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=self._artifacts))

    def _create(self, experiment: str) -> str:
        tags: dict[str, Any] = {_ID: self._info.run_id}
        tags |= dict.fromkeys(self._info.tracking.tags, "")
        tags["mlflow.user"] = os.environ.get("USER", "")
        run = self._client.create_run(experiment, tags=tags, run_name=run_name(self._info))
        return str(run.info.run_id)

    def _log_params(self) -> None:
        """Log those that the run lacks: it cannot change one, and may have been killed before."""
        there = self._client.get_run(self._run_id).data.params
        params = [
            Param(key, str(value)[:_MAX_CHARACTERS])
            for key, value in flat_config(self._info).items()
            if key not in there
        ]
        for first in range(0, len(params), _MAX_BATCH):
            self._client.log_batch(self._run_id, params=params[first : first + _MAX_BATCH])


def log_table(run: RunInfo, table: PictureTable) -> str:
    """Log a table as artifacts of the run; its own tables would need pandas."""
    return MlflowRun(run).log_files(table)


def _database(path: Path) -> str:
    """The address of a database, which is made where there is none.

    MLflow makes it in seconds, by all migrations of its history; one that was killed meanwhile is
    not finished by the next program. Here it takes its name when it is whole.
    """
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{partial}", f"sqlite:///{partial}").search_experiments()
        with suppress(FileExistsError):  # another run was faster
            os.link(partial, path)
        partial.unlink()
    return f"sqlite:///{path}"

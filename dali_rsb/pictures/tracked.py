"""Gives tables with pictures to the tracking services of a run that has ended or still goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dali_rsb.config import load_config
from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.checkpointer import newest_intact
from dali_rsb.run.records import PictureTable, RunInfo
from dali_rsb.run.trackers.services import SERVICES, check_installed
from dali_rsb.system.names import printable
from dali_rsb.training.assembly import tracking_options


def tracked_run(folder: Path, overrides: Sequence[str]) -> RunInfo:
    """A run as its tracking services know it.

    Args:
        folder: of the run.
        overrides: `tracking.KEY=value` replace what its configuration says; others do not count.

    Raises:
        UserError: it is no run, or reports to no service that takes tables and is installed.
    """
    name = printable(folder, 100)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--run {name} is no run folder: give one with a config.yaml, as runs/a3")
    own = [word for word in overrides if word.startswith("tracking.")]
    config = load_config(folder / "config.yaml", own)
    options = tracking_options(config.tracking)
    takers = [service for service in options.services if SERVICES[service].takes_tables]
    if not takers:
        known = ", ".join(service for service, kind in SERVICES.items() if kind.takes_tables)
        raise UserError(
            f"--run {name}: no tracking service of the run takes tables; give one of {known}, as "
            "tracking.trackers=tensorboard"
        )
    check_installed(takers)
    newest = newest_intact(folder)
    state = {} if newest is None else load_checkpoint(newest)
    return RunInfo(
        folder=folder.absolute(),
        config=config.model_dump(mode="json"),
        updates_per_epoch=state.get("updates_per_epoch", 1),
        updates_done=state.get("updates_done", 0),
        run_id=str(state.get("run_id", "")) or folder.absolute().name,
        tracking=options,
    )


def send(run: RunInfo, table: PictureTable) -> Iterator[str]:
    """Give a table to each service of the run that takes tables; yields where it is, a line each.

    Raises:
        UserError: a service fails; the table's files stay.
    """
    for service in run.tracking.services:
        kind = SERVICES[service]
        if not kind.takes_tables:
            continue
        try:
            yield f"{service}: {kind.log_table(run, table)}"
        except Exception as error:  # whatever a service raises
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(
                f"{service} does not take the table ({reason}); it is in {table.files[0]}"
            ) from error

"""Carries a run out for a command: joins the processes, finds or makes the folder, trains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from dali_rsb import config as cfg
from dali_rsb.run.console import console_messages
from dali_rsb.run.folder import RunFolders
from dali_rsb.run.log import early_messages
from dali_rsb.run.processes import Processes, processes
from dali_rsb.run.signals import Stopped, stop_requests
from dali_rsb.training.trainer import Trainer


def carry_out(
    config: cfg.Config,
    resume: str | None,
    build: Callable[[cfg.Config, Processes, Path | None], Trainer],
) -> None:
    """Train to the end, or until a signal asks to stop; then the process ends with its code.

    Args:
        config: of the run; its name, folder, device and timeout count here.
        resume: what --resume was given, or None.
        build: builds the run from the configuration, this process, and the checkpoint to go on
            from or None.

    Raises:
        UserError: see `build_trainer` and `Trainer.run`.
    """
    folders = RunFolders(config.name, config.run.dir)
    try:
        with (
            # Before the first update there is nothing to save.
            stop_requests(at_once=True) as request,
            processes(config.run.device, config.run.timeout) as this_process,
            console_messages(this_process.is_first),
            early_messages(),
        ):
            # Rank 0 alone looks: nodes may see a shared folder at different times.
            found = folders.find_resume(resume) if this_process.is_first else None
            checkpoint = this_process.from_first(found)
            trainer = build(config, this_process, checkpoint)
            folder = None
            if this_process.is_first:
                folder = folders.open(checkpoint, trainer.config)
            if request.signal is not None:  # and what it raised got lost, as in a destructor
                raise Stopped(request.signal)
            trainer.run(folder)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)

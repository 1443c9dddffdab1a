"""The command `python -m dali_rsb.train CONFIG [section.key=value ...] [--resume [PATH|auto]]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dali_rsb.config import load_config
from dali_rsb.errors import run_command
from dali_rsb.run.console import console_messages
from dali_rsb.run.folder import RunFolders
from dali_rsb.run.processes import processes
from dali_rsb.run.signals import Stopped
from dali_rsb.training.assembly import build_trainer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dali_rsb.train", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/a3.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="PATH",
        help="go on from a checkpoint or run folder; without PATH from this config's newest run; "
        "'auto': go on if there is something to go on from, else start",
    )
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    folders = RunFolders(config.name, config.run.dir)
    with (
        processes(config.run.device) as this_process,
        console_messages(this_process.is_first),
    ):
        resume = this_process.from_first(folders.find_resume(arguments.resume))
        trainer = build_trainer(config, this_process, resume)
        resolved = config.model_dump(mode="json")
        folder = folders.open(resume, resolved) if this_process.is_first else None
        try:
            trainer.run(folder)
        except Stopped as stopped:
            sys.exit(stopped.exit_code)


if __name__ == "__main__":
    run_command(main)

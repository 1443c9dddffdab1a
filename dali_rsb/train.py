"""The command `python -m dali_rsb.train CONFIG [section.key=value ...] [--resume [PATH|auto]]`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import yaml

from dali_rsb.config import Config, load_config
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import processes
from dali_rsb.run.signals import Stopped
from dali_rsb.training.trainer import Trainer

RUNS = Path("runs")


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
    with (
        processes(config.run.device) as this_process,
        console_messages(this_process.is_first),
    ):
        resume = this_process.from_first(find_resume(config, arguments.resume))
        trainer = Trainer(config, this_process, resume)
        folder = _open_run_folder(config, resume) if this_process.is_first else None
        try:
            trainer.run(folder)
        except Stopped as stopped:
            sys.exit(stopped.exit_code)


def find_resume(config: Config, resume: str | None) -> Path | None:
    """The checkpoint that `--resume` means, or None to start anew.

    Raises:
        UserError: there is none where one is asked for.
    """
    if resume is None:
        return None
    if resume not in ("last", "auto"):
        path = Path(resume)
        path = path / "last.pt" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no checkpoint at {path}; give a run folder or a .pt file to --resume")
        return path
    folders = [config.run.dir] if config.run.dir else reversed(_numbered_folders(config.name))
    for folder in folders:
        if (folder / "last.pt").is_file():
            return folder / "last.pt"
    if resume == "auto":
        return None
    where = config.run.dir or RUNS / config.name
    raise UserError(f"no checkpoint to resume in {where}; start without --resume")


def _numbered_folders(name: str) -> list[Path]:
    """The run folders runs/NAME, runs/NAME-2, ... that exist, oldest first."""
    folders = []
    number = 1
    while (folder := _numbered(name, number)).exists():
        folders.append(folder)
        number += 1
    return folders


def _numbered(name: str, number: int) -> Path:
    return RUNS / (name if number == 1 else f"{name}-{number}")


def _open_run_folder(config: Config, resume: Path | None) -> Path:
    """Make (or find again) the run folder and write the resolved configuration into it."""
    if config.run.dir is not None:
        folder = config.run.dir
        if resume is None and (folder / "last.pt").exists():
            raise UserError(f"run.dir={folder} already holds a run; add --resume or change run.dir")
    elif resume is not None:
        folder = resume.parent
    else:
        folder = _numbered(config.name, len(_numbered_folders(config.name)) + 1)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(resolved, encoding="utf-8")
    # Not __name__: run as a command, this module is __main__, outside of the package.
    logging.getLogger("dali_rsb.train").info("run folder %s", folder)
    return folder


if __name__ == "__main__":
    run_command(main)

"""The command `dali-rsb train CONFIG [section.key=value ...] [--resume [PATH]]`: train a model.

CONFIG is a recipe such as a3, a YAML file, or a run folder.
"""

from __future__ import annotations

import sys

from dali_rsb.config.arguments import ConfigParser
from dali_rsb.errors import run_command
from dali_rsb.run.console import console_messages
from dali_rsb.run.folder import RunFolders
from dali_rsb.run.processes import processes
from dali_rsb.run.signals import Stopped, stop_requests
from dali_rsb.training.assembly import build_trainer
from dali_rsb.training.plan import describe_plan


def main() -> None:
    parser = ConfigParser("train", __doc__)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="PATH",
        help="go on from a checkpoint or run folder; without PATH from this config's newest run; "
        "'auto': go on if there is something to go on from, else start",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print batches, memory and hours, and end; needs no GPU and trains nothing",
    )
    parser.add_argument(
        "--world-size", type=int, default=1, metavar="N", help="--dry-run: of so many processes"
    )
    parser.add_argument(
        "--img-per-s", type=float, metavar="RATE", help="--dry-run: a device's speed, if measured"
    )
    config, arguments = parser.read()
    if arguments.dry_run:
        print(describe_plan(config, arguments.world_size, arguments.img_per_s))
        return
    folders = RunFolders(config.name, config.run.dir)
    try:
        with (
            # Before the first update there is nothing to save.
            stop_requests(at_once=True),
            processes(config.run.device, config.run.timeout) as this_process,
            console_messages(this_process.is_first),
        ):
            # Rank 0 alone looks: nodes may see a shared folder at different times.
            found = folders.find_resume(arguments.resume) if this_process.is_first else None
            resume = this_process.from_first(found)
            trainer = build_trainer(config, this_process, resume)
            resolved = config.model_dump(mode="json")
            folder = folders.open(resume, resolved) if this_process.is_first else None
            trainer.run(folder)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    run_command(main)

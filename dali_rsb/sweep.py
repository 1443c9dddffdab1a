"""The command `dali-rsb sweep CONFIG --seeds 0-9 [--vary section.key=A,B] [section.key=value ...]`.

Trains one run for each seed, and for each value of the varied key, one after the other, in folders
below one sweep folder. Called again, it goes on where it stopped: what is finished is not trained
again. Then it reports mean, deviation and extremes, and for --vary the difference of runs of one
seed, which share every draw that the key does not touch, with its 95 % interval. The first value is
the baseline.

In a Slurm job array each task trains its share; --member N trains the N-th run alone.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dali_rsb.config import load_config
from dali_rsb.config.arguments import ConfigParser
from dali_rsb.config.options import add_output
from dali_rsb.config.recipes import find_config
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.console import console_messages
from dali_rsb.run.environment import machine
from dali_rsb.run.signals import Stopped
from dali_rsb.sweeps.members import (
    Member,
    Variation,
    job_of_array,
    parse_seeds,
    parse_variation,
    plan,
    share,
)
from dali_rsb.sweeps.report import METRICS, as_tree, collect, plot, table
from dali_rsb.sweeps.running import carry_out, check_same_sweep, write_json

logger = logging.getLogger(__name__)


def main() -> None:
    parser = ConfigParser("sweep", __doc__)
    parser.add_argument("--seeds", required=True, metavar="SEEDS", help="as 0-9 or 0,3,5-7")
    parser.add_argument("--vary", metavar="KEY=A,B", help="a key and the values to compare")
    add_output(parser, "FOLDER", "of the runs; default: runs/NAME-sweep")
    parser.add_argument(
        "--metric",
        choices=METRICS,
        metavar="NAME",
        help=f"{', '.join(METRICS)}; default: ema_top1, else val_top1",
    )
    parser.add_argument("--member", type=int, metavar="N", help="train this run alone, from 0")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="of each run, one a GPU; default: 1"
    )
    config, options = parser.read()
    seeds = parse_seeds(options.seeds)
    variation = None if options.vary is None else parse_variation(options.vary)
    _check(options.config, options.overrides, variation, options.processes)
    folder = (options.output or Path("runs") / f"{config.name}-sweep").absolute()
    members = plan(folder, seeds, variation)
    ours = _ours(members, options.member)
    with console_messages():
        plain = config.model_dump(mode="json")
        check_same_sweep(folder, plain, variation.key if variation else None)
        try:
            failed = carry_out(ours, options.config, options.overrides, options.processes)
        except Stopped as stopped:
            logger.info("stopped; the same command goes on from here")
            sys.exit(stopped.exit_code)
        _report(folder, members, options.metric)
    if failed:
        sys.exit(1)


def _check(
    name: str, overrides: Sequence[str], variation: Variation | None, processes: int
) -> None:
    """Find mistakes before the first of many hours.

    Raises:
        UserError: a value of the varied key is wrong, or the sweep sets a key itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("start the sweep without torchrun; --processes N starts its runs by it")
    if processes < 1:
        raise UserError(f"--processes {processes}: give a number of at least 1")
    for key, instead in (("run.seed", "--seeds"), ("run.dir", "--output")):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise UserError(f"{key}: the sweep sets it for each run; give {instead} instead")
    for value in variation.values if variation else ():
        assert variation is not None
        load_config(find_config(name), [*overrides, f"{variation.key}={value}"])


def _ours(members: Sequence[Member], number: int | None) -> list[Member]:
    """The members that this process trains."""
    if number is not None:
        if not 0 <= number < len(members):
            raise UserError(f"--member {number}: the sweep has runs 0 to {len(members) - 1}")
        return [members[number]]
    job = job_of_array(os.environ)
    return list(members) if job is None else share(members, *job)


def _report(folder: Path, members: Sequence[Member], metric: str | None) -> None:
    """Print the table, and write sweep.json and sweep.svg, of all that is finished."""
    metric, results = collect(members, metric)
    num_finished = sum(map(len, results.values()))
    if num_finished < len(members):
        print(f"{num_finished} of {len(members)} runs are finished")
    if not num_finished:
        return
    print(table(metric, results))
    command = shlex.join(["dali-rsb", "sweep", *sys.argv[1:]])
    tree: Mapping[str, Any] = {"command": command, **as_tree(metric, results), "machine": machine()}
    write_json(folder / "sweep.json", tree)
    try:
        plot(folder / "sweep.svg", metric, results)
    except ImportError:
        print("no plot, as matplotlib is not installed: pip install matplotlib")
    print(f"written to {folder}")


if __name__ == "__main__":
    run_command(main)

"""What the benchmarks of the loader alone are told: images, batch, RandAugment, threads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.peers import LoaderTask
from dali_rsb.system.cpus import available_cpus


def add_task_options(
    parser: argparse.ArgumentParser,
    data: str = "folder of class folders",
    randaugment: str = "rand-m6-mstd0.5-inc1",
    threads: str = "and CPUs",
) -> None:
    """Give a benchmark the options of `task_of`, and --output.

    Args:
        data, threads: what these are, for `--help`.
        randaugment: the policy that is measured unless another is named.
    """
    parser.add_argument("data", type=Path, help=data)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--randaugment", default=randaugment, help="a policy, or none")
    parser.add_argument("--threads", type=int, default=available_cpus(), help=threads)
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def task_of(options: argparse.Namespace, device: str = "cpu") -> LoaderTask:
    """What all candidates are given."""
    policy = None if options.randaugment == "none" else options.randaugment
    data = options.data.absolute()
    return LoaderTask(data, options.batch, options.size, policy, options.threads, device)


def task_settings(task: LoaderTask) -> dict[str, Any]:
    """What a result file says of a task."""
    return {
        "batch": task.batch,
        "size_px": task.size_px,
        "randaugment": task.randaugment,
        "threads": task.num_threads,
    }

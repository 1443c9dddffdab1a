"""What decoding costs: the crop window against the whole image, by stage and by number of threads.

    python -m benchmarks.decode FOLDER [--device cpu|cuda] [--threads 1 2 ...] [--output FILE]

For each number of threads (and as many CPUs) images/s and CPU ms per image of our graph cut off
after each stage: read, decode (window, whole image, or one decode for three copies of repeated
augmentation), resize, RandAugment. On a GPU also the share of images that its JPEG engine decodes:
the engine decodes whole images, so window and engine compete.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from benchmarks.loader import (
    REPEATS_OF_RSB,
    Group,
    RatePair,
    group_tables,
    measure_group,
    our_loader,
    our_stage,
    read_dataset,
)
from benchmarks.peers import LoaderTask
from benchmarks.report import Work, new_report, report_progress, write_json
from dali_rsb.errors import UserError, run_command
from dali_rsb.loader.settings import DecodeSetting
from dali_rsb.system.cpus import available_cpus

HW_LOADS = (0.0, 0.3, 0.65, 1.0)


def stages_group(task: LoaderTask) -> Group:
    """Our graph cut off after each stage, and whole with either way of decoding."""
    shared = f"decode shared x{REPEATS_OF_RSB}"
    plain = replace(task, randaugment=None)
    return Group(
        {
            "read": partial(our_stage, task, "read"),
            "decode roi": partial(our_stage, task, "decode", "host"),
            "decode full": partial(our_stage, task, "decode", "full"),
            shared: partial(our_stage, task, "decode", "host", REPEATS_OF_RSB),
            "resize roi": partial(our_loader, plain, "host"),
            "resize full": partial(our_loader, plain, "full"),
            "RandAugment roi": partial(our_loader, task, "host"),
            "RandAugment full": partial(our_loader, task, "full"),
        },
        tuple(
            RatePair(f"{stage} roi", f"{stage} full")
            for stage in ("decode", "resize", "RandAugment")
        ),
        increments=(
            ("decode roi", "read"),
            ("decode full", "read"),
            (shared, "read"),
            ("resize roi", "decode roi"),
            ("resize full", "decode full"),
            ("RandAugment roi", "resize roi"),
            ("RandAugment full", "resize full"),
        ),
    )


def hardware_group(task: LoaderTask, loads: Iterable[float]) -> Group:
    """Every way to decode with each share for the JPEG engine: alone, and in the whole graph.

    Each has a process of its own, as everywhere: a decoder that crashes is a line in the table.
    """
    modes: tuple[DecodeSetting, ...] = get_args(DecodeSetting)
    candidates = {}
    for load in loads:
        with_load = replace(task, hw_decoder_load=load)
        for mode in modes:
            stage = partial(our_stage, with_load, "decode", mode)
            candidates[f"decode {mode}, load {load:g}"] = stage
            candidates[f"RandAugment {mode}, load {load:g}"] = partial(our_loader, with_load, mode)
    return Group(candidates)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of class folders")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--randaugment", default="rand-m6-mstd0.5-inc1", metavar="POLICY")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1, half and all CPUs")
    parser.add_argument("--hw-loads", type=float, nargs="+", default=list(HW_LOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a timed section, at least")
    parser.add_argument("--batches", type=int, default=4, help="of a timed section, at least")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU here; use --device cpu")
    num_cpus = available_cpus()
    thread_counts = options.threads or sorted({1, max(1, num_cpus // 2), num_cpus})
    if not all(1 <= threads <= num_cpus for threads in thread_counts):
        raise UserError(f"--threads: give numbers from 1 to {num_cpus}, the CPUs there are")
    task = LoaderTask(
        options.folder.absolute(),
        options.batch,
        options.size,
        options.randaugment,
        num_cpus,
        options.device,
    )
    groups = {
        f"{threads} threads": stages_group(replace(task, num_threads=threads))
        for threads in thread_counts
    }
    if options.device == "cuda":
        groups["hardware decoder"] = hardware_group(task, options.hw_loads)
    report = new_report(
        "decode",
        {
            "batch": options.batch,
            "size_px": options.size,
            "randaugment": options.randaugment,
            "threads": thread_counts,
            "device": options.device,
            "rounds": options.rounds,
            "seconds": options.seconds,
        },
    )
    report["dataset"] = read_dataset(task.data)
    report["groups"] = {}
    for name, group in groups.items():
        threads = int(name.split()[0]) if name.endswith("threads") else num_cpus
        work = Work(options.seconds, options.batches, num_warmup_batches=4)
        report["groups"][name] = measure_group(
            group, work, options.rounds, threads, report_progress
        )
        print(f"\n{name}\n\n{group_tables(report['groups'][name])}\n", flush=True)
        if options.output is not None:  # after each group: a run takes minutes
            write_json(options.output, report)
        if report["groups"][name]["rounds"] < options.rounds:
            break  # time was up


if __name__ == "__main__":
    run_command(main)

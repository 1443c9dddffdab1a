"""What the CPU loader does on more cores than there are: measured on one and two, then estimated.

    python -m benchmarks.scaling DATA [--output FILE]

Measures images/s and CPU time on one core and on all, and the costs of each step on one thread (see
`loader_profile`), then lets `loader_model` say what 8 to 64 cores would do: with how many pipelines
and processes, and at which rate Python's lock is the limit. How far the model is from the measured
rates is printed; everything for more cores than were measured is an estimate.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from benchmarks.loader import endless_specs, our_loader, our_samples, read_dataset
from benchmarks.loader_model import Costs, modelled_rate
from benchmarks.loader_options import add_task_options, task_of, task_settings
from benchmarks.loader_profile import profiled_samples, run_stages
from benchmarks.peers import LoaderTask
from benchmarks.profile_stages import image_stages
from benchmarks.report import (
    BatchCounts,
    Work,
    format_table,
    measure,
    new_report,
    report_progress,
    sections_as_json,
    write_json,
)
from dali_rsb.draws.samples import TrainSamples
from dali_rsb.errors import run_command
from dali_rsb.loader.cpu_resize import CpuResize
from pipelines.types import INTERPOLATIONS

ESTIMATED_CORES = (8, 16, 32, 64)
PIPELINES, PROCESSES = (2, 4, 8), (1, 2, 4)
# Rates near the best of a number of cores are as good: fewer processes are simpler.
NEAR_BEST = 0.97


def on_cores(task: LoaderTask, cores: int) -> BatchCounts:
    """Our loader with as many threads as cores, and bound to these."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    yield from our_loader(replace(task, num_threads=cores))


def locked_us(num_threads: int, num_batches: int = 16, batch: int = 256) -> float:
    """Microseconds of Python in the resize of an image, with so many threads at it at once.

    Windows and results have one pixel: there is nothing to compute, and what is left is Python and
    PyTorch's way to its kernel.
    """
    resize = CpuResize(1, 1)
    images = [np.zeros((1, 1, 3), np.uint8)] * batch
    window = [np.zeros(2, np.float32)] * batch, [np.ones(2, np.float32)] * batch
    codes = [np.array(INTERPOLATIONS["bilinear"], np.int32)] * batch

    def work() -> None:
        for _ in range(num_batches):
            resize(images, *window, codes)

    work()
    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    start_s = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1e6 * (time.process_time() - start_s) / (num_threads * num_batches * batch)


def feeding_us(task: LoaderTask, num_batches: int = 12) -> float:
    """CPU microseconds of an image on the thread that feeds and takes, in the running loader.

    Without RandAugment, whose kernels that thread starts: they do without Python's lock, and are a
    cost of their own.
    """
    batches = our_loader(replace(task, num_threads=1, randaugment=None))
    # All images once, as first uses are another thing: see `BadImages.admit`.
    taken, images = [], 0
    for number in range(10**6):
        start_s = time.thread_time()
        delivered = next(batches)
        assert isinstance(delivered, int)
        taken.append(1e6 * (time.thread_time() - start_s) / delivered)
        images += delivered
        if number >= num_batches and images >= 2 * _num_images(task):
            break
    return statistics.median(taken[-num_batches:])


def _num_images(task: LoaderTask) -> int:
    return len(our_samples(replace(task, randaugment=None), "roi", 1).index)


def decoding_spread(samples: TrainSamples, num_images: int = 256) -> tuple[float, ...]:
    """Factors of single images' decoding times, with a mean of 1."""
    alone = replace(samples, layout=replace(samples.layout, batch_per_device=1, global_batch=1))
    stage = image_stages(alone, 1)["header check"]
    pipeline, specs = stage.build(), endless_specs(alone)
    taken = []
    for _ in range(num_images + 8):
        fed = stage.fed(alone.prepare(next(specs)).inputs)
        start_s = time.process_time()
        pipeline.run(**fed)
        taken.append(time.process_time() - start_s)
    times = np.array(taken[8:])
    return tuple((times / times.mean()).round(3).tolist())


def measured_costs(
    task: LoaderTask, num_rounds: int, progress: Callable[[str], None] = report_progress
) -> Costs:
    """The costs of an image on this machine."""
    samples = profiled_samples(task)
    stages, kernels, *_ = run_stages(samples, 1, num_rounds, progress)
    until = {name: statistics.median(cost.us for cost in costs) for name, costs in stages.items()}
    executor, handed, resized = (
        until["iteration, feeding"],
        until["resize: hand-over"],
        until["resize"],
    )
    decided = until.get("RandAugment: decisions", resized)
    augmented = until.get("RandAugment: operations", decided) - decided
    if kernels:
        augmented = statistics.median(cost.us for cost in kernels)
    alone, contended = locked_us(1), locked_us(2)
    return Costs(
        feeding=feeding_us(task),
        executor=executor + max(0.0, decided - resized),
        decoding=until["header check"] - executor,
        handing_over=max(0.0, handed - until["header check"]),
        resize_locked=alone,
        contention=max(0.0, contended - alone),
        resizing=max(0.0, resized - handed - alone),
        augmenting=augmented,
        spread=decoding_spread(samples),
    )


def estimates(costs: Costs, cores: int, batch: int) -> dict[str, Any]:
    """What so many cores would do, for some numbers of pipelines and processes."""
    rates = {
        (processes, pipelines): modelled_rate(costs, cores, processes, pipelines, batch)
        for processes in PROCESSES
        for pipelines in PIPELINES
        if processes * pipelines <= cores
    }
    best = max(rates.values())
    processes, pipelines = min(key for key, rate in rates.items() if rate >= NEAR_BEST * best)
    return {
        "img_per_s": {f"{a} x {b}": round(rate) for (a, b), rate in rates.items()},
        "default": round(rates[1, 2]),
        "one_process": round(max(rate for (a, _), rate in rates.items() if a == 1)),
        "best": round(rates[processes, pipelines]),
        "processes": processes,
        "pipelines": pipelines,
        "without_waiting": round(1e6 * cores / costs.total),
    }


def scale(
    task: LoaderTask,
    num_rounds: int,
    work: Work,
    profile_rounds: int,
    estimated: Sequence[int] = ESTIMATED_CORES,
) -> dict[str, Any]:
    """All that the result file holds of the scaling."""
    few = sorted({1, task.num_threads})
    candidates = {_named(n): functools.partial(on_cores, task, n) for n in few}
    measured = measure(candidates, work, num_rounds, task.num_threads, report_progress)
    costs = measured_costs(task, profile_rounds)
    validation = {}
    found = sections_as_json(measured.sections)
    for n in few:
        modelled = modelled_rate(costs, n, batch=task.batch)
        rate = found[_named(n)]["img_per_s"]["median"]
        validation[_named(n)] = {
            "measured": rate,
            "modelled": round(modelled),
            "error_percent": round(100 * (modelled / rate - 1), 1),
        }
    return {
        "measured": found,
        "costs_us": {k: round(v, 2) for k, v in asdict(costs).items() if k != "spread"},
        "decoding_spread": {
            "deviation": round(statistics.pstdev(costs.spread), 3),
            "largest": max(costs.spread),
        },
        "total_us": round(costs.total, 1),
        "locked_us": round(costs.locked, 1),
        "lock_limit_img_per_s": round(1e6 / costs.locked),
        "validation": validation,
        "estimates": {f"{n} cores": estimates(costs, n, task.batch) for n in estimated},
    }


def _named(cores: int) -> str:
    return f"{cores} core{'s' * (cores > 1)}"


def scaling_tables(result: Mapping[str, Any]) -> str:
    """What was measured and how far the model is from it, and the estimates, in Markdown."""
    rows = []
    for name, check in result["validation"].items():
        cpu = result["measured"][name]["cpu_ms_per_img"]["median"]
        row = [name, f"{check['measured']:.0f}", f"{cpu:.2f}", f"{check['modelled']:.0f}"]
        rows.append([*row, f"{check['error_percent']:+.1f} %"])
    header = ["measured", "img/s", "CPU ms/img", "of the model", "its error"]
    tables = [format_table(header, rows)]
    rows = [
        [
            name,
            f"{found['default']}",
            f"{found['one_process']}",
            f"{found['best']}",
            f"{found['processes']} x {found['pipelines']}",
            f"{100 * found['best'] / found['without_waiting']:.0f} %",
        ]
        for name, found in result["estimates"].items()
    ]
    header = ["estimated, img/s", "as it is", "one process", "best", "processes x pipelines"]
    tables.append(format_table([*header, "of all cores' time"], rows))
    tables.append(
        f"One process does at most {result['lock_limit_img_per_s']} img/s: an image keeps Python's "
        f"lock {result['locked_us']:.0f} of its {result['total_us']:.0f} microseconds."
    )
    return "\n\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_task_options(parser, "folder of class folders, or a pack", threads="most cores measured")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the loader")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a timed section, at least")
    parser.add_argument("--profile-rounds", type=int, default=8, help="batches for each step")
    options = parser.parse_args(arguments)
    task = task_of(options)
    torch.set_num_threads(1)  # as in the loader's processes: the threads are the pipelines'
    work = Work(options.seconds, 4, 2 * options.threads, round_to=options.threads)
    report = new_report(
        "scaling",
        {
            **task_settings(task),
            "rounds": options.repeats,
            "seconds": options.seconds,
            "profile_rounds": options.profile_rounds,
        },
    )
    report["dataset"] = read_dataset(task.data)
    report |= scale(task, options.repeats, work, options.profile_rounds)
    print(f"\n{scaling_tables(report)}\n")
    if options.output is not None:
        write_json(options.output, report)


if __name__ == "__main__":
    run_command(main)

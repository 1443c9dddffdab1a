"""Where the CPU time of an image goes in the training loader of a CPU, step by step.

    python -m benchmarks.loader_profile DATA [--rounds 15] [--output FILE]

DATA is a folder of class folders or a pack. The training pipeline is built again and again, cut off
after each step of an image (`profile_stages`); all of these take the same batches by turns, and a
step costs what its stage takes beyond the one before it. A round is a batch; what is reported is
the median of the rounds' differences with the smallest and largest. Python's part is the CPU time
of the thread that feeds the pipelines. The loader itself then runs as in training, on one thread
and on all: what it takes beyond the sum of the steps is what they do to each other.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline

from benchmarks.loader import endless_specs, our_loader, our_samples, read_dataset
from benchmarks.loader_options import add_task_options, task_of, task_settings
from benchmarks.peers import LoaderTask
from benchmarks.profile_stages import (
    BranchStages,
    Inputs,
    KernelBranches,
    branch_stages,
    image_stages,
    kernel_branches,
)
from benchmarks.profile_threads import cpu_by_library, cpu_by_thread
from benchmarks.report import (
    Work,
    format_table,
    measure,
    new_report,
    report_progress,
    sections_as_json,
    summarize,
    write_json,
)
from dali_rsb.draws.philox import Stream, uniforms
from dali_rsb.draws.samples import BatchSpec, RandAugmentBy, TrainSamples
from dali_rsb.errors import run_command
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.rand_augment import apply_operands, with_backend
from pipelines.operands import Branch
from pipelines.types import IMAGENET_FILL

WARM_UP_BATCHES = 2
DRAWN_BATCHES = 20  # that say how often each branch of RandAugment is taken
LOADER_ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """CPU microseconds of an image, and how many of them in the kernel."""

    us: float
    kernel_us: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.us - other.us, self.kernel_us - other.kernel_us)


Costs = dict[str, list[Cost]]  # one a round


def profiled_samples(task: LoaderTask) -> TrainSamples:
    """The images of a task, with RandAugment by those who compute it on a CPU."""
    samples = our_samples(task, "roi", repeats=1)
    transform = with_backend(samples.transform, "auto", torch.device("cpu"))
    return replace(samples, transform=transform)


def cost_of(run: Callable[[], object], num_images: int) -> Cost:
    """CPU time that all threads of this process take until `run` returns, for an image."""
    kernel_s = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    start_s = time.process_time()
    run()
    us = 1e6 * (time.process_time() - start_s) / num_images
    kernel_s = resource.getrusage(resource.RUSAGE_SELF).ru_stime - kernel_s
    return Cost(us, 1e6 * kernel_s / num_images)


def run_stages(
    samples: TrainSamples, num_threads: int, num_rounds: int, progress: Callable[[str], None]
) -> tuple[Costs, list[Cost], Costs, Costs]:
    """Run all stages by turns, batch after batch.

    Returns:
        CPU time of each stage, of RandAugment by kernels if they compute it, and of its branches on
        the same decoded images: by who computes them, and by DALI.
    """
    specs, batch = endless_specs(samples), samples.layout.batch_per_device
    stages = image_stages(samples, num_threads)
    pipelines = {name: stage.build() for name, stage in stages.items()}
    of_stages: Costs = {name: [] for name in stages}
    of_kernels: list[Cost] = []
    of_branches: Costs = {}
    of_dali: Costs = {}
    branches, kernels = _branches(samples, num_threads)
    gc.disable()  # a collection would be counted for whichever stage is running
    for number in range(-WARM_UP_BATCHES, num_rounds):
        prepared = samples.prepare(next(specs))
        inputs = prepared.inputs
        for name in list(stages)[:: 1 if number % 2 else -1]:
            run = functools.partial(pipelines[name].run, **stages[name].fed(inputs))
            of_stages[name].append(cost_of(run, batch))
        if branches is not None:
            images = _resized(pipelines["resize"], stages["resize"].fed(inputs))
            for name, cost in _branch_round(branches, images, number).items():
                of_dali.setdefault(name, []).append(cost)
            for name, cost in _kernel_round(kernels, images, number).items():
                of_branches.setdefault(name, []).append(cost)
            if prepared.randaugment is not None:
                whole = torch.from_numpy(np.stack(images))
                drawn = (whole, prepared.randaugment, IMAGENET_FILL)
                of_kernels.append(cost_of(functools.partial(apply_operands, *drawn, True), batch))
        progress(f"round {number + 1}/{num_rounds}" if number >= 0 else "warm-up")
    gc.enable()
    for costs in (*of_stages.values(), of_kernels, *of_branches.values(), *of_dali.values()):
        del costs[:WARM_UP_BATCHES]
    return of_stages, of_kernels, of_branches if of_kernels else of_dali, of_dali


def _branches(
    samples: TrainSamples, num_threads: int
) -> tuple[BranchStages | None, KernelBranches]:
    """RandAugment's branches by DALI and by kernels; None, and nothing, without RandAugment."""
    if samples.transform.randaugment is None:
        return None, KernelBranches({}, {})
    by_dali, by_kernels = (
        replace(samples, transform=replace(samples.transform, randaugment_by=by)) for by in _BOTH
    )
    specs = list(itertools.islice(endless_specs(samples), DRAWN_BATCHES))
    inputs = [by_dali.prepare(spec).inputs for spec in specs]
    operands = [by_kernels.prepare(spec).randaugment for spec in specs]
    drawn = [found for found in operands if found is not None]
    return branch_stages(by_dali, num_threads, inputs), kernel_branches(drawn)


_BOTH: tuple[RandAugmentBy, RandAugmentBy] = ("pipeline", "kernels")


def _resized(pipeline: Pipeline, fed: Inputs) -> list[np.ndarray]:
    (images,) = pipeline.run(**fed)
    return list(np.array(images.as_array()))


def _branch_round(branches: BranchStages, images: list[np.ndarray], number: int) -> dict[str, Cost]:
    taken = [Branch.SKIP, *branches.operands]
    return {
        branch.name: cost_of(
            functools.partial(branches.pipeline.run, **branches.fed(branch, images)), len(images)
        )
        for branch in taken[:: 1 if number % 2 else -1]
    }


def _kernel_round(
    branches: KernelBranches, images: list[np.ndarray], number: int
) -> dict[str, Cost]:
    found = {}
    for branch in [Branch.SKIP, *branches.operands][:: 1 if number % 2 else -1]:
        batch = torch.from_numpy(np.stack(images))
        run = functools.partial(branches.run, branch, batch)
        found[branch.name] = cost_of(run, len(images))
    return found


def python_costs(samples: TrainSamples, num_rounds: int) -> dict[str, list[float]]:
    """CPU microseconds of an image that the feeding thread spends in Python before it feeds.

    "draws": order, crops and RandAugment. "names or bytes": all else that `prepare` does, which is
    the names of files or the bytes of packed images, of tiles those of their windows. "checks": of
    images that are about to be used (see `BadImages.admit`), after their first use.
    """
    index, batch = samples.index, samples.layout.batch_per_device
    bad_images = BadImages(index, "raise")
    bad_images.admit(np.arange(len(index)))
    specs = endless_specs(samples)
    found: dict[str, list[float]] = {"draws": [], "names or bytes": [], "checks": []}

    def add(part: str, start_s: float, end_s: float) -> None:
        found[part].append(1e6 * (end_s - start_s) / batch)

    for _ in range(num_rounds):
        begin_s = time.thread_time()
        spec = next(specs)
        draw = functools.partial(_uniforms, samples.seed, spec)
        widths, heights = index.widths[spec.indices], index.heights[spec.indices]
        samples.transform.graph_inputs(draw, widths, heights)
        samples.transform.kernel_operands(draw)
        drawn_s = time.thread_time()
        samples.prepare(spec)
        prepared_s = time.thread_time()
        bad_images.admit(spec.indices)
        end_s = time.thread_time()
        add("draws", begin_s, drawn_s)
        add("names or bytes", drawn_s, prepared_s - (drawn_s - begin_s))
        add("checks", prepared_s, end_s)
    return found


def _uniforms(seed: int, spec: BatchSpec, stream: Stream, width: int) -> np.ndarray:
    return uniforms(seed, spec.epoch, stream, spec.positions, width)


def steps_table(profile: Mapping[str, Any]) -> str:
    """One row a step, in Markdown."""
    whole_us = profile["loader"]["1 thread"]["cpu_ms_per_img"]["median"] * 1e3
    rows = [
        [
            name,
            f"{step['us']['median']:.1f}",
            f"{step['us']['min']:.1f} to {step['us']['max']:.1f}",
            f"{100 * step['us']['median'] / whole_us:.1f} %",
            f"{step['kernel_us']:.1f}" if "kernel_us" in step else "",
        ]
        for name, step in profile["steps"].items()
    ]
    for name, us in profile["sums"].items():
        rows.append([name, f"{us:.1f}", "", f"{100 * us / whole_us:.1f} %", ""])
    header = ["CPU time of an image", "microseconds", "min to max", "share", "in the kernel"]
    return format_table(header, rows)


def branches_table(profile: Mapping[str, Any]) -> str:
    """One row for each branch of RandAugment, in Markdown."""
    rows = [
        [
            name,
            f"{branch['us']['median']:.1f}",
            f"{branch['dali_us']:.1f}",
            f"{branch['of_an_image']:.3f}",
            f"{branch['us_of_an_image']:.1f}",
        ]
        for name, branch in profile["branches"].items()
    ]
    header = ["branch", "microseconds", "in DALI", "times an image", "of an image"]
    return format_table(header, rows)


def _steps(
    stages: Costs, kernels: Sequence[Cost], python: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    steps: dict[str, Any] = {
        f"Python: {name}": {"us": asdict(summarize(values))} for name, values in python.items()
    }
    before: list[Cost] | None = None
    for name, costs in stages.items():
        added = costs if before is None else [a - b for a, b in zip(costs, before, strict=True)]
        steps[name] = {
            "us": asdict(summarize([cost.us for cost in added])),
            "kernel_us": round(statistics.median(cost.kernel_us for cost in added), 2),
        }
        before = costs
    if kernels:
        steps["RandAugment: kernels"] = {
            "us": asdict(summarize([cost.us for cost in kernels])),
            "kernel_us": round(statistics.median(cost.kernel_us for cost in kernels), 2),
        }
    return steps


def _of_branches(
    costs: Costs, of_dali: Costs, frequencies: Mapping[Branch, float]
) -> dict[str, Any]:
    """What each branch takes beyond an image that takes none."""
    found = {}
    for branch, frequency in frequencies.items():
        us, dali_us = (summarize(_beyond_skipped(all_, branch)) for all_ in (costs, of_dali))
        found[branch.name] = {
            "us": asdict(us),
            "dali_us": round(dali_us.median, 2),
            "of_an_image": round(frequency, 4),
            "us_of_an_image": round(us.median * frequency, 2),
        }
    return found


def _beyond_skipped(costs: Costs, branch: Branch) -> list[float]:
    pairs = zip(costs[branch.name], costs[Branch.SKIP.name], strict=True)
    return [cost.us - skipped.us for cost, skipped in pairs]


def profile_loader(
    task: LoaderTask,
    num_rounds: int,
    seconds: float,
    progress: Callable[[str], None] = report_progress,
) -> dict[str, Any]:
    """Measure all that the result file holds of the profile.

    Args:
        task: its threads are those of the whole loader; the stages have one.
        seconds: of each section of the loader, and of the looks at its threads and functions.
    """
    samples = profiled_samples(task)
    python = python_costs(samples, num_rounds)
    stages, kernels, branch_costs, of_dali = run_stages(samples, 1, num_rounds, progress)
    _, branches = _branches(samples, 1)
    loader = _loader_sections(task, seconds, progress)
    running = our_loader(task)
    for _ in range(2 * task.num_threads + 4):  # more than any queue holds
        next(running)
    result: dict[str, Any] = {
        "steps": _steps(stages, kernels, python),
        "branches": _of_branches(branch_costs, of_dali, branches.frequencies),
        "loader": loader,
        "threads": cpu_by_thread(running, seconds),
        "perf": cpu_by_library(running, seconds),
    }
    result["sums"] = _sums(result, task.num_threads)
    return result


def _loader_sections(
    task: LoaderTask, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The loader as in training, on one thread and on all."""
    threads = sorted({1, task.num_threads})
    candidates = {
        f"{n} thread{'s' * (n > 1)}": functools.partial(our_loader, replace(task, num_threads=n))
        for n in threads
    }
    work = Work(seconds, 4, 2 * task.num_threads, round_to=task.num_threads)
    measured = measure(candidates, work, LOADER_ROUNDS, task.num_threads, progress)
    return sections_as_json(measured.sections)


def _sums(result: Mapping[str, Any], num_threads: int) -> dict[str, float]:
    """What the steps come to, and what the loader takes beyond, in microseconds of an image."""
    steps = sum(step["us"]["median"] for step in result["steps"].values())
    alone, *more = (
        1e3 * loader["cpu_ms_per_img"]["median"] for loader in result["loader"].values()
    )
    sums = {
        "all steps": steps,
        "queue, taking, the rest": alone - steps,
        "the loader on 1 thread": alone,
    }
    if more:
        (together,) = more
        (_, loader) = result["loader"].values()
        cores_us = 1e6 * num_threads / loader["img_per_s"]["median"]
        sums |= {
            f"more on {num_threads} threads": together - alone,
            f"the loader on {num_threads} threads": together,
            f"cores idle meanwhile, of {num_threads}": cores_us - together,
        }
    return {name: round(us, 1) for name, us in sums.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_task_options(parser, "folder of class folders, or a pack", threads="of the whole loader")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a section of the loader")
    options = parser.parse_args(arguments)
    task = task_of(options)
    report = new_report(
        "loader_profile",
        {
            **task_settings(task),
            "rounds": options.rounds,
            "seconds": options.seconds,
        },
    )
    report["dataset"] = read_dataset(task.data)
    report |= profile_loader(task, options.rounds, options.seconds)
    print(f"\n{steps_table(report)}\n\n{branches_table(report)}\n")
    print("by thread:", report["threads"])
    print("by library:", report["perf"].get("libraries", report["perf"]))
    if options.output is not None:
        write_json(options.output, report)


if __name__ == "__main__":
    run_command(main)

"""Times device kernels against their contenders, and against the time to move their bytes.

All contenders run in one process, as they share the tensors, in rounds that alternate between
them, every other one backwards. On a GPU a CUDA graph of many calls is timed, as a kernel of a few
microseconds is faster than Python can launch it.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.bandwidth import copy_bandwidth
from benchmarks.report import format_table, new_report, summarize, write_json
from dali_rsb.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
Call = Callable[[], object]

OURS = "dali_rsb"
TWIN, COMPILED_TWIN, TIMM = "plain twin", "torch.compile of the twin", "timm"


@dataclass(frozen=True)
class Case:
    """What one task costs each contender.

    Attributes:
        contenders: a call of each does the task once; the first is ours.
        floor_bytes: that any solution must read and write.
        left_out: contenders that cannot run here, and why.
    """

    contenders: Mapping[str, Call]
    floor_bytes: int
    left_out: Mapping[str, str] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options that all benchmarks of kernels have."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one timed section")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser


def run_cases(
    benchmark: str,
    settings: Mapping[str, Any],
    make_cases: Callable[[], Mapping[str, Case]],
    options: argparse.Namespace,
) -> None:
    """Measure the cases, print their tables and write the result file.

    Args:
        settings: the benchmark's own; those of `add_options` are added.

    Raises:
        UserError: there is no such device.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here: use --device cpu")
    device = torch.device(options.device)
    common = {name: getattr(options, name) for name in ("device", "dtype", "rounds", "seconds")}
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    report = new_report(benchmark, {**settings, **common, **threads})
    bytes_per_s = copy_bandwidth(device)
    report["copy_gb_per_s"] = round(bytes_per_s / 1e9, 1)
    print(f"copy bandwidth: {report['copy_gb_per_s']} GB/s, bytes read and written")
    report["cases"] = {}
    for name, case in make_cases().items():
        result = measure_case(case, device, bytes_per_s, options.rounds, options.seconds)
        report["cases"][name] = result
        floor = f"{result['floor_bytes'] / 1e6:.1f} MB, floor {result['floor_us']:.1f} us"
        print(f"\n{name}: {floor}\n\n{case_table(result)}")
        for contender, reason in case.left_out.items():
            print(f"{contender}: left out, {reason}")
        if options.output is not None:
            write_json(options.output, report)


def compile_obstacle(device: torch.device) -> str | None:
    """Why `torch.compile` cannot work here, or None."""
    if device.type == "cpu":
        compilers = ("g++", "clang++", os.environ.get("CXX") or "c++")
        if not any(shutil.which(compiler) for compiler in compilers):
            return "torch.compile for CPUs needs a C++ compiler, and there is none"
    return None


def measure_case(
    case: Case,
    device: torch.device,
    bytes_per_s: float,
    num_rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Time a case.

    Args:
        bytes_per_s: copy bandwidth of the device.
        seconds: of one timed section.

    Returns:
        What the result file holds: microseconds of a call, their multiple of the floor, and each
        contender's time over ours, taken within rounds.
    """
    timers = {name: _timer(call, device) for name, call in case.contenders.items()}
    times_s: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(num_rounds):
        names = list(timers) if number % 2 == 0 else list(reversed(timers))
        for name in names:
            times_s[name].append(timers[name](seconds))
        line = ", ".join(f"{name}: {1e6 * runs[-1]:.1f} us" for name, runs in times_s.items())
        print(f"round {number + 1}/{num_rounds}  {line}", file=sys.stderr, flush=True)
    floor_s = case.floor_bytes / bytes_per_s
    ours = times_s[next(iter(case.contenders))]
    return {
        "floor_bytes": case.floor_bytes,
        "floor_us": round(1e6 * floor_s, 2),
        "contenders": {
            name: {
                "us": asdict(summarize([1e6 * run for run in runs])),
                "times_floor": asdict(summarize([run / floor_s for run in runs])),
                "times_ours": asdict(
                    summarize([theirs / mine for theirs, mine in zip(runs, ours, strict=True)])
                ),
            }
            for name, runs in times_s.items()
        },
        "left_out": dict(case.left_out),
    }


def _timer(call: Call, device: torch.device) -> Callable[[float], float]:
    """A function that repeats the call for about so many seconds and returns the seconds of one."""
    for _ in range(2):  # compiles, and fills the allocator's pools
        call()
    if device.type != "cuda":
        return lambda seconds: _time_on_cpu(call, seconds)

    from triton.testing import do_bench, do_bench_cudagraph

    def time_on_gpu(seconds: float) -> float:
        torch.cuda.synchronize()
        try:
            milliseconds = do_bench_cudagraph(call, rep=int(1e3 * seconds), return_mode="median")
        except RuntimeError:  # the call cannot be captured: a contender that asks the host
            milliseconds = do_bench(call, rep=int(1e3 * seconds), return_mode="median")
        return float(milliseconds) / 1e3

    return time_on_gpu


def _time_on_cpu(call: Call, seconds: float) -> float:
    start_s = time.perf_counter()
    call()
    num_calls = math.ceil(seconds / max(time.perf_counter() - start_s, 1e-6))
    start_s = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - start_s) / num_calls


def case_table(result: Mapping[str, Any]) -> str:
    """The table of a measured case, in Markdown."""
    rows = []
    for name, measured in result["contenders"].items():
        us, floor, ours = (measured[key] for key in ("us", "times_floor", "times_ours"))
        rows.append(
            [
                name,
                f"{us['median']:.1f}",
                f"{us['min']:.1f}-{us['max']:.1f}",
                f"{floor['median']:.2f}",
                f"{ours['median']:.2f}",
            ]
        )
    header = ["contender", "us", "min-max", "times the floor", "times ours"]
    return format_table(header, rows)

"""Times device kernels against their candidates, and against the time to move their bytes.

All candidates run in one process, as they share the tensors, in rounds that alternate between
them, every other one backwards. On a GPU a CUDA graph of many calls is timed, as a kernel of a few
microseconds is faster than Python can launch it; a candidate that cannot be captured, because it
asks the host something, is timed with its launches, and the results say so.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from benchmarks.bandwidth import copy_bandwidth
from benchmarks.report import format_table, new_report, summarize, write_json
from dali_rsb.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
Call = Callable[[], object]

# Tensors that take turns have this many bytes together: five times the 50 MB of an H100's L2 cache.
ROTATED_BYTES = 2**28
GRAPH_MS = 5.0  # of one replay: far longer than its launch

OURS = "dali_rsb"
PLAIN, COMPILED, TIMM = "plain PyTorch", "plain PyTorch, compiled", "timm"


@dataclass(frozen=True)
class Case:
    """What one task costs each candidate.

    Attributes:
        candidates: a call of each does the task once; the first is ours.
        floor_bytes: that any solution must read and write.
        left_out: candidates that cannot run here, and why.
    """

    candidates: Mapping[str, Call]
    floor_bytes: int
    left_out: Mapping[str, str] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options that all benchmarks of kernels have."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one timed section")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser


def in_rotation(calls: Sequence[Call]) -> Call:
    """A call that makes one of several after the other, each with tensors of its own.

    As many results are kept: where inputs and results together are larger than a cache, none is
    found there.
    """
    if len(calls) == 1:
        return calls[0]
    results: deque[object] = deque(maxlen=len(calls))
    turns = itertools.cycle(calls)

    def call() -> object:
        results.append(next(turns)())
        return results[-1]

    return call


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
        for candidate, measured in result["candidates"].items():
            if measured["timed"] == "launches":
                print(f"{candidate}: cannot be captured in a CUDA graph, timed with its launches")
        for candidate, reason in case.left_out.items():
            print(f"{candidate}: left out, {reason}")
        if options.output is not None:
            write_json(options.output, report)


def compile_obstacle(device: torch.device, no_compile: bool = False) -> str | None:
    """Why the compiled one is left out, or None."""
    if no_compile:
        return "--no-compile"
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
        What the result file holds: what was timed, microseconds of a call, their multiple of the
        floor, and each candidate's time over ours, taken within rounds.
    """
    timers = {name: _timer(call, device) for name, call in case.candidates.items()}
    times_s: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(num_rounds):
        names = list(timers) if number % 2 == 0 else list(reversed(timers))
        for name in names:
            times_s[name].append(timers[name](seconds))
        line = ", ".join(f"{name}: {1e6 * runs[-1]:.1f} us" for name, runs in times_s.items())
        print(f"round {number + 1}/{num_rounds}  {line}", file=sys.stderr, flush=True)
    floor_s = case.floor_bytes / bytes_per_s
    ours = times_s[next(iter(case.candidates))]
    return {
        "floor_bytes": case.floor_bytes,
        "floor_us": round(1e6 * floor_s, 2),
        "candidates": {
            name: {
                "timed": timers[name].method,
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


def _timer(call: Call, device: torch.device) -> _Timer:
    for _ in range(2):  # compiles, and fills the allocator's pools
        call()
    return _GpuTimer(call) if device.type == "cuda" else _CpuTimer(call)


class _Timer(Protocol):
    method: str  # what is timed

    def __call__(self, seconds: float) -> float:
        """Repeat the call for about so many seconds; returns the seconds of one."""
        ...


class _CpuTimer:
    method = "calls"

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, seconds: float) -> float:
        start_s = time.perf_counter()
        self._call()
        num_calls = max(1, math.ceil(seconds / max(time.perf_counter() - start_s, 1e-6)))
        start_s = time.perf_counter()
        for _ in range(num_calls):
            self._call()
        return (time.perf_counter() - start_s) / num_calls


class _GpuTimer:
    """Captures as many calls as take GRAPH_MS; what cannot be captured is launched as often."""

    def __init__(self, call: Call) -> None:
        self._run = call
        estimate_ms = median(self._time_ms() for _ in range(5))
        # From 8 to 1,000 of them.
        self._num_calls = round(GRAPH_MS / min(max(estimate_ms, GRAPH_MS / 1000), GRAPH_MS / 8))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                call()  # libraries take their workspaces for each stream
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream):
                self._repeat(call)
        except RuntimeError:  # the call asks the host something
            torch.cuda.synchronize()
            self.method = "launches"
            self._run = lambda: self._repeat(call)
        else:
            self.method = "CUDA graph"
            self._run = graph.replay

    def _repeat(self, call: Call) -> None:
        for _ in range(self._num_calls):
            call()

    def _time_ms(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def __call__(self, seconds: float) -> float:
        self._time_ms()
        until_s = time.perf_counter() + seconds
        times_ms = [self._time_ms()]
        while time.perf_counter() < until_s:
            times_ms.append(self._time_ms())
        return median(times_ms) / self._num_calls / 1000


def case_table(result: Mapping[str, Any]) -> str:
    """The table of a measured case, in Markdown."""
    rows = []
    for name, measured in result["candidates"].items():
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
    header = ["candidate", "us", "min-max", "times the floor", "times ours"]
    return format_table(header, rows)

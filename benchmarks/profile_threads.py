"""CPU time of a running loader by thread, and with `perf` by library and function."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import CLOCK_TICKS_PER_S, BatchCounts

_SAMPLES_PER_S = 499
_FUNCTIONS = 25
_LINE = re.compile(r"^\s*([\d.]+)%\s+(.*?)\s*$")


def cpu_by_thread(batches: BatchCounts, seconds: float) -> dict[str, float]:
    """CPU microseconds of an image by the names of this process's threads, largest first.

    Of one batch at least.

    Threads that only differ by a number count together. Those that Python started, which are the
    resize's, have the program's name.
    """
    before, start_s, num_images = _thread_seconds(), time.perf_counter(), 0
    while num_images == 0 or time.perf_counter() - start_s < seconds:
        delivered = next(batches)
        assert isinstance(delivered, int)
        num_images += delivered
    taken: dict[str, float] = defaultdict(float)
    for thread, (name, cpu_s) in _thread_seconds().items():
        taken[name] += cpu_s - before.get(thread, (name, 0.0))[1]
    largest_first = sorted(taken.items(), key=lambda item: -item[1])
    return {name: round(1e6 * cpu_s / num_images, 1) for name, cpu_s in largest_first if cpu_s}


def _thread_seconds() -> dict[int, tuple[str, float]]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except FileNotFoundError:
            continue  # it has ended meanwhile
        fields = rest.split()  # from field 3 of proc(5) on
        seconds = (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S
        is_main = int(task.name) == os.getpid()
        shown = "main thread" if is_main else re.sub(r"[\d_-]+$", "", name)
        found[int(task.name)] = shown, seconds
    return found


def cpu_by_library(batches: BatchCounts, seconds: float) -> dict[str, Any]:
    """Shares of the CPU time in percent by library and by function, as `perf` samples them.

    Where `perf` is missing or may not look, "left_out" says so.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "perf.data"
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_SAMPLES_PER_S)]
        record += ["-p", str(os.getpid()), "-o", str(file), "--", "sleep", str(seconds)]
        try:
            with subprocess.Popen(record, stderr=subprocess.PIPE, text=True) as recording:
                while recording.poll() is None:
                    next(batches)
                assert recording.stderr is not None
                error = recording.stderr.read()
        except FileNotFoundError:
            return {"left_out": "perf is not installed"}
        if recording.returncode != 0 or not file.exists():
            return {"left_out": f"perf failed: {(error.strip() or 'no message').splitlines()[-1]}"}
        functions = list(_shares(file, "dso,symbol").items())[:_FUNCTIONS]
        return {"libraries": _shares(file, "dso"), "functions": dict(functions)}


def _shares(file: Path, keys: str) -> Mapping[str, float]:
    command = ["perf", "report", "-i", str(file), "--stdio", "-g", "none", "--sort", keys]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shares = {}
    for line in printed.splitlines():
        if found := _LINE.match(line):
            name = re.sub(r" \[[.k]\]|( -)+$", "", " ".join(found[2].split()))
            shares[name] = float(found[1])
    return {name: share for name, share in shares.items() if share >= 0.2}

"""What every benchmark shares: contenders measured in alternation, statistics, machine, JSON.

Each contender lives in a process of its own, so that none shares threads, memory pools or imports
with another. Rounds alternate between them, and a ratio is taken within a round before the median
over rounds: a machine that grows slower for a while then slows both sides of it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dali_rsb.data.cpus import available_cpus

PACKAGES = ("torch", "torchvision", "timm", "nvidia-dali-cuda120", "numpy", "pillow")
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# A process is idle when it takes less than this share of one CPU over IDLE_WINDOW_S.
IDLE_SHARE = 0.05
IDLE_WINDOW_S = 0.2
IDLE_TIMEOUT_S = 60.0

# Yields the number of images of each batch, endlessly, once the batch lies ready in host memory.
BatchCounts = Iterator[int]


class NotInstalledError(Exception):
    """A contender needs a package that is not installed."""


@dataclass(frozen=True)
class Work:
    """How long to measure: at least `seconds` and `num_batches`, after `num_warmup_batches`.

    The number of batches is rounded up to a multiple of `round_to`: a loader with N workers
    delivers N batches in one go, and a section that cut such a group in two would count wrong.
    """

    seconds: float
    num_batches: int
    num_warmup_batches: int
    round_to: int = 1


@dataclass(frozen=True)
class Section:
    """One timed section: wall time, CPU time of the contender's processes, and images delivered."""

    wall_s: float
    cpu_s: float
    num_images: int
    num_batches: int

    @property
    def img_per_s(self) -> float:
        return self.num_images / self.wall_s

    @property
    def cpu_ms_per_img(self) -> float:
        return 1000 * self.cpu_s / self.num_images


@dataclass(frozen=True)
class Summary:
    """Median and spread of the repeats."""

    median: float
    min: float
    max: float
    runs: tuple[float, ...]


def summarize(values: Sequence[float]) -> Summary:
    """Summarise the repeats, with four significant digits."""
    runs = tuple(float(f"{value:.4g}") for value in values)
    return Summary(float(f"{statistics.median(runs):.4g}"), min(runs), max(runs), runs)


def ratios(ours: Sequence[Section], theirs: Sequence[Section]) -> Summary:
    """Our images/s over theirs, round by round."""
    return summarize([a.img_per_s / b.img_per_s for a, b in zip(ours, theirs, strict=True)])


def time_section(batches: BatchCounts, work: Work) -> Section:
    """Time some batches in steady state: the clock runs from the arrival of one to another's."""
    for _ in range(work.num_warmup_batches):
        next(batches)
    num_images = num_batches = 0
    cpu_start_s, start_s = tree_cpu_s(os.getpid()), time.perf_counter()
    while True:
        num_images += next(batches)
        num_batches += 1
        wall_s = time.perf_counter() - start_s
        enough = num_batches >= work.num_batches and wall_s >= work.seconds
        if enough and num_batches % work.round_to == 0:
            return Section(wall_s, tree_cpu_s(os.getpid()) - cpu_start_s, num_images, num_batches)


def tree_cpu_s(pid: int) -> float:
    """CPU time of a process and of all its living descendants, user and system."""
    total_s = 0.0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
        # The name, in brackets, may hold anything; proc(5) numbers the fields after it from 3.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total_s += (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text(encoding="utf-8").split()
            total_s += sum(tree_cpu_s(int(child)) for child in children)
    return total_s


def wait_until_idle(pid: int) -> None:
    """Wait until the process has filled its queues: it must not work while another is timed."""
    give_up_s = time.monotonic() + IDLE_TIMEOUT_S
    while time.monotonic() < give_up_s:
        before_s = tree_cpu_s(pid)
        time.sleep(IDLE_WINDOW_S)
        if tree_cpu_s(pid) - before_s < IDLE_SHARE * IDLE_WINDOW_S:
            return


def _serve(connection: Connection, start: Callable[[], BatchCounts], cpus: list[int]) -> None:
    """Child process: make the contender's batches, then time a section at each request."""
    os.sched_setaffinity(0, cpus)
    try:
        batches = start()
        next(batches)
    except NotInstalledError as error:
        connection.send(str(error))
        return
    wait_until_idle(os.getpid())
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            work: Work = connection.recv()
            section = time_section(batches, work)
            wait_until_idle(os.getpid())
            connection.send(section)


def measure_in_rounds(
    contenders: Mapping[str, Callable[[], BatchCounts]],
    work: Work,
    num_rounds: int,
    num_cpus: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Section]], dict[str, str]]:
    """Measure all contenders once a round, every other round in the opposite order.

    Args:
        contenders: for each name a function that starts the contender; it is called in a new
            process, so it must be picklable. It raises NotInstalledError where a package lacks.
        num_cpus: all contenders are bound to the same CPUs, as many as this.
        progress: receives a line after each section.

    Returns:
        The sections of each contender, one a round, and why contenders were left out.

    Raises:
        RuntimeError: a contender's process failed.
    """
    context = multiprocessing.get_context("spawn")
    cpus = sorted(os.sched_getaffinity(0))[:num_cpus]
    connections: dict[str, Connection] = {}
    left_out: dict[str, str] = {}
    processes = []
    try:
        for name, start in contenders.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, start, cpus), name=name)
            process.start()
            theirs.close()  # so that a dead child is an EOFError here
            processes.append(process)
            connections[name] = ours
        for name, connection in list(connections.items()):
            reason = _receive(connection, name)
            if reason is not None:
                left_out[name] = reason
                del connections[name]
                progress(f"{name}: left out, {reason}")
        sections: dict[str, list[Section]] = {name: [] for name in connections}
        for number in range(num_rounds):
            names = list(connections) if number % 2 == 0 else list(reversed(connections))
            for name in names:
                connections[name].send(work)
                section: Section = _receive(connections[name], name)
                sections[name].append(section)
                progress(
                    f"round {number + 1}/{num_rounds}  {name}: {section.img_per_s:.0f} img/s, "
                    f"{section.cpu_ms_per_img:.2f} CPU ms/img"
                )
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    return sections, left_out


def _receive(connection: Connection, name: str) -> Any:
    try:
        return connection.recv()
    except EOFError as error:
        raise RuntimeError(f"the process of {name!r} failed; its error stands above") from error


def describe_machine() -> dict[str, Any]:
    """CPU, usable cores, memory, load, and the GPU where there is one."""
    import torch

    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpu_info if line.startswith("model name")]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine: dict[str, Any] = {
        "cpu": models[0] if models else platform.machine(),
        "cpus_of_machine": os.cpu_count(),
        "cpus_usable": available_cpus(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
        machine["gpus"] = torch.cuda.device_count()
        machine["driver"] = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv")
    return machine


def versions() -> dict[str, str]:
    """Python, the packages that matter, and the commit that is measured."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    root = Path(__file__).parent.parent
    commit = _output_of("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12")
    return found | {"commit": commit or "unknown"}


def _output_of(*command: str) -> str | None:
    """The last line that a command prints, or None where it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip().rpartition("\n")[2]


def new_report(benchmark: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a result file: what was measured, where, when and with which command."""
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "machine": describe_machine(),
        "versions": versions(),
    }


def sections_as_json(sections: Mapping[str, Sequence[Section]]) -> dict[str, Any]:
    """For each contender images/s, CPU ms per image and what was delivered."""
    return {
        name: {
            "img_per_s": asdict(summarize([section.img_per_s for section in runs])),
            "cpu_ms_per_img": asdict(summarize([section.cpu_ms_per_img for section in runs])),
            "num_images": [section.num_images for section in runs],
            "num_batches": [section.num_batches for section in runs],
            "wall_s": [round(section.wall_s, 3) for section in runs],
        }
        for name, runs in sections.items()
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a result file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well on a terminal; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    return "\n".join([line(header), rule + "|", *map(line, rows)])

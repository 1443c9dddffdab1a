"""What every benchmark shares: candidates measured in alternation, statistics, machine, JSON.

Each candidate lives in a process of its own, so that none shares threads, memory pools or imports
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
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dali_rsb.checks.machine.software import DALI_DISTRIBUTIONS
from dali_rsb.errors import UserError

PACKAGES = ("torch", "torchvision", "timm", *DALI_DISTRIBUTIONS, "ffcv", "numpy", "pillow")
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# A process is idle when it takes less than this share of one CPU over IDLE_WINDOW_S.
IDLE_SHARE = 0.05
IDLE_WINDOW_S = 0.2
IDLE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Delivery:
    """Images that are ready, and how much of the time they took was spent waiting for data."""

    num_images: int
    waited_s: float


# Yields the number of images of each batch, endlessly, once the batch is ready: work that a GPU
# still does when its images are counted would be counted for the next batch.
BatchCounts = Iterator[int | Delivery]


@dataclass(frozen=True)
class Parts:
    """A candidate that does several things in one process, such as its loader and its model.

    Attributes:
        runs: for each part what starts it; a part ends before another starts.
        facts: what else there is to say about the candidate, as JSON holds it.
    """

    runs: Mapping[str, Callable[[], BatchCounts]]
    facts: Mapping[str, Any] = field(default_factory=dict)


Start = Callable[[], "BatchCounts | Parts"]


class NotInstalledError(Exception):
    """A candidate needs something that is not installed here."""


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
    """One timed section: wall time, CPU time of the candidate's processes, and images delivered.

    `waited_s` is the time spent waiting for data, None where that means nothing; `peak_gib` what
    PyTorch's tensors took of the GPU's memory at most, None without a GPU.
    """

    wall_s: float
    cpu_s: float
    num_images: int
    num_batches: int
    waited_s: float | None = None
    peak_gib: float | None = None

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
    waited_s: float | None = None
    _forget_peak_memory()
    cpu_start_s, start_s = tree_cpu_s(os.getpid()), time.perf_counter()
    while True:
        delivered = next(batches)
        num_batches += 1
        if isinstance(delivered, Delivery):
            num_images += delivered.num_images
            waited_s = (waited_s or 0.0) + delivered.waited_s
        else:
            num_images += delivered
        wall_s = time.perf_counter() - start_s
        enough = num_batches >= work.num_batches and wall_s >= work.seconds
        if enough and num_batches % work.round_to == 0:
            cpu_s = tree_cpu_s(os.getpid()) - cpu_start_s
            return Section(wall_s, cpu_s, num_images, num_batches, waited_s, _peak_memory_gib())


def _uses_gpu() -> bool:
    torch = sys.modules.get("torch")  # whoever has not imported it has no tensors
    return torch is not None and torch.cuda.is_initialized()


def _forget_peak_memory() -> None:
    if _uses_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peak_memory_gib() -> float | None:
    if not _uses_gpu():
        return None
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


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


@dataclass(frozen=True)
class _Started:
    """What a child says once it has started: its parts, [""] where it is all one."""

    parts: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _LeftOut:
    """What a child says when it cannot run; a mistake of the user's ends all."""

    reason: str
    is_mistake: bool = False


def _serve(connection: Connection, start: Start, cpus: list[int]) -> None:
    """Child process: make the candidate's batches, then time a section at each request."""
    os.sched_setaffinity(0, cpus)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has had enough
        _answer(connection, start)


def _answer(connection: Connection, start: Start) -> None:
    connection.recv()  # Imports are done: one candidate after the other starts from here.
    try:
        started = start()
        if not isinstance(started, Parts):
            next(started)
    except NotInstalledError as error:
        connection.send(_LeftOut(str(error)))
        return
    except UserError as error:
        connection.send(_LeftOut(str(error), is_mistake=True))
        return
    wait_until_idle(os.getpid())
    if isinstance(started, Parts):
        connection.send(_Started(tuple(started.runs), started.facts))
    else:
        connection.send(_Started(("",), {}))
    while True:
        part, work = connection.recv()
        if isinstance(started, Parts):
            with contextlib.closing(_as_generator(started.runs[part]())) as batches:
                section = time_section(batches, work)
        else:
            section = time_section(started, work)
        wait_until_idle(os.getpid())
        connection.send(section)


def _as_generator(batches: BatchCounts) -> Generator[int | Delivery, None, None]:
    """The same, to be closed."""
    yield from batches


@dataclass(frozen=True)
class Measurements:
    """What came out of the rounds.

    Attributes:
        sections: of each candidate, one a round; of a candidate with parts under "NAME, PART".
        left_out: why candidates were left out.
        facts: what candidates said about themselves.
    """

    sections: dict[str, list[Section]]
    left_out: dict[str, str]
    facts: dict[str, Mapping[str, Any]]

    @property
    def num_rounds(self) -> int:
        """How many there were: fewer than asked for where time ran out."""
        return min(map(len, self.sections.values()), default=0)


class _TerminatedError(Exception):
    """SIGTERM came: time is up."""


@contextlib.contextmanager
def _sigterm_as_error() -> Iterator[None]:
    def stop(*_: object) -> None:
        # `timeout` sends it twice, to the process and to its group: what is left is to write.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def measure(
    candidates: Mapping[str, Start],
    work: Work,
    num_rounds: int,
    num_cpus: int,
    progress: Callable[[str], None],
    *,
    keep_going: bool = False,
) -> Measurements:
    """Measure all candidates once a round, every other round in the opposite order.

    SIGTERM, as from coreutils' `timeout`, ends the measurement with the rounds that are complete.

    Args:
        candidates: for each name a function that starts the candidate; it is called in a new
            process, so it must be picklable. It raises NotInstalledError where a package lacks.
        num_cpus: all candidates are bound to the same CPUs, as many as this.
        progress: receives a line as each candidate starts, and one after each section.
        keep_going: leave out a candidate that fails, which is an error otherwise.

    Raises:
        RuntimeError: a candidate's process failed.
        UserError: a candidate was given something it cannot work with, or time was up before the
            first round was.
    """
    context = multiprocessing.get_context("spawn")
    cpus = sorted(os.sched_getaffinity(0))[:num_cpus]
    connections: dict[str, Connection] = {}
    measured = Measurements({}, {}, {})
    parts: dict[str, tuple[str, ...]] = {}
    processes: dict[str, BaseProcess] = {}

    def leave_out(name: str, reason: str) -> None:
        measured.left_out[name] = reason
        connections.pop(name).close()
        for part in parts.pop(name, ()):
            measured.sections.pop(_section_name(name, part), None)
        progress(f"{name}: left out, {reason}")

    def measure_round(number: int) -> None:
        runs = [(name, part) for name in connections for part in parts[name]]
        for name, part in runs if number % 2 == 0 else runs[::-1]:
            if name not in connections:
                continue
            with contextlib.suppress(BrokenPipeError):  # it is dead; _receive says so
                connections[name].send((part, work))
            section = _receive(connections[name], processes[name], keep_going)
            if isinstance(section, _LeftOut):
                leave_out(name, section.reason)
                continue
            measured.sections[_section_name(name, part)].append(section)
            progress(
                f"round {number + 1}/{num_rounds}  {_section_name(name, part)}: "
                f"{section.img_per_s:.0f} img/s, {section.cpu_ms_per_img:.2f} CPU ms/img"
            )

    try:
        for name, start in candidates.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, start, cpus), name=name)
            process.start()
            theirs.close()  # so that a dead child is an EOFError here
            processes[name] = process
            connections[name] = ours
        for number, name in enumerate(list(connections), start=1):
            progress(f"starting {number} of {len(candidates)}: {name}")
            # Libraries choose their algorithms by timing them as they start.
            with contextlib.suppress(BrokenPipeError):  # it is dead; _receive says so
                connections[name].send(None)
            answer = _receive(connections[name], processes[name], keep_going)
            if isinstance(answer, _Started):
                measured.facts[name], parts[name] = answer.facts, answer.parts
                measured.sections.update({_section_name(name, part): [] for part in answer.parts})
            elif answer.is_mistake:
                raise UserError(answer.reason)
            else:
                leave_out(name, answer.reason)
        with _sigterm_as_error():
            for number in range(num_rounds):
                measure_round(number)
    except _TerminatedError:
        for child in processes.values():
            child.kill()  # there is no time to wait for them
        complete = measured.num_rounds
        if not complete:
            raise UserError("stopped before the first round was over: nothing to report") from None
        progress(f"stopped: {complete} of {num_rounds} rounds are complete")
        for sections in measured.sections.values():
            del sections[complete:]
    finally:
        for connection in connections.values():
            connection.close()
        for child in processes.values():
            child.join(timeout=10)
            if child.is_alive():
                child.kill()
    return measured


def _section_name(candidate: str, part: str) -> str:
    return f"{candidate}, {part}" if part else candidate


def _receive(connection: Connection, process: BaseProcess, keep_going: bool) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError) as error:
        reason = _how_it_ended(process)
        if keep_going:
            return _LeftOut(reason)
        raise RuntimeError(f"{process.name!r}: {reason}") from error


def _how_it_ended(process: BaseProcess) -> str:
    process.join(timeout=10)
    if process.exitcode is not None and process.exitcode < 0:
        return f"its process died by {signal.Signals(-process.exitcode).name}"
    return "its process failed; its error stands above"


def describe_machine() -> dict[str, Any]:
    """CPU, usable cores, memory, load, and the GPU where there is one."""
    from dali_rsb.run.environment import machine

    found = {**machine(), "load_average_1min": round(os.getloadavg()[0], 2)}
    if "gpu" in found:
        found["driver"] = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv")
    return found


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
    """For each candidate images/s, CPU ms per image and what was delivered.

    Where candidates wait for data, `data_wait_percent` of the time; on a GPU `peak_memory_gib`.
    """
    return {name: _as_json(runs) for name, runs in sections.items()}


def _as_json(runs: Sequence[Section]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "img_per_s": asdict(summarize([section.img_per_s for section in runs])),
        "cpu_ms_per_img": asdict(summarize([section.cpu_ms_per_img for section in runs])),
        "num_images": [section.num_images for section in runs],
        "num_batches": [section.num_batches for section in runs],
        "wall_s": [round(section.wall_s, 3) for section in runs],
    }
    waits = [100 * run.waited_s / run.wall_s for run in runs if run.waited_s is not None]
    if waits:
        result["data_wait_percent"] = asdict(summarize(waits))
    peaks = [run.peak_gib for run in runs if run.peak_gib is not None]
    if peaks:
        result["peak_memory_gib"] = max(round(peak, 2) for peak in peaks)
    return result


def report_progress(line: str) -> None:
    """A line on stderr: what `measure` is at."""
    print(line, file=sys.stderr, flush=True)


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

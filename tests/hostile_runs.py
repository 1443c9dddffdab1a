"""Commands with hostile input, each in a fork of a warm process: what comes of it, what is wrong.

    python tests/hostile_runs.py COUNT SEED [JOBS [FIRST]]

tries COUNT random configurations of a seed, from number FIRST on, JOBS at a time: each is trained
where it is valid. What does not end as it should is printed.

A refused case costs 0.03 s of CPU and a trained one 0.4 s, where a command takes seconds to start.
"""

from __future__ import annotations

import collections
import csv
import importlib
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from dali_rsb.errors import run_command

MAX_CHARACTERS = 300
FINE = ("trained", "answered", "refused")
# Importing Numba takes a process 2 s of CPU, five times what a training here takes.
KERNELS = ("dali_rsb.kernels.resize_numba", "dali_rsb.kernels.rand_augment_numba")
# Commands that end with 1 where they find something.
JUDGES = tuple(f"dali_rsb.{name}" for name in ("verify", "doctor", "parity", "pack", "diff"))


@dataclass(frozen=True)
class Task:
    """A command to try.

    Attributes:
        module: of the command, as `dali_rsb.train`.
        words: of its command line.
        files: bytes of files to write into the folder that it runs in.
    """

    module: str
    words: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a task: one of `FINE`, or what is wrong; and the command's messages."""

    task: Task
    what: str
    messages: str
    seconds: float


def write_images(root):
    """Two classes, for training and validation, sixteen images in all."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 2)):
        for label in "ab":
            folder = root / split / label
            folder.mkdir(parents=True)
            for image in range(number):
                pixels = generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.jpg")


def outcomes(tasks, template, jobs=2, timeout_s=120, keep=None):
    """Try tasks, some at a time, each in a copy of the folder `template`; yield what comes of each.

    The process that calls this must have no threads. What the last one leaves is moved to `keep`.
    """
    warm_up()
    tasks, running = list(enumerate(tasks))[::-1], {}
    with tempfile.TemporaryDirectory(prefix="h") as root:
        while tasks or running:
            while tasks and len(running) < jobs:
                number, task = tasks.pop()
                folder = Path(root) / str(number)
                running[_fork(task, template, folder)] = (task, folder, time.monotonic())
            process, status = os.waitpid(-1, os.WNOHANG)
            if process in running:
                task, folder, begun_s = running.pop(process)
                _end_group(process)  # what it started itself
                code = os.waitstatus_to_exitcode(status)
                messages = (folder / ".messages").read_text(errors="replace")
                if code == 1 and task.module in JUDGES:
                    code = 0
                what = _verdict(code, messages, folder if task.files else None)
                yield Outcome(task, what, messages, time.monotonic() - begun_s)
                if keep is None:
                    shutil.rmtree(folder)
                else:
                    shutil.move(folder, keep)
                continue
            for late, (_, _, begun_s) in running.items():
                if time.monotonic() - begun_s > timeout_s:
                    _end_group(late)
            time.sleep(0.002)


def warm_up():
    """Import what the commands import."""
    torch.set_num_threads(1)
    for module in (
        *("numpy.ma", "timm", "dali_rsb.train", "dali_rsb.training.launch"),
        *("dali_rsb.training.assembly", *KERNELS),
    ):
        importlib.import_module(module)


def _fork(task, template, folder):
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        _prepare(task, template, folder)
        run_command(importlib.import_module(task.module).main)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return 0


def _prepare(task, template, folder):
    shutil.copytree(template, folder, symlinks=True)
    os.chdir(folder)
    for name, data in task.files:
        Path(name).write_bytes(data)
    os.mkfifo("fifo")
    for number, name in ((0, os.devnull), (1, ".output"), (2, ".messages")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.stderr.reconfigure(errors="backslashreplace")
    os.environ["HOME"] = str(folder)
    sys.argv = [task.module.rpartition(".")[2], *task.words]


def _end_group(process):
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _verdict(code, messages, folder):
    if code == -signal.SIGKILL:
        return "killed: it took too long"
    if "Traceback" in messages:
        return "a traceback"
    if code == 0:
        return "answered" if folder is None else _finite_runs(folder, messages)
    if code != 2:
        return f"exit code {code}"
    lines = messages.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        return f"{len(errors)} lines of error"
    line = errors[0].removeprefix("error: ")
    if len(line) > MAX_CHARACTERS:
        return f"{len(line)} characters"
    return "refused" if line.isprintable() else "not printable"


def _finite_runs(folder, messages):
    """ "trained" or "answered", if all numbers of the runs in a folder are finite.

    Those of metrics.csv may be none where the run has said so.
    """
    found = "answered"
    for path in folder.rglob("metrics.csv"):
        found = "trained"
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for place, value in _leaves(config):
            if isinstance(value, float) and not math.isfinite(value):
                return f"{place} is {value} in config.yaml"
        for place, value in _leaves(rows):
            has_said = "outputs are not finite" in messages or "skipped" in messages
            if value and not math.isfinite(float(value)) and not has_said:
                return f"{place} is {value} in metrics.csv"
    return found


def _leaves(value, place=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, place)
    else:
        yield place, value


def config_task(case):
    """Training by a configuration of `hostile_configs`, beside the images of `write_images`."""
    return Task("dali_rsb.train", ("c.yaml", *case.words), (("c.yaml", case.text),))


def sweep(tasks, template, jobs=2):
    """Try tasks; print each that does not end as it should, and return how many ended how."""
    counts, begun_s = collections.Counter(), time.monotonic()
    for outcome in outcomes(tasks, template, jobs):
        is_fine = outcome.what in FINE
        counts[outcome.what if is_fine else "other"] += 1
        if not is_fine or outcome.seconds > 20:
            print(f"--- {outcome.what}, {outcome.seconds:.0f} s: {outcome.task!r:.3000}")
            print(outcome.messages[-3000:])
        if counts.total() % 200 == 0 or not is_fine:
            print(dict(counts), f"{time.monotonic() - begun_s:.0f} s", flush=True)
    return counts


def main():
    from hostile_configs import cases

    given = [*map(int, sys.argv[1:])]
    count, seed, jobs, first = [*given, *(2, 0)[len(given) - 2 :]]
    with tempfile.TemporaryDirectory() as root:
        template = Path(root) / "template"
        write_images(template / "images")
        tasks = [config_task(case) for case in cases(count, seed)[first:]]
        print(dict(sweep(tasks, template, jobs)))


if __name__ == "__main__":
    main()

"""Children of a process that has imported the slow packages, and nothing of the checkout."""

import contextlib
import importlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

SLOW = (
    *("torch", "torchvision", "timm", "numpy", "scipy.stats", "PIL.Image", "pydantic", "yaml"),
    *("nvidia.dali", "nvidia.dali.fn", "nvidia.dali.plugin.pytorch", "skimage.data", "sklearn"),
    *("sklearn.datasets", "pytest", "hypothesis", "torch.distributed", "torch._dynamo"),
)
# What tests/conftest.py lets its server import; ours is made before any thread begins.
PRELOADED = ["pytest", "hypothesis", "timm", "dali_rsb.training.assembly", "dali_rsb.tuning.apart"]
# Modules of tests that have one of these words use the server.
SERVED = re.compile("SERVER|run_module|run_script|forkserver|[a-z]+ed_(runs?|training) import")


def warm() -> None:
    """Import what takes seconds, once for all children."""
    for name in SLOW:
        importlib.import_module(name)


def run(task: Callable[[Path], int], limit_s: float, log: Path) -> tuple[int | None, float]:
    """Run `task` in a child, which gets an empty folder; return its code (None: killed) and time.

    What it prints goes to `log`. Processes that it leaves are killed: they are of its group.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault", ignore_cleanup_errors=True) as folder:
        child = os.fork()
        if child == 0:
            _be_child(task, Path(folder), log)
        code = _wait(child, limit_s)
    return code, time.monotonic() - began_s


def _be_child(task: Callable[[Path], int], folder: Path, log: Path) -> None:
    code = 99
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = task(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(child: int, limit_s: float) -> int | None:
    until_s, code = time.monotonic() + limit_s, None
    while code is None and time.monotonic() < until_s:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return code
    if code is None:
        os.waitpid(child, 0)
    return code


def begin_server() -> None:
    """Fork the server that makes processes for tests, where Python would start it anew."""
    usual = forkserver.util.spawnv_passfds
    forkserver.util.spawnv_passfds = _fork_server
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        forkserver.util.spawnv_passfds = usual


def _fork_server(program: str, arguments: list[str], kept: list[int]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for path in list(Path("/dev/fd").iterdir()):
            if int(path.name) > 2 and int(path.name) not in kept:
                with contextlib.suppress(OSError):  # the one that listed the folder
                    os.close(int(path.name))
        exec(arguments[-1], {})
    finally:
        os._exit(0)

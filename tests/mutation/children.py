"""Children of a process that has imported the slow packages, and nothing of the checkout."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import re
import shutil
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
PRELOADED = [
    *("pytest", "hypothesis", "timm", "dali_rsb.training.assembly", "dali_rsb.tuning.apart"),
    "dali_rsb.kernels.resize_numba",
]
# Modules of tests that have one of these words use the server.
SERVED = re.compile("SERVER|run_module|run_script|forkserver|[a-z]+ed_(runs?|training) import")


def warm() -> None:
    """Import what takes seconds, once for all children."""
    for name in SLOW:
        importlib.import_module(name)


def run(task: Callable[[Path], int], limit_s: float, log: Path) -> Child:
    """Run `task` in a child, which gets an empty folder; return it when it has ended.

    What it prints goes to `log`. Processes that it leaves are killed: they are of its group.
    """
    child = Child(log)
    if child.is_here:
        code = 99
        try:
            code = task(child.folder)
        except BaseException:
            traceback.print_exc()
        child.end(code)
    while not child.poll(limit_s):
        time.sleep(0.05)
    return child


class Child:
    """A child of this process, from the moment it is made: both go on from there."""

    def __init__(self, log: Path) -> None:
        self.began_s = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="fault"))
        self._process = os.fork()
        self.is_here = self._process == 0
        if self.is_here:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)

    def end(self, code: int) -> None:
        """Leave, in the child."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def poll(self, limit_s: float) -> bool:
        """In the parent: whether it has ended, or was killed for having run longer than a limit.

        Then `code` is its code, None if it was killed, and `taken_s` its time.
        """
        ended, status = os.waitpid(self._process, os.WNOHANG)
        self.taken_s = time.monotonic() - self.began_s
        if not ended and self.taken_s < limit_s:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(status) if ended else None
        if not ended:
            os.waitpid(self._process, 0)
        return True

    def forget(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def begin_server() -> None:
    """Fork the server that makes processes for tests, where Python would start it again."""
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

"""One of several processes that exchange sums, as a training does, until a fault strikes rank 1.

Under a launcher: rank_worker.py FAULT TIMEOUT_S writes its process id to pid-RANK first.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from dali_rsb.errors import UserError, run_command
from dali_rsb.run.processes import processes
from dali_rsb.run.watch import BEAT_S


def _strike(fault):
    if fault == "mistake":
        raise UserError("val/cat/3.jpg cannot be decoded; delete it")
    if fault == "error":
        raise ZeroDivisionError("a bug")
    if fault == "disk":
        raise OSError(28, "No space left on device", "last.pt")
    if fault == "memory":
        raise MemoryError("12 GiB")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "hang":
        time.sleep(300)


def work(fault, timeout_s):
    with processes("cpu", timeout_s) as this_process:
        with this_process.first_goes_ahead("scan"):
            if fault == "scan" and this_process.is_first:
                time.sleep(3 * timeout_s)
            if fault == "scan mistake" and this_process.is_first:
                raise UserError("train is empty")
        for update in range(8 if fault in ("scan", "wordless") else 10**9):
            this_process.note(lambda update=update: f"update {update}")
            if fault == "wordless":
                this_process.note(lambda: f"{1 / 0}")
            if update == 5 and this_process.rank == 1:
                time.sleep(3 * BEAT_S)  # until rank 0 has heard of this update
                _strike(fault)
            this_process.note()
            this_process.sum(torch.ones(1))
            time.sleep(0.02)


def as_rank(rank, port, output, fault, timeout_s):
    """Be one of two processes without a launcher; what is said goes to a file."""
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    run_command(lambda: work(fault, timeout_s))


if __name__ == "__main__":
    Path(f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    run_command(lambda: work(sys.argv[1], float(sys.argv[2])))

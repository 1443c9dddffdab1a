"""A training whose rank 1 meets a fault in the launcher's first attempt: for test_restarts.py.

restarted_run.py UPDATE WHAT CONFIG [OVERRIDE ...]

WHAT is one of

    process:  the process is killed at that update
    launcher: its launcher is killed with it
    network:  its network interface, $CUT, goes down; a process that goes on alone waits in the next
              update until it is asked to stop
    nothing
"""

import os
import signal
import subprocess
import sys
import time

import timm  # noqa: F401 (takes seconds, which a short run.timeout would not forgive later)
import torch

from dali_rsb import train
from dali_rsb.errors import run_command
from dali_rsb.training.step import TrainStep

torch.set_num_threads(1)


def strike(what):
    if what == "network":
        subprocess.run(["ip", "link", "set", os.environ["CUT"], "down"], check=True)
        return
    if what == "launcher":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_stop():
    """Wait until SIGTERM arrives, and let the handler of the training have it."""
    arrived = []
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(handler(number, frame)))
    while not arrived:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, handler)


def at(update, action):
    original = TrainStep.update

    def acting(self, batches):
        if self.updates_done == update:
            action()
        return original(self, batches)

    TrainStep.update = acting


if __name__ == "__main__":
    update, what, *arguments = sys.argv[1:]
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    is_first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if what != "nothing" and is_first_attempt and world_size == "2" and rank == "1":
        at(int(update), lambda: strike(what))
    elif what == "network" and world_size == "1":
        at(int(update) + 1, wait_for_stop)
    sys.argv = ["train", *arguments]
    run_command(train.main)

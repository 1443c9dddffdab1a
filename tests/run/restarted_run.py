"""A training that is killed on rank 1 in the launcher's first attempt: for test_restarts.py.

restarted_run.py UPDATE WHAT CONFIG [OVERRIDE ...]    WHAT: process, or launcher with it
"""

import os
import signal
import sys

import torch

from dali_rsb import train
from dali_rsb.errors import run_command
from dali_rsb.training.step import TrainStep

torch.set_num_threads(1)


def kill_at(update, what):
    original = TrainStep.update

    def killing(self, batches):
        if self.updates_done == update and os.environ["RANK"] == "1":
            if what == "launcher":
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batches)

    TrainStep.update = killing


if __name__ == "__main__":
    update, what, *arguments = sys.argv[1:]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["WORLD_SIZE"] == "2":
        kill_at(int(update), what)
    sys.argv = ["train", *arguments]
    run_command(train.main)

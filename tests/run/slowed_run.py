"""A training whose updates take their time: slowed_run.py SECONDS CONFIG [OVERRIDE ...]"""

import sys
import time

import torch

from dali_rsb import train
from dali_rsb.errors import run_command
from dali_rsb.training.step import TrainStep

torch.set_num_threads(1)


def slow_down(seconds):
    update = TrainStep.update

    def slowed(self, batches):
        time.sleep(seconds)
        return update(self, batches)

    TrainStep.update = slowed


if __name__ == "__main__":
    slow_down(float(sys.argv[1]))
    sys.argv = ["train", *sys.argv[2:]]
    run_command(train.main)

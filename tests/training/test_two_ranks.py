"""Two ranks against plain PyTorch in one process; faults of distributed training change the result.

A small net with batch norm and dropout makes three updates of two micro-batches on each of two
ranks, by `TrainStep`. The oracle plays both ranks one after the other: autograd, SGD by hand.
"""

import os
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import SERVER
from torch import nn

from dali_rsb.loader.batch import Batch
from dali_rsb.models.precision import choose_precision
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep

UPDATES, ACCUMULATION, RANKS, BATCH, LR, SEED = 3, 2, 2, 4, 0.1, 7
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def _net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(6 * 36, 5),
    )  # fmt: skip


def _images(rank, update, micro_batch):
    generator = torch.Generator().manual_seed(100 * rank + 10 * update + micro_batch)
    images = torch.randint(256, (BATCH, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return images, torch.randint(5, (BATCH,), generator=generator)


def _batches(rank):
    for update in range(UPDATES):
        for micro_batch in range(ACCUMULATION):
            yield Batch(*_images(rank, update, micro_batch), BATCH)


def _inject(fault):
    """Put a fault in, in this process alone."""
    if fault == "exchange with the first micro-batch":
        exchange = TrainStep._gradient_exchange
        TrainStep._gradient_exchange = lambda self, is_last: exchange(self, not is_last)
    if fault == "buffers summed":
        average = Processes.average_buffers

        def summed(self, module):
            average(self, module)
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.mul_(self.world_size)

        Processes.average_buffers = summed
    if fault == "loss not divided by the world size":
        read = Meter.read
        Meter.read = lambda self: (lambda interval: replace(interval, loss=interval.loss * RANKS))(
            read(self)
        )
    if fault == "rank left out of the seed":
        seed = TrainStep._seed_model_randomness

        def without_rank(self):
            processes, self._processes = self._processes, replace(self._processes, rank=0)
            seed(self)
            self._processes = processes

        TrainStep._seed_model_randomness = without_rank


def _train(rank, folder, fault):
    torch.set_num_threads(1)
    _inject(fault)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    processes = Processes(torch.device("cpu"), rank, rank, RANKS, RANKS)
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    step = TrainStep(
        model,
        create_loss("ce", 0.0, None),
        optimizer,
        None,
        choose_precision("none", processes.device),
        processes,
        accumulation=ACCUMULATION,
        mean=MEAN,
        std=STD,
        seed=SEED,
    )
    meter, batches = Meter(processes, BATCH * RANKS * ACCUMULATION), _batches(rank)
    for _ in range(UPDATES):
        meter.add(step.update(batches), step.skipped)
    processes.average_buffers(model)
    torch.save({"model": model.state_dict(), "loss": meter.read().loss}, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.fixture(scope="module")
def oracle():
    """Weights, buffers and loss by plain PyTorch."""
    nets = [_net() for _ in range(RANKS)]
    total = 0.0
    for update in range(UPDATES):
        for rank, net in enumerate(nets):
            entropy = np.random.SeedSequence((SEED, update, rank))
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
            for micro_batch in range(ACCUMULATION):
                images, labels = _images(rank, update, micro_batch)
                inputs = images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]
                loss = F.cross_entropy(net(inputs / torch.tensor(STD)[:, None, None]), labels)
                (loss / ACCUMULATION).backward()
                total += loss.item()
        for twins in zip(*(net.parameters() for net in nets), strict=True):
            gradient = sum(parameter.grad for parameter in twins) / RANKS
            for parameter in twins:
                parameter.data -= LR * gradient
                parameter.grad = None
    states = [net.state_dict() for net in nets]
    merged = {
        name: (states[0][name] + states[1][name]) / 2 if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    return merged, total / (UPDATES * RANKS * ACCUMULATION)


def _two_ranks(folder, fault):
    pair = [SERVER.Process(target=_train, args=(rank, folder, fault)) for rank in range(RANKS)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(200)
    assert [process.exitcode for process in pair] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _wrong(results, oracle):
    """Names of what differs from the oracle on any rank, beyond rounding."""
    merged, loss = oracle
    wrong = {
        name
        for result in results
        for name, value in result["model"].items()
        if not torch.allclose(value, merged[name], rtol=1e-5, atol=2e-6)
    }
    if any(abs(result["loss"] - loss) > 1e-5 * loss for result in results):
        wrong.add("loss")
    return wrong


def test_two_ranks_equal_one_process(oracle, tmp_path):
    assert _wrong(_two_ranks(tmp_path, None), oracle) == set()


@pytest.mark.parametrize(
    ("fault", "shows_in"),
    [
        ("exchange with the first micro-batch", "0.weight"),
        ("buffers summed", "1.running_mean"),
        ("loss not divided by the world size", "loss"),
        ("rank left out of the seed", "5.weight"),
    ],
)
def test_a_fault_of_distributed_training_shows(oracle, tmp_path, fault, shows_in):
    assert shows_in in _wrong(_two_ranks(tmp_path, fault), oracle)

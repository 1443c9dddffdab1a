"""The processes of a run, as torchrun started them, and the few things they say to each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dali_rsb.errors import UserError

T = TypeVar("T")

# Scanning a large folder on rank 0 takes minutes, during which the others wait.
PROCESS_GROUP_TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True)
class Processes:
    """This process among all of a run's; alone, it is rank 0 of 1."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over all processes, in place; every process gets the sum."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_buffers(self, module: nn.Module) -> None:
        """Replace floating-point buffers (norm statistics) by their mean over all processes."""
        if self.world_size == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.world_size)

    def from_first(self, value: T) -> T:
        """The value that rank 0 has."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; every process gets them. Tensors lie on the CPU."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Run a block on rank 0, then on the others: what rank 0 caches, the others find.

        An error on rank 0 lets the others go on, and meet it themselves.
        """
        if self.world_size > 1 and not self.is_first:
            dist.barrier()
        try:
            yield
        finally:
            if self.world_size > 1 and self.is_first:
                dist.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes of the run (torchrun's environment), and leave them at the end.

    Args:
        device: "cuda", "cpu" or "auto" (a GPU if there is one).

    Raises:
        UserError: a GPU is asked for where there is none, or too few for this node's processes.
    """
    rank, world_size = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    local_rank = _environment("LOCAL_RANK", 0)
    local_world_size = _environment("LOCAL_WORLD_SIZE", world_size)
    chosen = _device(device, local_rank, local_world_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        backend, device_id = ("nccl", chosen) if chosen.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=PROCESS_GROUP_TIMEOUT, device_id=device_id)
    try:
        yield Processes(chosen, rank, local_rank, world_size, local_world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _device(device: str, local_rank: int, local_world_size: int) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and available == 0):
        return torch.device("cpu")
    if available == 0:
        raise UserError("run.device=cuda, but PyTorch sees no GPU here; set run.device=cpu")
    if local_world_size > available:
        raise UserError(
            f"{local_world_size} processes on this node, but PyTorch sees {available} GPU(s); "
            f"use torchrun --nproc_per_node={available}"
        )
    return torch.device("cuda", local_rank)

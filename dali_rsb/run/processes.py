"""The processes of a run, as torchrun started them, and the few things they say to each other."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dali_rsb.constants import NVIDIA_DRIVER
from dali_rsb.errors import UserError
from dali_rsb.run.meeting import name_of_start
from dali_rsb.run.signals import Stopped
from dali_rsb.run.watch import SCAN_TIMEOUT_S, Watch

T = TypeVar("T")

COLLECTIVES_WAIT_S = 60
# linux/prctl.h: the signal that this process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Processes:
    """This process among all of a run's; alone, it is rank 0 of 1.

    Attributes:
        watch: tells the others of this one's end and of its silence; None where it is alone.
    """

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    watch: Watch | None = field(default=None, compare=False, repr=False)

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

    def note(self, activity: Callable[[], str] | None = None) -> None:
        """Show the others that this process comes on.

        Args:
            activity: says what it turns to now; None while it goes on with the same.
        """
        if self.watch is not None:
            self.watch.note(activity)

    @contextmanager
    def first_goes_ahead(self, step: str) -> Iterator[None]:
        """Run a block on rank 0, then on the others: what rank 0 caches, the others find.

        The others wait for up to an hour, for reading a large folder takes minutes.

        Args:
            step: names the block, as no other.
        """
        watch = self.watch
        with nullcontext() if watch is None else watch.patient(SCAN_TIMEOUT_S):
            if watch is not None:
                watch.note(lambda: step)
            if watch is not None and not self.is_first:
                watch.wait_for(step)
            yield
            if watch is not None and self.is_first:
                watch.announce(step)


@contextmanager
def processes(device: str, timeout_s: float = 600) -> Iterator[Processes]:
    """Join the other processes of the run (torchrun's environment), and leave them at the end.

    An error in the block of one among several processes never leaves it: it is printed once, and
    ends them all (see `dali_rsb.run.watch`). A process ends with its launcher, too.

    Args:
        device: "cuda", "cpu" or "auto" (a GPU if there is one).
        timeout_s: so long may a process be silent, or wait for the others.

    Raises:
        UserError: a GPU is asked for where there is none, or too few for this node's processes;
            "auto" finds a driver without a GPU, or another kind of device than the first process;
            one of the others does not come.
    """
    rank, world_size = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    local_rank = _environment("LOCAL_RANK", 0)
    local_world_size = _environment("LOCAL_WORLD_SIZE", world_size)
    if world_size == 1:
        yield Processes(_use(device, 0, 1))
        return
    _end_with_launcher()
    timeout = timedelta(seconds=timeout_s)
    main_store, thread_store = _connection(timeout), _connection(timeout)
    # A launcher keeps its store over restarts: what an earlier start left there is not ours.
    meeting = PrefixStore("dali_rsb", main_store)
    start = f"dali_rsb/{name_of_start(meeting, rank, world_size, timeout_s)}"
    watch = Watch(
        PrefixStore(start, main_store),
        PrefixStore(start, thread_store),
        rank,
        world_size,
        timeout_s,
    )
    watch.start()
    try:
        # A command that notes signals itself stops in its own way.
        is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if is_default and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, watch.terminated)
        chosen = _use(device, local_rank, local_world_size)
        if device == "auto":
            _agree(chosen.type, PrefixStore(f"{start}/device", main_store), rank)
        backend, device_id = ("nccl", chosen) if chosen.type == "cuda" else ("gloo", None)
        dist.init_process_group(
            backend,
            store=PrefixStore(f"{start}/group", main_store),
            rank=rank,
            world_size=world_size,
            # The watch speaks first: it knows which process keeps the others waiting.
            timeout=timeout + timedelta(seconds=COLLECTIVES_WAIT_S),
            device_id=device_id,
        )
        yield Processes(chosen, rank, local_rank, world_size, local_world_size, watch)
    except BaseException as error:
        if isinstance(error, Stopped) and not error.agreed:
            watch.stop(error)
        if not isinstance(error, (SystemExit, Stopped)):
            watch.fail(error)
        dist.destroy_process_group()
        watch.leave()
        raise
    dist.destroy_process_group()
    watch.leave()


def _connection(timeout: timedelta) -> Store:
    """A connection to the store that all processes share; its timeout is that of each call, too."""
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
    except RuntimeError as error:
        reason, _, _ = str(error).partition("\n")
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"no connection to the first process, or the launcher, at {address} "
            f"({reason}): see what it printed, and whether this machine reaches it"
        ) from error
    return store


def _use(device: str, local_rank: int, local_world_size: int) -> torch.device:
    chosen = _device(device, local_rank, local_world_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def _agree(kind: str, store: Store, rank: int) -> None:
    """Raise a UserError where this process has found another kind of device than the first one."""
    if rank == 0:
        store.set("kind", kind)
        return
    if (first := store.get("kind").decode()) != kind:
        raise UserError(
            f"run.device=auto is {first} for the first process and {kind} for process {rank} on "
            f"{socket.gethostname()}: mend that machine (dali-rsb doctor), or set run.device=cpu"
        )


def _end_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies, be it killed: nothing is orphaned."""
    if not sys.platform.startswith("linux") or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew
        sys.exit(128 + signal.SIGTERM)


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _device(device: str, local_rank: int, local_world_size: int) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and available == 0 and Path(NVIDIA_DRIVER).exists() and not _hides_gpus():
        raise UserError(
            "run.device=auto: there is an NVIDIA driver, but PyTorch sees no GPU; run dali-rsb "
            "doctor, which says why, or set run.device=cpu"
        )
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


def _hides_gpus() -> bool:
    """Whether the GPUs are hidden on purpose."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")

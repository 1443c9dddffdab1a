"""CPUs, memory and limits of this machine or container."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dali_rsb.checks.machine.finding import Finding, note, ok, problem

MEMORY_INFO = Path("/proc/meminfo")
# Version 2 and version 1, as containers see them.
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# Fewer than this are a problem whatever decodes: NVIDIA's MLPerf runs give DALI 6 threads a GPU
# where engines decode, and a V100, which has none, wants as many for the Huffman stage.
CPUS_PER_GPU = 4
# A shard takes a file descriptor while it is in use, and so do a loader's batches of files.
OPEN_FILES = 4096
NCCL_SHM_BYTES = 2**28


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine or the container's limit, and what programs and page cache may take."""

    total: int
    available: int


def read_memory(
    memory_info: Path = MEMORY_INFO, cgroup_limits: Iterable[Path] = CGROUP_LIMITS
) -> Memory:
    """Memory of this machine; a container's limit counts, and its page cache counts against it."""
    text = memory_info.read_text(encoding="utf-8")
    values = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    total, available = values["MemTotal"], values["MemAvailable"]
    for path in cgroup_limits:
        try:
            limit = int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # "max" is no limit
            continue
        total, available = min(total, limit), min(available, limit)
    return Memory(total, available)


def check_cpus(available: int, affinity: int, cores: int, num_gpus: int) -> Finding:
    """CPUs that this process may use, and whether they feed the GPUs.

    Args:
        available: as `dali_rsb.system.cpus.available_cpus` counts them.
        affinity: CPUs in the affinity mask.
        cores: CPUs of the machine.
    """
    name = "CPUs"
    parts = [f"{available} usable of {cores}"]
    if affinity < cores:
        parts.append(f"{affinity} by affinity")
    if available < affinity:
        parts.append(f"{available} by the container's quota")
    message = ", ".join(parts)
    if num_gpus and available < CPUS_PER_GPU * num_gpus:
        return problem(
            name,
            f"{message}: too few to decode for {num_gpus} GPU(s), give {CPUS_PER_GPU} or more each",
            f"docker run --cpus={CPUS_PER_GPU * num_gpus} IMAGE  # Slurm: --cpus-per-task, "
            "Kubernetes: resources.limits.cpu",
        )
    if available < cores:
        return note(
            name,
            f"{message}; loaders take their threads from it, other libraries count all {cores}",
            f"export OMP_NUM_THREADS={available}",
        )
    return ok(name, message)


def check_open_files(soft: int, hard: int) -> Finding:
    """The limit on open files (`ulimit -n`); RLIM_INFINITY is no limit."""
    name = "open files"
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return ok(name, "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} allowed")
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    fix = f"ulimit -n {OPEN_FILES if enough else hard}"
    if soft < 1024:
        return problem(name, f"only {soft:,} allowed: many shards or processes need more", fix)
    return note(name, f"{soft:,} allowed: enough for a folder, few for many shards", fix)


def check_shared_memory(num_gpus: int, path: Path = Path("/dev/shm")) -> Finding:
    """Space in /dev/shm: the loader uses none, NCCL does between GPUs."""
    name = "/dev/shm"
    if num_gpus < 2:
        return ok(name, "not used: the loader has threads, no worker processes")
    try:
        stats = os.statvfs(path)
    except OSError:
        free = 0
    else:
        free = stats.f_bavail * stats.f_frsize
    if free < NCCL_SHM_BYTES:
        return problem(
            name,
            f"{_size(free)} free; NCCL wants some between {num_gpus} GPUs",
            "docker run --shm-size=1g IMAGE",
        )
    return ok(name, f"{_size(free)} free; the loader uses none, NCCL some")


def check_memory(memory: Memory, dataset_bytes: int | None) -> Finding:
    """Does the dataset fit into the page cache?"""
    name = "memory"
    message = f"{_size(memory.available)} of {_size(memory.total)} available"
    if dataset_bytes is None:
        return ok(name, message)
    message += f", the images take about {_size(dataset_bytes)}"
    if fits(memory, dataset_bytes):
        return ok(name, f"{message}: from the second epoch on they come from the page cache")
    share = min(1.0, memory.available / dataset_bytes)
    return note(
        name, f"{message}: at most {100 * share:.0f} % stay in the page cache, storage must be fast"
    )


def fits(memory: Memory, dataset_bytes: int) -> bool:
    """Whether a dataset stays in the page cache, with a tenth to spare for programs."""
    return 1.1 * dataset_bytes < memory.available


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"

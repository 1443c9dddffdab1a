"""How many CPUs this process may use: its affinity and its container's quota, not the machine's."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP_MOUNT = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
CPU_INFO = Path("/proc/cpuinfo")


def available_cpus(
    cgroup_mount: Path = CGROUP_MOUNT, cgroup_of_process: Path = CGROUP_OF_PROCESS
) -> int:
    """Number of CPUs this process may use, at least 1.

    The smaller of the CPU affinity (taskset, cpusets, Slurm) and the CPU time quota of the
    control groups, v1 or v2, around the process (`docker --cpus`, Kubernetes limits). A quota of
    2.5 CPUs counts as 2: a third thread would be throttled for half of its time.

    Args:
        cgroup_mount: where the control groups are mounted.
        cgroup_of_process: the file that lists the control groups of the process.
    """
    quotas = list(_cpu_quotas(cgroup_mount, cgroup_of_process))
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def threads_per_process(local_world_size: int) -> int:
    """Number of CPU threads for each of `local_world_size` processes on this machine, at least 1.

    It assumes that the processes share the CPUs this one may use. Where the launcher binds each
    process to CPUs of its own (`srun --cpu-bind=cores`), `available_cpus()` is the right number.
    """
    if local_world_size < 1:
        raise ValueError(f"local_world_size must be at least 1, not {local_world_size}")
    return max(1, available_cpus() // local_world_size)


def cpu_model(cpu_info: Path = CPU_INFO) -> str:
    """Name of the CPU, such as "AMD EPYC 7742 64-Core Processor"; its architecture if unnamed."""
    try:
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.machine()


def _cpu_quotas(cgroup_mount: Path, cgroup_of_process: Path) -> Iterator[float]:
    """The quotas, in CPUs, of the process's control groups and of all groups around them."""
    try:
        lines = cgroup_of_process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        # cgroups(7): `0::/path` is version 2, `4:cpu,cpuacct:/path` a hierarchy of version 1.
        hierarchy, controllers, group = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            for directory in _with_parents(cgroup_mount, group):
                yield from _quota_v2(directory)
        elif "cpu" in controllers.split(","):
            for mount in {cgroup_mount / "cpu", cgroup_mount / controllers}:
                for directory in _with_parents(mount, group):
                    yield from _quota_v1(directory)


def _with_parents(mount: Path, group: str) -> list[Path]:
    """Directories of a group and of the groups around it.

    Inside a container the mount point shows the container's own group although `group` may be a
    path of the host: directories that do not exist are harmless, the mount point itself counts.
    """
    parts = [part for part in PurePosixPath(group).parts if part not in ("/", "..")]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _quota_v2(directory: Path) -> Iterator[float]:
    try:
        quota_us, period_us = (directory / "cpu.max").read_text(encoding="utf-8").split()
    except OSError:
        return
    if quota_us != "max":
        yield int(quota_us) / int(period_us)


def _quota_v1(directory: Path) -> Iterator[float]:
    try:
        quota_us = int((directory / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period_us = int((directory / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    except OSError:
        return
    if quota_us > 0:
        yield quota_us / period_us

"""What a run is made with: versions and devices, for its checkpoints and whoever reads them."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

import dali_rsb
from dali_rsb.run.processes import Processes
from dali_rsb.system.cpus import available_cpus, cpu_model


def environment(processes: Processes) -> dict[str, str]:
    """Versions by name, and under "devices" how many of which kind."""
    import nvidia.dali

    device = processes.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "dali_rsb": dali_rsb.__version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),  # its own class, which no checkpoint may hold
        "DALI": nvidia.dali.__version__,
        "devices": f"{processes.world_size} x {kind}",
    }


def machine() -> dict[str, Any]:
    """CPU, usable cores, memory, kernel, and the GPUs where there are some."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cpus_of_machine": os.cpu_count(),
        "cpus_usable": available_cpus(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": platform.release(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found

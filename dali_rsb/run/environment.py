"""What a run is made with: versions and devices, for its checkpoints and whoever reads them."""

from __future__ import annotations

import platform

import torch

import dali_rsb
from dali_rsb.run.processes import Processes


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

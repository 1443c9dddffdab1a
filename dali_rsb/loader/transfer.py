"""Host arrays as tensors on a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor, without waiting for a GPU: ready in the order of its stream."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        with torch.cuda.device(device):  # pinning would start up the current one
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor

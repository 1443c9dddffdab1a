"""The copy bandwidth of a device: what a kernel that does nothing but move bytes can reach."""

from __future__ import annotations

import statistics
import time

import torch

# Far larger than any cache: 50 MB of L2 on an H100, and of L3 on most CPUs.
GPU_BYTES = 2**30
CPU_BYTES = 2**28


def copy_bandwidth(device: torch.device, num_repeats: int = 20, num_bytes: int = 0) -> float:
    """Measure what `Tensor.copy_` from one large buffer to another reaches, median of repeats.

    Args:
        num_bytes: of the buffer; 0 for a size that no cache holds.

    Returns:
        Bytes/s, those read and those written.
    """
    num_bytes = num_bytes or (GPU_BYTES if device.type == "cuda" else CPU_BYTES)
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # touches the pages for the first time
    seconds = [_time_copy_s(source, target) for _ in range(num_repeats)]
    return 2 * num_bytes / statistics.median(seconds)


def _time_copy_s(source: torch.Tensor, target: torch.Tensor) -> float:
    if source.device.type != "cuda":
        start_s = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start_s
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    target.copy_(source)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000

"""The two ceilings of a device: bytes/s of a copy, and FLOP/s of a matrix product.

python -m benchmarks.bandwidth [--device cpu] [--dtype float16] [--output FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.cards import Card
from benchmarks.report import describe_machine, new_report, write_json
from dali_rsb.errors import UserError, run_command

# Far larger than any cache: 50 MB of L2 on an H100, and of L3 on most CPUs.
GPU_BYTES = 2**30
CPU_BYTES = 2**28
# Sides of the square matrices: large enough that more rows would not be faster.
GPU_SIDE, CPU_SIDE = 8192, 1024


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


def matrix_rate(
    device: torch.device, dtype: torch.dtype, num_repeats: int = 10, side: int = 0
) -> float:
    """Measure the product of two square matrices of random numbers, median of repeats.

    (Zeros are multiplied faster than random numbers on a GPU: they take less power.)

    Args:
        side: of the matrices; 0 for one that fills the device.

    Returns:
        FLOP/s, two a multiply-add.
    """
    side = side or (GPU_SIDE if device.type == "cuda" else CPU_SIDE)
    left, right = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        product = left @ right
    seconds = [
        _time_s(device, lambda: torch.matmul(left, right, out=product)) for _ in range(num_repeats)
    ]
    return 2 * side**3 / statistics.median(seconds)


def measured_card(device: torch.device, dtype: torch.dtype) -> Card:
    """This machine's device as the roofline takes it."""
    machine = describe_machine()
    name = machine.get("gpu", "a GPU") if device.type == "cuda" else machine["cpu"]
    return Card(name, copy_bandwidth(device), matrix_rate(device, dtype), "measured here")


def _time_copy_s(source: torch.Tensor, target: torch.Tensor) -> float:
    return _time_s(source.device, lambda: target.copy_(source))


def _time_s(device: torch.device, work: Callable[[], object]) -> float:
    if device.type != "cuda":
        start_s = time.perf_counter()
        work()
        return time.perf_counter() - start_s
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bandwidth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU here; use --device cpu")
    card = measured_card(torch.device(options.device), getattr(torch, options.dtype))
    gb_per_s, tflops = card.bytes_per_s / 1e9, card.flops_per_s / 1e12
    print(f"{card.name}: {gb_per_s:.0f} GB/s copied, {tflops:.2f} TFLOP/s in {options.dtype}")
    if options.output is not None:
        report = new_report("bandwidth", {"device": options.device, "dtype": options.dtype})
        write_json(options.output, report | {"gb_per_s": gb_per_s, "tflops": tflops})


if __name__ == "__main__":
    run_command(main)

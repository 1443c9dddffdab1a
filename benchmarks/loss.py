"""What the loss costs: BCE on mixed targets and its gradient, beside timm's on the dense target.

    python -m benchmarks.loss [--device cpu] [--batch 512] [--classes 1000] [--dtype float16]

Two cases: `A1` (smoothing 0.1) and `A2, A3` (threshold 0.2). A call makes the loss and the gradient
with respect to the logits. The floor is to read each logit and write each gradient once, at the
copy bandwidth measured in the same run; on a GPU they lie in its L2 cache, as in training, where
the layer before has just written them. timm's part is what its train.py does: `mixup_target`
builds the dense target, then `BinaryCrossEntropy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_timing import (
    COMPILED,
    DTYPES,
    OURS,
    PLAIN,
    TIMM,
    Call,
    Case,
    add_options,
    compile_obstacle,
    run_cases,
)
from dali_rsb.errors import run_command
from dali_rsb.kernels.bce import mixed_bce, mixed_bce_plain

LAM = 0.3
# Smoothing and threshold of the recipes.
VARIANTS: dict[str, tuple[float, float | None]] = {"A1": (0.1, None), "A2, A3": (0.0, 0.2)}


def make_cases(
    batch: int,
    num_classes: int,
    dtype: torch.dtype,
    device: torch.device,
    no_compile: bool = False,
) -> dict[str, Case]:
    """The cases, on random logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, num_classes, generator=generator).sub_(5).to(device, dtype)
    labels = torch.randint(num_classes, (batch,), generator=generator).to(device)
    obstacle = compile_obstacle(device, no_compile)
    return {
        name: _make_case(logits, labels, *variant, obstacle) for name, variant in VARIANTS.items()
    }


def _make_case(
    logits: Tensor,
    labels: Tensor,
    smoothing: float,
    target_threshold: float | None,
    obstacle: str | None,
) -> Case:
    batch, num_classes = logits.shape
    leaf = logits.requires_grad_()
    lam = torch.full((batch,), LAM, device=logits.device)
    sparse = (labels, labels.flip(0), lam, smoothing, target_threshold)
    candidates: dict[str, Call] = {OURS: _with_gradient(leaf, partial(mixed_bce, leaf, *sparse))}
    if logits.device.type != "cpu":  # where it serves
        candidates[PLAIN] = _with_gradient(leaf, partial(mixed_bce_plain, leaf, *sparse))
    left_out = {}
    if obstacle is None:
        compiled = torch.compile(mixed_bce_plain, dynamic=False)
        candidates[COMPILED] = _with_gradient(leaf, partial(compiled, leaf, *sparse))
    else:
        left_out[COMPILED] = obstacle
    try:
        from timm.data.mixup import mixup_target
        from timm.loss import BinaryCrossEntropy
    except ImportError as error:
        left_out[TIMM] = str(error)
    else:
        criterion = BinaryCrossEntropy(target_threshold=target_threshold).to(logits.device)

        def timm_loss() -> Any:
            return criterion(leaf, mixup_target(labels, num_classes, LAM, smoothing))

        candidates[TIMM] = _with_gradient(leaf, timm_loss)
    return Case(candidates, 2 * logits.numel() * logits.dtype.itemsize, left_out)


def _with_gradient(logits: Tensor, loss_of: Callable[[], Any]) -> Call:
    return lambda: torch.autograd.grad(loss_of(), logits)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    options = add_options(parser).parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    run_cases(
        "loss",
        {"batch": options.batch, "classes": options.classes},
        lambda: make_cases(options.batch, options.classes, dtype, device, options.no_compile),
        options,
    )


if __name__ == "__main__":
    run_command(main)

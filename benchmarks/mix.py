"""What mixing costs: from a uint8 batch to the model's input, beside timm's way to it.

    python -m benchmarks.mix [--device cpu] [--batch 256] [--size 160] [--dtype float16]

Three cases: `evaluation` (normalise and cast), `mixup` and `cutmix` (with a partner each). The
floor is to read each byte of the batch and write each result once, at the copy bandwidth measured
in the same run. timm starts from what its loader delivers, uint8 in NCHW; `timm, NHWC` starts from
ours. All end in `dtype`, channels-last. On a GPU several batches take turns, so that none is found
in its cache.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernel_timing import (
    COMPILED,
    DTYPES,
    OURS,
    PLAIN,
    ROTATED_BYTES,
    TIMM,
    Call,
    Case,
    add_options,
    compile_obstacle,
    in_rotation,
    run_cases,
)
from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.errors import run_command
from dali_rsb.kernels.mix import normalize_mix, normalize_mix_plain

MIXUP_LAM = 0.3
CUTMIX_LAM = 0.6  # a box of 40 % of the image

Mixing = tuple[Tensor, Tensor, Tensor] | tuple[()]  # partner, pixel_lam, box
_LamAndKind = tuple[float, bool] | None  # as timm's Mixup draws them; True is CutMix


def make_cases(
    batch: int,
    size_px: int,
    dtype: torch.dtype,
    device: torch.device,
    no_compile: bool = False,
    copies: int = 1,
) -> dict[str, Case]:
    """The cases, on random images.

    Args:
        copies: of the batch, which the calls of a candidate take in turn.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch, size_px, size_px, 3), dtype=torch.uint8, generator=generator
    ).to(device)
    batches = [images, *(images.clone() for _ in range(copies - 1))]
    side = round((1 - CUTMIX_LAM) ** 0.5 * size_px)
    start = (size_px - side) // 2
    partner = torch.arange(batch - 1, -1, -1, device=device)

    def drawn(pixel_lam: float, box: tuple[int, ...]) -> Mixing:
        return (
            partner,
            torch.full((batch,), pixel_lam, device=device),
            torch.tensor([box] * batch, dtype=torch.int32, device=device),
        )

    no_box, box = (0, 0, 0, 0), (start, start + side, start, start + side)
    drawings: dict[str, tuple[Mixing, _LamAndKind]] = {
        "evaluation": ((), None),
        "mixup": (drawn(MIXUP_LAM, no_box), (MIXUP_LAM, False)),
        "cutmix": (drawn(1.0, box), (CUTMIX_LAM, True)),
    }
    obstacle = compile_obstacle(device, no_compile)
    return {name: _make_case(batches, dtype, *way, obstacle) for name, way in drawings.items()}


def _make_case(
    batches: Sequence[Tensor],
    dtype: torch.dtype,
    mixing: Mixing,
    lam_and_kind: _LamAndKind,
    obstacle: str | None,
) -> Case:
    def of_ours(function: Callable[..., Tensor]) -> Call:
        options = (IMAGENET_MEAN, IMAGENET_STD, dtype, *mixing)
        return in_rotation([partial(function, images, *options) for images in batches])

    candidates: dict[str, Call] = {
        OURS: of_ours(normalize_mix),
        PLAIN: of_ours(normalize_mix_plain),
    }
    left_out = {}
    if obstacle is None:
        candidates[COMPILED] = of_ours(torch.compile(normalize_mix_plain, dynamic=False))
    else:
        left_out[COMPILED] = obstacle
    try:
        pixels = [images.permute(0, 3, 1, 2) for images in batches]
        planes = [images.contiguous() for images in pixels]
        for name, inputs in ((TIMM, planes), (f"{TIMM}, NHWC", pixels)):
            calls = [_timm_input(images, dtype, lam_and_kind) for images in inputs]
            candidates[name] = in_rotation(calls)
    except ImportError as error:
        left_out[TIMM] = str(error)
    return Case(candidates, _floor_bytes(batches[0].numel(), dtype), left_out)


def _floor_bytes(num_values: int, dtype: torch.dtype) -> int:
    return num_values * (1 + dtype.itemsize)


def _timm_input(
    images: Tensor, dtype: torch.dtype, lam_and_kind: _LamAndKind
) -> Callable[[], Tensor]:
    """What timm's loader and train.py do with a uint8 batch [B, 3, H, W] on the device.

    Lambda and kind of mixing are given; timm draws the place of the box.
    """
    from timm.data.mixup import Mixup

    mean, std = (
        torch.tensor([255 * x for x in values], device=images.device).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0)
    mixup._params_per_batch = lambda: lam_and_kind

    def prepare() -> Tensor:
        pixels = images.float().sub_(mean).div_(std)
        if lam_and_kind is not None:
            mixup._mix_batch(pixels)
        return pixels.to(dtype, memory_format=torch.channels_last)

    return prepare


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    options = add_options(parser).parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    copies = 1
    if device.type == "cuda":
        num_values = 3 * options.batch * options.size**2
        copies = math.ceil(ROTATED_BYTES / _floor_bytes(num_values, dtype))
    run_cases(
        "mix",
        {"batch": options.batch, "size_px": options.size, "copies": copies},
        lambda: make_cases(options.batch, options.size, dtype, device, options.no_compile, copies),
        options,
    )


if __name__ == "__main__":
    run_command(main)

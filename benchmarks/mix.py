"""What mixing costs: from a uint8 batch to the model's input, beside timm's way to it.

    python -m benchmarks.mix [--device cpu] [--batch 256] [--size 160] [--dtype float16]

Three cases: `evaluation` (normalise and cast), `mixup` and `cutmix` (with a partner each). The
floor is to read each byte of the batch and write each result once, at the copy bandwidth measured
in the same run. timm starts from what its loader delivers, uint8 in NCHW; `timm, NHWC` starts from
ours. All end in `dtype`, channels-last.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernel_timing import (
    COMPILED_TWIN,
    DTYPES,
    OURS,
    TIMM,
    TWIN,
    Call,
    Case,
    add_options,
    compile_obstacle,
    run_cases,
)
from dali_rsb.errors import run_command
from dali_rsb.kernels.mix import IMAGENET_MEAN, IMAGENET_STD, normalize_mix, normalize_mix_plain

MIXUP_LAM = 0.3
CUTMIX_LAM = 0.6  # a box of 40 % of the image

Mixing = tuple[Tensor, Tensor, Tensor] | tuple[()]  # partner, pixel_lam, box


def make_cases(
    batch: int, size_px: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Case]:
    """The cases, on random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch, size_px, size_px, 3), dtype=torch.uint8, generator=generator
    ).to(device)
    side = round((1 - CUTMIX_LAM) ** 0.5 * size_px)
    start = (size_px - side) // 2
    partner = torch.arange(batch - 1, -1, -1, device=device)

    def drawn(pixel_lam: float, box: tuple[int, ...]) -> Mixing:
        return (
            partner,
            torch.full((batch,), pixel_lam, device=device),
            torch.tensor([box] * batch, dtype=torch.int32, device=device),
        )

    return {
        "evaluation": _make_case(images, dtype, (), None),
        "mixup": _make_case(images, dtype, drawn(MIXUP_LAM, (0, 0, 0, 0)), (MIXUP_LAM, False)),
        "cutmix": _make_case(
            images,
            dtype,
            drawn(1.0, (start, start + side, start, start + side)),
            (CUTMIX_LAM, True),
        ),
    }


def _make_case(
    images: Tensor,
    dtype: torch.dtype,
    mixing: Mixing,
    lam_and_kind: tuple[float, bool] | None,
) -> Case:
    inputs = (images, IMAGENET_MEAN, IMAGENET_STD, dtype, *mixing)
    contenders: dict[str, Call] = {
        OURS: partial(normalize_mix, *inputs),
        TWIN: partial(normalize_mix_plain, *inputs),
    }
    left_out = {}
    obstacle = compile_obstacle(images.device)
    if obstacle is None:
        compiled = torch.compile(normalize_mix_plain, dynamic=False)
        contenders[COMPILED_TWIN] = partial(compiled, *inputs)
    else:
        left_out[COMPILED_TWIN] = obstacle
    try:
        planes = images.permute(0, 3, 1, 2)
        contenders[TIMM] = _timm_input(planes.contiguous(), dtype, lam_and_kind)
        contenders[f"{TIMM}, NHWC"] = _timm_input(planes, dtype, lam_and_kind)
    except ImportError as error:
        left_out[TIMM] = str(error)
    return Case(contenders, images.numel() * (1 + dtype.itemsize), left_out)


def _timm_input(
    images: Tensor, dtype: torch.dtype, lam_and_kind: tuple[float, bool] | None
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
    run_cases(
        "mix",
        {"batch": options.batch, "size_px": options.size},
        lambda: make_cases(options.batch, options.size, dtype, device),
        options,
    )


if __name__ == "__main__":
    run_command(main)

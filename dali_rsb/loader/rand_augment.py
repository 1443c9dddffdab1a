"""RandAugment by kernels behind the DALI pipeline: from draws, and where that is the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dali_rsb.draws.randaugment import RandAugmentDraws, RandAugmentOperands
from dali_rsb.draws.samples import TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.kernels import rand_augment as kernels
from dali_rsb.kernels.numba_support import numba_obstacle
from dali_rsb.kernels.triton_support import triton_obstacle
from dali_rsb.loader.transfer import to_device
from pipelines.types import IMAGENET_FILL

RandAugmentBackend = Literal["auto", "dali", "triton", "numba"]


def rand_augment(
    images: Tensor, draws: RandAugmentDraws, fill: tuple[int, int, int] = IMAGENET_FILL
) -> Tensor:
    """Apply RandAugment to a batch of anybody's images, with the pixels of timm on Pillow.

        policy = RandAugmentPolicy.parse("rand-m7-mstd0.5-inc1")
        uniforms = np.random.default_rng(seed).random((len(images), policy.num_uniforms))
        images = rand_augment(images, policy.draw(uniforms))

    Warps are bilinear; with that, every operation equals Pillow to the bit. On a GPU it takes two
    Triton launches a layer on the current stream, and waits for nothing.

    Args:
        images: uint8 [B, H, W, 3], RGB, on any device that has float64; they stay as they are.
        draws: of the B images.
        fill: colour of what a warp brings in from outside the image; timm's by default.

    Returns:
        uint8 [B, H, W, 3], contiguous.

    Raises:
        UserError: the images are not such a batch, or the draws are of another number of images.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise UserError(
            f"rand_augment: images must be uint8 [B, H, W, 3], not {str(images.dtype)[6:]} "
            f"{list(images.shape)}; give channels-first images as images.permute(0, 2, 3, 1)"
        )
    if len(images) != len(draws.operation):
        raise UserError(
            f"rand_augment: {len(images)} images, but draws of {len(draws.operation)}; "
            "draw as many rows of uniforms as there are images"
        )
    return apply_operands(images, draws.operands((images.shape[1], images.shape[2])), fill)


def apply_operands(
    images: Tensor,
    operands: RandAugmentOperands,
    fill: tuple[int, int, int],
    may_overwrite: bool = False,
) -> Tensor:
    """`rand_augment` with what the draws have come to; see `kernels.rand_augment`."""
    branch, value, matrix = (
        to_device(array, images.device)
        for array in (operands.branch, operands.value, operands.matrix)
    )
    return kernels.rand_augment(images, branch, value, matrix, fill, may_overwrite=may_overwrite)


def with_backend(
    transform: TrainTransform, backend: RandAugmentBackend, device: torch.device
) -> TrainTransform:
    """The transform with its RandAugment, if any, assigned to the pipeline or to the kernels.

    Args:
        backend: "auto" is the kernels where Triton works on a GPU, or Numba on a CPU; else DALI.

    Raises:
        UserError: "triton" or "numba" cannot run on the device.
    """
    if transform.randaugment is None or backend == "dali":
        return replace(transform, randaugment_by="pipeline")
    obstacles = _obstacles(device)
    if backend != "auto" and obstacles[backend] is not None:
        raise UserError(
            f"augment.backend={backend} cannot run: {obstacles[backend]}; set augment.backend=auto"
        )
    works = None in obstacles.values()
    return replace(transform, randaugment_by="kernels" if works else "pipeline")


def _obstacles(device: torch.device) -> dict[str, str | None]:
    """What keeps the kernels of each kind from running on a device."""
    if device.type == "cuda":
        return {"triton": triton_obstacle(), "numba": "it needs run.device=cpu"}
    return {"triton": "it needs a GPU", "numba": numba_obstacle()}


def describe_randaugment(transform: TrainTransform, device: torch.device) -> str | None:
    """A line for the log where RandAugment is not in the DALI pipeline."""
    if transform.randaugment is None or transform.randaugment_by == "pipeline":
        return None
    kind = "Triton" if device.type == "cuda" else "Numba"
    return f"RandAugment runs in {kind} kernels behind the DALI pipeline"

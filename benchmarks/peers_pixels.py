"""From an encoded image to an augmented one, for loaders that leave that to others.

Two ways: timm's own transforms on PIL images, and torchvision's decoder and v2 transforms on
tensors. Both give uint8 [3, size, size].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from benchmarks.peers import LoaderTask
from benchmarks.report import NotInstalledError

Pixels = Literal["timm", "tensors"]
Transform = Callable[[bytes], Tensor]


def image_transform(task: LoaderTask, pixels: Pixels, draws_filter: bool = True) -> Transform:
    """RandomResizedCrop, flip and, with "timm", the task's RandAugment.

    Args:
        draws_filter: resize by bilinear or bicubic, drawn for each image as timm does, and not by
            bilinear alone, torchvision's default.
    """
    return _Timm(task, draws_filter) if pixels == "timm" else _Tensors(task, draws_filter)


class _Timm:
    def __init__(self, task: LoaderTask, draws_filter: bool) -> None:
        try:
            from timm.data import create_transform
        except ImportError as error:
            raise NotInstalledError("timm is not installed") from error
        self._transform = create_transform(
            task.size_px,
            is_training=True,
            use_prefetcher=True,  # uint8, to be normalised on the device
            color_jitter=0.0,
            auto_augment=task.randaugment,
            interpolation="random" if draws_filter else "bilinear",
        )

    def __call__(self, encoded: bytes) -> Tensor:
        from PIL import Image

        return torch.as_tensor(self._transform(Image.open(io.BytesIO(encoded)).convert("RGB")))


class _Tensors:
    def __init__(self, task: LoaderTask, draws_filter: bool) -> None:
        try:
            from torchvision.io import ImageReadMode, decode_image
            from torchvision.transforms import InterpolationMode, v2
        except ImportError as error:
            raise NotInstalledError("torchvision is not installed") from error
        if task.randaugment is not None:
            raise NotInstalledError("torchvision's RandAugment has other operations than timm's")
        self._decode, self._mode = decode_image, ImageReadMode.RGB
        filters = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]
        crops = [
            v2.RandomResizedCrop(task.size_px, interpolation=each, antialias=True)
            for each in filters[: 1 + draws_filter]
        ]
        self._transform = v2.Compose([v2.RandomChoice(crops), v2.RandomHorizontalFlip()])

    def __call__(self, encoded: bytes) -> Tensor:
        data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        augmented: Tensor = self._transform(self._decode(data, self._mode))
        return augmented


def stack_images(samples: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """The batch of some (image, label): uint8 [B, 3, size, size] and int64 [B]."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)

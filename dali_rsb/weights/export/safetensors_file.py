"""`--to safetensors`: the tensors to the bit under timm's names, with their description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dali_rsb.errors import UserError
from dali_rsb.weights.export.config_json import metadata
from dali_rsb.weights.export.subject import Subject


def write(subject: Subject, path: Path) -> None:
    """Write the weights into a .safetensors file."""
    import safetensors.torch

    # Trained in channels-last; the format knows contiguous tensors alone, each with its own memory.
    tensors = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in subject.weights.tensors.items()
    }
    path.write_bytes(safetensors.torch.save(tensors, {"format": "pt", **metadata(subject)}))


def reload(subject: Subject, path: Path) -> Callable[[Tensor], Tensor]:
    """The model of a file that was written.

    Raises:
        UserError: a tensor is not the one that was written, to the bit.
    """
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)
    for name, tensor in subject.weights.tensors.items():
        read = tensors.get(name)
        if read is None or read.dtype != tensor.dtype or not _same_bits(read, tensor):
            raise UserError(f"{name} reads otherwise than it was written; nothing stays on disk")
    return replace(subject.weights, tensors=tensors).model()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit: NaN and the sign of zero count."""
    if a.shape != b.shape:
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)))

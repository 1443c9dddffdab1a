"""`--to torch-export`: the graph and the weights, for programs that have PyTorch alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dali_rsb.errors import UserError
from dali_rsb.weights.export.config_json import metadata
from dali_rsb.weights.export.subject import Subject


def write(subject: Subject, path: Path, with_normalisation: bool) -> None:
    """Write the model as `torch.export.save` does; the batch dimension is free."""
    program = exported_program(subject, with_normalisation)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=metadata(subject))


def reload(path: Path) -> Callable[[Tensor], Tensor]:
    """The model of a file that was written."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of how it reads its archive
        return torch.export.load(file).module()


def exported_program(subject: Subject, with_normalisation: bool) -> torch.export.ExportedProgram:
    """The model as a graph of images float32 [B, 3, H, W], for any B.

    Raises:
        UserError: PyTorch cannot trace the model.
    """
    model = traced_module(subject, with_normalisation)
    batch = torch.export.Dim("batch")
    try:
        # Two images: with one, PyTorch takes the size of the batch for a constant.
        return torch.export.export(model, (subject.images[:2],), dynamic_shapes=({0: batch},))
    except Exception as error:  # of many types: what cannot be traced, or not for every batch
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"PyTorch cannot trace {subject.weights.architecture} ({type(error).__name__}: "
            f"{reason}); use --to safetensors or hub"
        ) from error


def traced_module(subject: Subject, with_normalisation: bool) -> nn.Module:
    """The model, behind the normalisation if it is to be part of the graph."""
    if not with_normalisation:
        return subject.model
    return nn.Sequential(subject.normalise, subject.model).eval()

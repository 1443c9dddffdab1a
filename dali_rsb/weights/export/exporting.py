"""Exports weights: writes them, reloads them at once, compares, and refuses what differs.

A format is an entry in `FORMATS`: how it is written and read again, and how far its logits may be
from the eager model's.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_directory, atomic_file
from dali_rsb.weights.export import hub_folder, onnx_file, safetensors_file, torch_export_file
from dali_rsb.weights.export.comparison import Difference, compare, unusable
from dali_rsb.weights.export.subject import Subject

logger = logging.getLogger(__name__)

# Float32 sums in another order differ by about 1e-6 of the logits; onnxruntime also fuses the norms
# into the convolutions.
TORCH_BOUND, ONNX_BOUND = 1e-5, 1e-4


@dataclass(frozen=True)
class Format:
    """One way out.

    Attributes:
        suffix: of the file; of a folder, what its name ends in.
        bound: on the difference of logits, see `comparison.compare`.
        needs: packages that it takes beside PyTorch.
        is_folder: it is a folder, not a file.
        is_graph: it holds the computation, and so can hold the normalisation too.
    """

    suffix: str
    bound: float
    needs: tuple[str, ...] = ()
    is_folder: bool = False
    is_graph: bool = False


FORMATS = {
    "safetensors": Format(".safetensors", TORCH_BOUND, ("safetensors",)),
    "hub": Format("-hub", TORCH_BOUND, ("timm", "safetensors", "huggingface_hub"), is_folder=True),
    "onnx": Format(".onnx", ONNX_BOUND, ("onnx", "onnxscript", "onnxruntime"), is_graph=True),
    "torch-export": Format(".pt2", TORCH_BOUND, is_graph=True),
}


def check_options(name: str, target: Path, with_normalisation: bool, overwrite: bool) -> None:
    """Refuse, before anything is computed, what cannot be exported.

    Raises:
        UserError: a package is missing, weights alone cannot normalise, or something is in the
            place of the export.
    """
    format_ = FORMATS[name]
    require(*format_.needs, purpose=f"--to {name}")
    if with_normalisation and not format_.is_graph:
        raise UserError(
            f"--with-normalisation is for graphs, and --to {name} is weights alone; use --to onnx "
            "or torch-export, or leave it out"
        )
    if not target.parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {target.parent}; make it first")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UserError(f"{target} exists already; give another --output, or --overwrite")
    if target.is_dir() != format_.is_folder:
        kind = "a folder" if target.is_dir() else "no folder"
        raise UserError(f"{target} is {kind}; give another --output")
    if format_.is_folder and any(path.name not in hub_folder.FILES for path in target.iterdir()):
        raise UserError(
            f"{target} holds more than an export, which would be lost; give another --output"
        )


def require(*packages: str, purpose: str) -> None:
    """Raise a `UserError` over the first of some packages that cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"{purpose} needs {package} ({error}); run: pip install 'dali_rsb[export]'"
            ) from error


def export(
    subject: Subject, name: str, target: Path, with_normalisation: bool = False
) -> Difference:
    """Write an export, whole and compared, or nothing; it replaces what is at `target`.

    Args:
        name: one of `FORMATS`.
        with_normalisation: of a graph, take images in [0, 1] and normalise them in there.

    Returns:
        How far its logits are from the eager model's.

    Raises:
        UserError: see `check_options`; the format cannot hold the model, the disk cannot take it,
            or the logits differ by more than the format's bound.
    """
    format_ = FORMATS[name]
    write, reload = _functions(subject, name, with_normalisation)
    try:
        with _in_place(target, format_.is_folder) as new:
            write(new)
            try:
                reloaded = reload(new)
            except (UserError, OSError):
                raise
            except Exception as error:  # of whichever library reads it
                raise unusable("read", error) from error
            return compare(subject, reloaded, format_.bound, not with_normalisation)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); make room, or give another "
            "--output"
        ) from error


def _functions(
    subject: Subject, name: str, with_normalisation: bool
) -> tuple[Callable[[Path], None], Callable[[Path], Callable[[Tensor], Tensor]]]:
    """What writes a format, and what reads it again."""
    if name == "safetensors":
        return partial(safetensors_file.write, subject), partial(safetensors_file.reload, subject)
    if name == "hub":
        return partial(hub_folder.write, subject), hub_folder.reload
    module = onnx_file if name == "onnx" else torch_export_file
    return (lambda path: module.write(subject, path, with_normalisation)), module.reload


@contextlib.contextmanager
def _in_place(target: Path, is_folder: bool) -> Iterator[Path]:
    """A new file or folder beside `target`, which takes its place if the block ends well."""
    if is_folder:
        with atomic_directory(target) as folder:
            yield folder
    else:
        with atomic_file(target) as file:
            yield Path(file.name)

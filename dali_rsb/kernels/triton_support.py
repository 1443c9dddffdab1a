"""Whether this machine can run the Triton kernels."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import warnings
from pathlib import Path

from torch import Tensor


@functools.cache
def triton_obstacle() -> str | None:
    """Why no Triton kernel can be launched here, or None; whether there is a GPU is not asked."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    # Triton writes the code that launches a kernel in C and compiles it.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton finds no C compiler: install gcc or clang, or set CC"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "triton's launcher needs Python.h: install Python's development headers"
    return None


def runs_triton(tensor: Tensor) -> bool:
    """Whether a Triton kernel can serve this tensor; a GPU without Triton is warned about once."""
    if not tensor.is_cuda:
        return False
    obstacle = triton_obstacle()
    if obstacle is not None:
        _warn_once(obstacle)
    return obstacle is None


@functools.cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(f"plain PyTorch instead of fused kernels: {obstacle}", stacklevel=3)

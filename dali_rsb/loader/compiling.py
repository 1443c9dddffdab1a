"""Compiles a CPU loader's Numba kernels when it is built, not under its first batch."""

from __future__ import annotations

import importlib
import logging
import time

import torch

from dali_rsb.draws.samples import TrainTransform
from dali_rsb.kernels.numba_support import numba_obstacle

logger = logging.getLogger(__name__)

_WORTH_A_LINE_S = 3.0  # reading them from the cache takes half a second


def compile_kernels(transform: TrainTransform, device: torch.device) -> None:
    """Compile the kernels of a training loader, where Numba runs."""
    if device.type == "cuda":
        return
    if (obstacle := numba_obstacle()) is not None:
        logger.warning("images are resized by PyTorch, which takes longer: %s", obstacle)
        return
    modules = ["resize_numba"]
    if transform.randaugment is not None and transform.randaugment_by == "kernels":
        modules.append("rand_augment_numba")
    start_s = time.perf_counter()
    for module in modules:
        importlib.import_module(f"dali_rsb.kernels.{module}")
    duration_s = time.perf_counter() - start_s
    if duration_s > _WORTH_A_LINE_S:
        logger.info(
            "the loader's kernels were compiled for this CPU in %.0f s; Numba keeps them for later "
            "runs",
            duration_s,
        )

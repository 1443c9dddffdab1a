"""Whether this machine can run the Numba kernels, and running them on several threads."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Below, a thread takes longer to begin than it saves.
_IMAGES_PER_THREAD = 8


@functools.cache
def numba_obstacle() -> str | None:
    """Why no Numba kernel can be compiled here, or None."""
    if importlib.util.find_spec("numba") is None:
        return "the package numba is not installed"
    try:
        importlib.import_module("numba")
    except ImportError as error:  # such as a NumPy that is newer than Numba knows
        return f"numba cannot be imported ({error})"
    return None


def runs_numba(tensor: torch.Tensor) -> bool:
    """Whether a Numba kernel can serve this tensor."""
    return tensor.device.type == "cpu" and numba_obstacle() is None


def on_threads(kernel: Callable[[int, int], None], num_images: int) -> None:
    """Call `kernel(first, step)`, which does every `step`-th image from `first` on.

    On as many threads as PyTorch uses, where there is work for them. The threads end here: those of
    a pool that stayed would be missing in a forked child.
    """
    num_threads = max(1, min(torch.get_num_threads(), num_images // _IMAGES_PER_THREAD))
    if num_threads == 1:
        kernel(0, 1)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="randaugment") as pool:
        list(pool.map(kernel, range(num_threads), [num_threads] * num_threads))

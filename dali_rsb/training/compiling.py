"""Compiles a model, and goes on without where that fails: a run is worth more than its speed."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from dali_rsb.system.user_cache import user_cache

logger = logging.getLogger(__name__)


def compile_model(model: nn.Module) -> None:
    """Compile a model in place; the first call that cannot be compiled takes it back.

    Compiled code is kept between runs, in the user's cache, unless PyTorch is told another place.
    """
    with suppress(RuntimeError):  # this user has no home directory: PyTorch's own place
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
    # Training and evaluation each have one shape. Left to itself, PyTorch would compile the second
    # of them for any size.
    model.compile(dynamic=False)
    compiled = model._compiled_call_impl
    assert compiled is not None

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return compiled(*arguments, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise anything; without them, the call decides
            undo_compile(model, error)
            return model._call_impl(*arguments, **options)

    model._compiled_call_impl = call


def is_compiled(model: nn.Module) -> bool:
    """Whether a model's calls are compiled."""
    return model._compiled_call_impl is not None


def undo_compile(model: nn.Module, error: Exception) -> None:
    """Let a model be called without being compiled, and say so in one line."""
    model._compiled_call_impl = None
    reason = " ".join(str(error).split())[:120]
    logger.warning(
        "the model runs without torch.compile, which failed (%s: %s); set run.compile=false",
        type(error).__name__,
        reason,
    )

"""The DALI pipelines: pure functions of (encoded images, draws); no random operator inside.

This package imports neither torch nor dali_rsb and can be used on its own. It loads DALI when a
pipeline is asked for: `pipelines.types` and `pipelines.arguments` are there without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipelines.arguments import EvalArguments, TrainArguments

if TYPE_CHECKING:
    from pipelines.evaluation import eval_inputs, eval_pipeline
    from pipelines.inputs import InputSpec
    from pipelines.training import train_inputs, train_pipeline

__all__ = [
    "EvalArguments",
    "InputSpec",
    "TrainArguments",
    "eval_inputs",
    "eval_pipeline",
    "train_inputs",
    "train_pipeline",
]

_NEED_DALI = {
    "InputSpec": "pipelines.inputs",
    "eval_inputs": "pipelines.evaluation",
    "eval_pipeline": "pipelines.evaluation",
    "train_inputs": "pipelines.training",
    "train_pipeline": "pipelines.training",
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_DALI:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NEED_DALI[name]), name)

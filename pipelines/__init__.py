"""The DALI graphs: pure functions of (encoded images, draws); no random operator inside.

This package imports neither torch nor dali_rsb and can be used on its own.
"""

from pipelines.evaluation import eval_inputs, eval_pipeline
from pipelines.inputs import InputSpec
from pipelines.training import train_inputs, train_pipeline

__all__ = ["InputSpec", "eval_inputs", "eval_pipeline", "train_inputs", "train_pipeline"]

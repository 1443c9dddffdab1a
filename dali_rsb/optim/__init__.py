"""Optimizers, weight averaging and the learning-rate schedule."""

from dali_rsb.optim.ema import ModelEma, unwrap_model
from dali_rsb.optim.factory import create_optimizer
from dali_rsb.optim.groups import param_groups
from dali_rsb.optim.lamb import Lamb
from dali_rsb.optim.schedule import CosineSchedule

__all__ = [
    "CosineSchedule",
    "Lamb",
    "ModelEma",
    "create_optimizer",
    "param_groups",
    "unwrap_model",
]

"""Optimizers, weight averaging and the learning-rate schedule."""

from dali_rsb.optim.ema import ModelEma, unwrap_model
from dali_rsb.optim.factory import Backend, create_optimizer, describe_backend
from dali_rsb.optim.groups import param_groups
from dali_rsb.optim.lamb import Lamb
from dali_rsb.optim.loss_scale import LossScaler
from dali_rsb.optim.schedule import CosineSchedule

__all__ = [
    "Backend",
    "CosineSchedule",
    "Lamb",
    "LossScaler",
    "ModelEma",
    "create_optimizer",
    "describe_backend",
    "param_groups",
    "unwrap_model",
]

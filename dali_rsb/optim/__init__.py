"""Optimizers, the EMA of the weights and the learning-rate schedule."""

from dali_rsb.optim.ema import ModelEma, unwrap_model
from dali_rsb.optim.factory import Backend, create_optimizer
from dali_rsb.optim.groups import param_groups
from dali_rsb.optim.lamb import Lamb
from dali_rsb.optim.loss_scale import LossScaler
from dali_rsb.optim.protocol import describe_backend, skips_by_itself, takes_norm
from dali_rsb.optim.schedule import CosineSchedule, Cycles

__all__ = [
    "Backend",
    "CosineSchedule",
    "Cycles",
    "Lamb",
    "LossScaler",
    "ModelEma",
    "create_optimizer",
    "describe_backend",
    "param_groups",
    "skips_by_itself",
    "takes_norm",
    "unwrap_model",
]

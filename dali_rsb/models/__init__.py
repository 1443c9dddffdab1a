"""The ResNet family, with timm's parameter names, and a door to every other timm model."""

from dali_rsb.models.layers import DropPath
from dali_rsb.models.registry import (
    check_batch_of_one,
    check_input_sizes,
    create_model,
    list_models,
)
from dali_rsb.models.resnet import ResNet

__all__ = [
    "DropPath",
    "ResNet",
    "check_batch_of_one",
    "check_input_sizes",
    "create_model",
    "list_models",
]

"""dali_rsb: train ResNets with the ResNet Strikes Back recipes on NVIDIA DALI."""

__version__ = "0.1.0"

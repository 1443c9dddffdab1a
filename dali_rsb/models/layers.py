"""The two layers of the ResNet family that PyTorch does not have: DropPath and SqueezeExcite."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016, arXiv:1603.09382), as timm does it.

    In training each sample of the residual branch is zeroed with probability `drop_probability`
    and the others are divided by `1 - drop_probability`, so the expectation is unchanged. In
    evaluation it is the identity. Under one generator state the draws equal timm's.

    Args:
        drop_probability: in [0, 1).
    """

    def __init__(self, drop_probability: float) -> None:
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, ...] of any floating dtype to the same shape, dtype and memory format."""
        if not self.training or self.drop_probability == 0.0:
            return x
        keep_probability = 1.0 - self.drop_probability
        scale = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1))
        return x * scale.bernoulli_(keep_probability).div_(keep_probability)

    def extra_repr(self) -> str:
        return f"drop_probability={self.drop_probability:.4f}"


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): a gate per sample and channel.

    Args:
        num_channels: C of the input.
        ratio: width of the hidden layer as a share of C, rounded to a multiple of 8, at least 8.
    """

    def __init__(self, num_channels: int, ratio: float) -> None:
        super().__init__()
        num_hidden = max(8, int(num_channels * ratio + 4) // 8 * 8)
        # 1x1 convolutions rather than Linear: state dicts of timm hold 4-D weights here.
        self.fc1 = nn.Conv2d(num_channels, num_hidden, 1)
        self.fc2 = nn.Conv2d(num_hidden, num_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to the same shape, dtype and memory format."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(squeezed).relu()).sigmoid()

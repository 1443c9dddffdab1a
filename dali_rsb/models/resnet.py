"""ResNet, ResNet-D, SE-ResNet and ResNet-RS from one class, described by a `ResNetSpec`.

Modules are named, ordered and initialised as in timm, so that state dicts are interchangeable and
one seed gives one initial model in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dali_rsb.models.layers import DropPath, SqueezeExcite

STAGE_CHANNELS = (64, 128, 256, 512)
STEM_CHANNELS = 64
DEEP_STEM_CHANNELS = 32


@dataclass(frozen=True)
class ResNetSpec:
    """What distinguishes one member of the family from another.

    Attributes:
        block: the residual block, `BasicBlock` (two 3x3) or `Bottleneck` (1x1, 3x3, 1x1).
        num_blocks: blocks in each of the four stages.
        deep_stem: three 3x3 convolutions instead of one 7x7 (ResNet-C of arXiv:1812.01187).
        conv_stem_pool: a 3x3 convolution of stride 2 instead of the max-pool (arXiv:2103.07579).
        avg_pool_shortcut: 2x2 average pool, then a 1x1 convolution of stride 1, where the shortcut
            halves the resolution (ResNet-D of arXiv:1812.01187), instead of a strided 1x1.
        squeeze_excite_ratio: hidden width of squeeze-excite as a share of the block's output
            channels; None for no squeeze-excite.
    """

    block: type[BasicBlock] | type[Bottleneck]
    num_blocks: tuple[int, int, int, int]
    deep_stem: bool = False
    conv_stem_pool: bool = False
    avg_pool_shortcut: bool = False
    squeeze_excite_ratio: float | None = None


class ResidualBlock(nn.Module):
    """What the two blocks share: `relu(drop_path(se(residual)) + downsample(x))`.

    A subclass registers its convolutions and norms first and then calls `add_merge`, which keeps
    the order of timm's state dict.
    """

    expansion: ClassVar[int]
    last_norm_name: ClassVar[str]

    def add_merge(
        self, out_channels: int, ratio: float | None, downsample: nn.Module, drop_path: float
    ) -> None:
        """Register the modules that act after the last norm."""
        self.se = nn.Identity() if ratio is None else SqueezeExcite(out_channels, ratio)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def merge(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Finish the block; writes into `residual`, never into `x`."""
        residual = self.drop_path(self.se(residual))
        residual += self.downsample(x)
        return self.relu(residual)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions; ResNet-18 and 34."""

    expansion = 1
    last_norm_name = "bn2"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        downsample: nn.Module,
        squeeze_excite_ratio: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add_merge(channels, squeeze_excite_ratio, downsample, drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.merge(residual, x)


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions; the stride is in the 3x3 (ResNet v1.5)."""

    expansion = 4
    last_norm_name = "bn3"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        downsample: nn.Module,
        squeeze_excite_ratio: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.add_merge(out_channels, squeeze_excite_ratio, downsample, drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.merge(residual, x)


class ResNet(nn.Module):
    """A residual network for classification.

    Built in float32 and the default memory format; `.to(memory_format=torch.channels_last)`,
    autocast, `torch.compile` and CUDA graphs all apply, since nothing depends on the data.

    Convolutions start from He's normal initialisation by fan-out, the last norm of every block
    from weight zero (arXiv:1706.02677, section 5.1), and the classifier from PyTorch's default.

    Args:
        spec: which member of the family.
        num_classes: outputs of the classifier.
        drop_path: stochastic-depth rate of the last block; block j of n has `drop_path * j/(n-1)`.
        dropout: probability of dropout before the classifier, the only place that has any.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = deep_stem() if spec.deep_stem else convolution(3, STEM_CHANNELS, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        # timm keeps the name `maxpool` for the convolution that replaces it.
        self.maxpool = conv_stem_pool() if spec.conv_stem_pool else nn.MaxPool2d(3, 2, padding=1)
        drop_path_rates = linear_drop_path_rates(drop_path, spec.num_blocks)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            residual_stage(spec, index, rates) for index, rates in enumerate(drop_path_rates)
        )
        self.dropout = nn.Dropout(dropout) if dropout > 0.0 else nn.Identity()
        self.num_features = STAGE_CHANNELS[-1] * spec.block.expansion  # under timm's name
        self.fc = nn.Linear(self.num_features, num_classes)
        self.reset_convolutions_and_last_norms()

    def reset_convolutions_and_last_norms(self) -> None:
        """Replace PyTorch's default initialisation where the family has another."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, ResidualBlock):
                nn.init.zeros_(module.get_parameter(f"{module.last_norm_name}.weight"))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of the parameters' layers in the order of depth, as timm's: stem and blocks.

        Args:
            coarse: a layer is a stage, not a block.
        """
        return {
            "stem": r"^conv1|bn1|maxpool",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images [B, 3, H, W], any memory format, to logits [B, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(x.mean((2, 3))))


def linear_drop_path_rates(drop_path: float, num_blocks: tuple[int, ...]) -> list[list[float]]:
    """Return the rate of every block, stage by stage: 0 for the first, `drop_path` for the last."""
    last = sum(num_blocks) - 1
    rates = iter([drop_path * index / last for index in range(last + 1)])
    return [[next(rates) for _ in range(length)] for length in num_blocks]


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the resolution."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


def deep_stem() -> nn.Sequential:
    """Three 3x3 convolutions of 32, 32 and 64 channels; the norm after the last is `bn1`."""
    return nn.Sequential(
        convolution(3, DEEP_STEM_CHANNELS, 3, stride=2),
        nn.BatchNorm2d(DEEP_STEM_CHANNELS),
        nn.ReLU(inplace=True),
        convolution(DEEP_STEM_CHANNELS, DEEP_STEM_CHANNELS, 3),
        nn.BatchNorm2d(DEEP_STEM_CHANNELS),
        nn.ReLU(inplace=True),
        convolution(DEEP_STEM_CHANNELS, STEM_CHANNELS, 3),
    )


def conv_stem_pool() -> nn.Sequential:
    """The ResNet-RS replacement of the max-pool."""
    return nn.Sequential(
        convolution(STEM_CHANNELS, STEM_CHANNELS, 3, stride=2),
        nn.BatchNorm2d(STEM_CHANNELS),
        nn.ReLU(inplace=True),
    )


def shortcut_projection(
    in_channels: int, out_channels: int, stride: int, avg_pool: bool
) -> nn.Sequential:
    """The shortcut of a block that changes the number of channels or the resolution."""
    norm = nn.BatchNorm2d(out_channels)
    if not avg_pool:
        return nn.Sequential(convolution(in_channels, out_channels, 1, stride), norm)
    # ceil_mode keeps the size equal to the strided 3x3 of the other branch at odd resolutions.
    pool = (
        nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        if stride > 1
        else nn.Identity()
    )
    return nn.Sequential(pool, convolution(in_channels, out_channels, 1), norm)


def residual_stage(
    spec: ResNetSpec, stage_index: int, drop_path_rates: list[float]
) -> nn.Sequential:
    """One stage; every stage but the first halves the resolution in its first block."""
    channels = STAGE_CHANNELS[stage_index]
    out_channels = channels * spec.block.expansion
    if stage_index == 0:
        in_channels, stride = STEM_CHANNELS, 1
    else:
        in_channels, stride = STAGE_CHANNELS[stage_index - 1] * spec.block.expansion, 2
    downsample: nn.Module = nn.Identity()
    if stride > 1 or in_channels != out_channels:
        # Built before its block, as timm does: random draws then come in the same order.
        downsample = shortcut_projection(in_channels, out_channels, stride, spec.avg_pool_shortcut)
    blocks = []
    for drop_path in drop_path_rates:
        blocks.append(
            spec.block(
                in_channels, channels, stride, downsample, spec.squeeze_excite_ratio, drop_path
            )
        )
        in_channels, stride, downsample = out_channels, 1, nn.Identity()
    return nn.Sequential(*blocks)

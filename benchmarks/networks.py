"""The shapes of a ResNet's layers, in the groups that a training step can fuse.

They are read off the model itself, which runs once on PyTorch's meta device: shapes without memory
or arithmetic. `benchmarks.roofline` counts bytes and floating-point operations from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.models.layers import DropPath, SqueezeExcite
from dali_rsb.models.resnet import ResidualBlock, ResNet


@dataclass(frozen=True)
class Conv:
    """A convolution, or the linear layer at the end, which is one of 1x1.

    Attributes:
        in_values, out_values: of the activations of one image.
        weights: of the whole layer; a bias is counted in `biases`.
        flops: of the forward pass of one image, two a multiply-add.
        wants_input_gradient: false for the layer that reads the images.
    """

    name: str
    in_values: int
    out_values: int
    weights: int
    flops: int
    kernel_size: int
    biases: int = 0
    wants_input_gradient: bool = True


@dataclass(frozen=True)
class NormedConv:
    """A convolution, the batch norm of `channels` behind it, and the ReLU behind that, if any."""

    conv: Conv
    norm: str
    channels: int
    relu: str | None


@dataclass(frozen=True)
class Pool:
    """A pooling layer: values of one image before and after it."""

    name: str
    in_values: int
    out_values: int


@dataclass(frozen=True)
class Squeeze:
    """Squeeze-and-excitation of `values` activations in `channels`, gated by two small layers."""

    name: str
    values: int
    channels: int
    layers: tuple[Conv, Conv]


@dataclass(frozen=True)
class Block:
    """A residual block: convolutions in a row, and what comes in the other way.

    Attributes:
        shortcut: convolution and norm of the shortcut; None where it is the identity.
        shortcut_pool: the average pool before that convolution, or None.
        squeeze: acts behind the last norm, or None.
        has_drop_path: whether stochastic depth acts on the residual.
    """

    name: str
    in_values: int
    convs: tuple[NormedConv, ...]
    shortcut: NormedConv | None
    shortcut_pool: Pool | None
    squeeze: Squeeze | None
    has_drop_path: bool

    @property
    def out_values(self) -> int:
        """Values of the block's output for one image."""
        return self.convs[-1].conv.out_values


@dataclass(frozen=True)
class Network:
    """All layers from the images to the logits, in their order."""

    stem: tuple[NormedConv, ...]
    max_pool: Pool | None
    blocks: tuple[Block, ...]
    mean_pool: Pool
    classifier: Conv
    parameters: int
    image_values: int

    @property
    def convs(self) -> Iterator[NormedConv]:
        """Every convolution with a norm."""
        yield from self.stem
        for block in self.blocks:
            yield from block.convs
            if block.shortcut is not None:
                yield block.shortcut


def network_of(
    model_name: str, size_px: int, num_classes: int = 1000, drop_path: float = 0.0
) -> Network:
    """The layers of one of our models for square images of `size_px`.

    Raises:
        UserError: the model is timm's, whose layers are not known here.
    """
    with torch.device("meta"):
        model = create_model(model_name, num_classes, drop_path)
    if not isinstance(model, ResNet):
        raise UserError(
            f"model.name={model_name}: the roofline knows the layers of the built-in models alone; "
            "take one of those, such as model.name=resnet50"
        )
    return _Reader(model, size_px).network()


class _Reader:
    """Puts the layers of a model together from the shapes that went through them."""

    def __init__(self, model: ResNet, size_px: int) -> None:
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._values: dict[str, tuple[int, int]] = {}
        handles = [
            module.register_forward_hook(self._record(name))
            for name, module in model.named_modules()
        ]
        images = torch.empty((1, 3, size_px, size_px), device="meta")
        model.eval()(images)
        for handle in handles:
            handle.remove()
        self._image_values = images.numel()

    def _record(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._values[name] = (args[0].numel(), output.numel())

        return record

    def network(self) -> Network:
        model, values = self._model, self._values
        stem = self._chain([model.conv1, model.bn1, model.relu])
        max_pool: Pool | None = None
        if isinstance(model.maxpool, nn.MaxPool2d):
            max_pool = Pool("maxpool", *values["maxpool"])
        else:
            stem += self._chain([model.maxpool])
        blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
        classifier = self._conv(model.fc)
        return Network(
            tuple(stem),
            max_pool,
            tuple(self._block(block) for block in blocks),
            Pool("mean", values["layer4"][1], classifier.in_values),
            classifier,
            sum(p.numel() for p in model.parameters()),
            self._image_values,
        )

    def _block(self, block: ResidualBlock) -> Block:
        name = self._names[block]
        children = dict(block.named_children())
        chain = [
            child
            for key, child in children.items()
            if key.startswith(("conv", "bn")) and not isinstance(child, nn.Identity)
        ]
        convs = self._chain(_with_relus(chain, block.relu))
        shortcut, pool = None, None
        if not isinstance(block.downsample, nn.Identity):
            (shortcut,) = self._chain([block.downsample])
            for module in block.downsample.modules():
                if isinstance(module, nn.AvgPool2d):
                    pool = Pool(self._names[module], *self._values[self._names[module]])
        squeeze = None
        if isinstance(block.se, SqueezeExcite):
            layers = (self._conv(block.se.fc1), self._conv(block.se.fc2))
            squeeze = Squeeze(
                self._names[block.se],
                self._values[self._names[block.se]][1],
                block.se.fc1.in_channels,
                layers,
            )
        return Block(
            name,
            self._values[name][0],
            tuple(convs),
            shortcut,
            pool,
            squeeze,
            isinstance(block.drop_path, DropPath),
        )

    def _chain(self, modules: Sequence[nn.Module]) -> list[NormedConv]:
        """Convolutions with the norm and the ReLU that follow each, Sequentials taken apart."""
        leaves = [
            leaf
            for module in modules
            for leaf in (module if isinstance(module, nn.Sequential) else [module])
            if isinstance(leaf, nn.Conv2d | nn.BatchNorm2d | nn.ReLU)
        ]
        chain = []
        for position, leaf in enumerate(leaves):
            if not isinstance(leaf, nn.Conv2d):
                continue
            norm, *rest = leaves[position + 1 : position + 3]
            relu = self._names[rest[0]] if rest and isinstance(rest[0], nn.ReLU) else None
            chain.append(NormedConv(self._conv(leaf), self._names[norm], leaf.out_channels, relu))
        return chain

    def _conv(self, module: nn.Module) -> Conv:
        name = self._names[module]
        in_values, out_values = self._values[name]
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weights, bias = module.weight.numel(), module.bias
        channels = module.weight.shape[0]
        is_conv = isinstance(module, nn.Conv2d)
        return Conv(
            name,
            in_values,
            out_values,
            weights,
            2 * out_values * weights // channels,
            math.isqrt(math.prod(module.weight.shape[2:])) if is_conv else 1,
            0 if bias is None else bias.numel(),
            # The one that sees the images, of which nobody asks a gradient.
            not (is_conv and name in ("conv1", "conv1.0")),
        )


def _with_relus(chain: Sequence[nn.Module], relu: nn.Module) -> list[nn.Module]:
    """A block's layers with the ReLU that it calls behind every norm but the last."""
    layers: list[nn.Module] = []
    for module in chain:
        layers += [module, relu] if isinstance(module, nn.BatchNorm2d) else [module]
    return layers[:-1]

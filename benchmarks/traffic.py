"""What each kernel of an update reads, writes and computes, from the shapes of its tensors.

Each tensor that a kernel must read or write is moved once; nothing stays in a cache from one kernel
to the next. Four ways to cut an update into kernels:

`eager`: one for each operation of PyTorch; batch norm reads its input twice, for the statistics
and to normalise.
`compiled`: convolutions as they are; norm, ReLU, squeeze-excite's gate and the addition of the
shortcut share one kernel forwards, and one for the sums and one to apply them backwards.
`fused 1x1`: 1x1 convolutions also normalise what they read and gather the statistics of what they
write, in either direction; nothing that is normalised lies in memory between two of them.
`fused`: all convolutions do, and the max-pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.networks import Block, Conv, Network, NormedConv, Squeeze

Variant = Literal["eager", "compiled", "fused 1x1", "fused"]
VARIANTS: tuple[Variant, ...] = ("eager", "compiled", "fused 1x1", "fused")
Phase = Literal["forward", "backward", "update"]
INDEX_BYTES = {"eager": 8}  # of a max-pool's choice; compiled code keeps one byte
# Passes over float32 parameters of an optimizer's update. LAMB reads parameter, gradient and both
# moments and writes the moments; then, with the trust ratios, reads parameter and moments again
# and writes the parameter.
OPTIMIZER_PASSES = {"lamb": 10, "adamw": 7, "sgd": 5}
EMA_PASSES = 2


@dataclass(frozen=True)
class Kernel:
    """One pass over memory.

    Attributes:
        layer: name of the module it belongs to, as in the state dict.
        values: activations of one image that are read or written, in the model's precision.
        flops: of one image.
        weights: values of a whole batch that are read or written in the model's precision.
        image_bytes, batch_bytes: what is moved in another precision.
    """

    layer: str
    phase: Phase
    values: float = 0
    flops: float = 0
    weights: int = 0
    image_bytes: float = 0
    batch_bytes: float = 0

    def bytes_of(self, batch: int, itemsize: int) -> float:
        """Bytes that it moves for a batch."""
        scaled = (self.values * batch + self.weights) * itemsize
        return scaled + self.image_bytes * batch + self.batch_bytes

    def flops_of(self, batch: int) -> float:
        """Floating-point operations for a batch."""
        return self.flops * batch


class _Counter:
    """Collects the kernels of the forward and the backward pass of a network in one variant."""

    def __init__(self, network: Network, variant: Variant) -> None:
        self.kernels: list[Kernel] = []
        self._network = network
        self._variant = variant
        self._is_eager = variant == "eager"
        self._count()

    def _fuses(self, conv: Conv | None) -> bool:
        """Whether a convolution normalises what it reads and sums up what it writes."""
        if conv is None or self._variant in ("eager", "compiled"):
            return False
        return self._variant == "fused" or conv.kernel_size == 1

    def _add(
        self,
        layer: str,
        phase: Phase,
        values: float,
        image_bytes: float = 0,
        batch_bytes: float = 0,
    ) -> None:
        kernel = Kernel(layer, phase, values, image_bytes=image_bytes, batch_bytes=batch_bytes)
        self.kernels.append(kernel)

    def _count(self) -> None:
        network = self._network
        followers: list[Conv | None] = [unit.conv for unit in network.stem[1:]]
        followers.append(None if network.max_pool else network.blocks[0].convs[0].conv)
        for unit, follower in zip(network.stem, followers, strict=True):
            is_fused = self._fuses(follower) or (follower is None and self._variant == "fused")
            self._normed_conv(unit, is_fused)
        if (pool := network.max_pool) is not None:
            index_bytes = INDEX_BYTES.get(self._variant, 1) * pool.out_values
            moved = pool.in_values + pool.out_values
            self._add(pool.name, "forward", moved, image_bytes=index_bytes)
            self._add(pool.name, "backward", moved, image_bytes=index_bytes)
        for block, next_block in zip(network.blocks, [*network.blocks[1:], None], strict=True):
            self._block(block, next_block)
        mean = network.mean_pool
        self._add(mean.name, "forward", mean.in_values + mean.out_values)
        if self._is_eager:
            self._add(mean.name, "backward", mean.in_values + mean.out_values)
        self._conv(network.classifier)

    def _conv(self, conv: Conv, extra: float = 0) -> None:
        """A convolution alone; backwards it reads `extra` values more in each of its kernels."""
        moved, weights = conv.in_values + conv.out_values, conv.weights
        bias_bytes = 4 * conv.biases
        forward = Kernel(conv.name, "forward", moved, conv.flops, weights, batch_bytes=bias_bytes)
        to_input = Kernel(conv.name, "backward", moved + extra, conv.flops, weights)
        to_weights = replace(to_input, batch_bytes=bias_bytes)
        self.kernels += [forward, to_weights]
        if conv.wants_input_gradient:
            self.kernels.append(to_input)

    def _normed_conv(self, unit: NormedConv, consumer_fuses: bool) -> None:
        """Convolution, norm and ReLU, whose output goes to one consumer.

        That one normalises for itself if `consumer_fuses`, and its backward kernel then masks the
        gradient and gathers the norm's two sums, for which it reads the convolution's output.
        """
        n, is_fused = unit.conv.out_values, self._fuses(unit.conv)
        self._conv(unit.conv, extra=n if is_fused else 0)
        if self._is_eager:
            self._eager_norm(unit)
            return
        if not is_fused:
            self._statistics(unit)
        if consumer_fuses:
            self._add(unit.norm, "backward", n)
        else:
            self._add(unit.norm, "forward", 2 * n)
            self._add(unit.norm, "backward", 3 * n)  # gradient, output (where ReLU cut), input
        if not is_fused:
            # Where the gradient is masked already, the output need not be read for it again.
            self._apply(unit, 3 if consumer_fuses else 4)

    def _statistics(self, unit: NormedConv) -> None:
        self._add(unit.norm, "forward", unit.conv.out_values, batch_bytes=_norm_bytes(unit)[0])

    def _apply(self, unit: NormedConv, passes: int) -> None:
        values = passes * unit.conv.out_values
        self._add(unit.norm, "backward", values, batch_bytes=_norm_bytes(unit)[1])

    def _eager_norm(self, unit: NormedConv) -> None:
        n, (forward_bytes, backward_bytes) = unit.conv.out_values, _norm_bytes(unit)
        self._add(unit.norm, "forward", 3 * n, batch_bytes=forward_bytes)
        self._add(unit.norm, "backward", 5 * n, batch_bytes=backward_bytes)
        if unit.relu is not None:
            self._eager_relu(unit.relu, n)

    def _eager_relu(self, name: str, n: int) -> None:
        self._add(name, "forward", 2 * n)  # in place
        self._add(name, "backward", 3 * n)

    def _block(self, block: Block, next_block: Block | None) -> None:
        for unit, follower in zip(block.convs[:-1], block.convs[1:], strict=True):
            self._normed_conv(unit, self._fuses(follower.conv))
        last, shortcut = block.convs[-1], block.shortcut
        ends = [last] if shortcut is None else [last, shortcut]
        for unit in ends:
            extra = unit.conv.out_values if self._fuses(unit.conv) else 0
            self._conv(unit.conv, extra=extra)
        if (pool := block.shortcut_pool) is not None:
            for phase in ("forward", "backward"):
                # Compiled, its backward pass is read where it is needed, as few values.
                moved = (
                    pool.out_values
                    if phase == "backward" and not self._is_eager
                    else (pool.in_values + pool.out_values)
                )
                self._add(pool.name, phase, moved)
        if self._is_eager:
            self._eager_merge(block, ends)
        else:
            self._fused_merge(block, ends, next_block)

    def _eager_merge(self, block: Block, ends: Sequence[NormedConv]) -> None:
        n = block.out_values
        for unit in ends:
            self._eager_norm(unit)
        if block.squeeze is not None:
            self._squeeze(block.squeeze, 3, 10)
        if block.has_drop_path:
            self._add(f"{block.name}.drop_path", "forward", 2 * n)
            self._add(f"{block.name}.drop_path", "backward", 2 * n)
        self._add(block.name, "forward", 3 * n)
        self._eager_relu(f"{block.name}.relu", n)
        self._add(block.name, "backward", 3 * block.in_values)  # both ways' gradients added

    def _fused_merge(
        self, block: Block, ends: Sequence[NormedConv], next_block: Block | None
    ) -> None:
        """The end of a block, `relu(norm(residual) + shortcut)`, in as few kernels as there can be.

        Forwards: reads both ways, writes the sum. Backwards: adds what came back through the next
        block and past it, masks it, gathers each norm's two sums and writes it; then applies them.
        A next convolution that fuses does the first as it reads and the second as it writes.
        """
        n = block.out_values
        next_fuses = next_block is not None and self._fuses(next_block.convs[0].conv)
        unfused = [unit for unit in ends if not self._fuses(unit.conv)]
        for unit in unfused:
            self._statistics(unit)
        if block.squeeze is not None:
            passes = (1, 2) if block.convs[-1] in unfused else (0, 0)
            self._squeeze(block.squeeze, *passes)
        self._add(block.name, "forward", 2 * n if next_fuses else 3 * n)
        sums = 2 + len(ends)  # mask, what each norm had read, and the gradient that is written
        if next_block is not None:
            past = n
            if next_block.shortcut_pool is not None:
                past = 0  # counted with the pool
            sums_values = sums * n + past + (0 if next_fuses else n)
        else:
            sums_values = sums * n  # the mean's gradient is a value a channel
        self._add(block.name, "backward", sums_values)
        for position, unit in enumerate(unfused):
            self._apply(unit, 3 if position == 0 else 2)  # they read the same gradient once

    def _squeeze(self, squeeze: Squeeze, forward_passes: int, backward_passes: int) -> None:
        """The gate, of a value a channel, and what it does to all values in so many passes."""
        channels, hidden = squeeze.channels, squeeze.layers[0].out_values
        gate = (3 * channels, 3 * channels)
        if self._is_eager:  # ReLU and sigmoid have kernels of their own
            gate = (4 * channels + 2 * hidden, 6 * channels + 3 * hidden)
        self._add(squeeze.name, "forward", forward_passes * squeeze.values + gate[0])
        self._add(squeeze.name, "backward", backward_passes * squeeze.values + gate[1])
        for layer in squeeze.layers:
            self._conv(layer)


def _norm_bytes(unit: NormedConv) -> tuple[int, int]:
    """Bytes of a norm's float32 vectors, of a value a channel, forwards and backwards.

    Forwards weight, bias, both running statistics and these written, mean and deviation of the
    batch; backwards weight, mean, deviation, and the gradients of weight and bias.
    """
    return 4 * 8 * unit.channels, 4 * 5 * unit.channels


def model_kernels(network: Network, variant: Variant) -> list[Kernel]:
    """The kernels of the forward and the backward pass."""
    return _Counter(network, variant).kernels


@dataclass(frozen=True)
class UpdateShape:
    """What an update is made of beside the model: one device's part of it.

    Attributes:
        batch: images of a micro-batch on the device.
        accumulation: micro-batches of an update.
        itemsize: bytes of an activation, 2 or 4.
        optimizer: "lamb", "adamw" or "sgd"; its state is float32.
    """

    batch: int
    accumulation: int = 1
    itemsize: int = 2
    optimizer: str = "lamb"
    has_ema: bool = True

    @property
    def images(self) -> int:
        """Images of an update."""
        return self.batch * self.accumulation


def other_kernels(network: Network, update: UpdateShape) -> list[Kernel]:
    """Mixing and loss of one micro-batch, and the weights' way to half precision and back."""
    kernels = [
        Kernel("mixing", "forward", network.image_values, image_bytes=network.image_values),
        Kernel("loss", "forward", 2 * network.classifier.out_values),  # its gradient included
    ]
    parameters = network.parameters
    if update.itemsize < 4:  # autocast: float32 to half, and the gradients back
        cast = parameters * (4 + update.itemsize)
        kernels += [
            Kernel("autocast of the weights", "forward", batch_bytes=cast),
            Kernel("autocast of the weights", "backward", batch_bytes=cast),
        ]
    return kernels


def update_bytes(network: Network, update: UpdateShape) -> float:
    """Bytes of the optimizer, the EMA and the accumulation of gradients, once an update."""
    passes = OPTIMIZER_PASSES[update.optimizer] + (EMA_PASSES if update.has_ema else 0)
    passes += 3 * (update.accumulation - 1)  # sum and gradient read, sum written
    return 4.0 * network.parameters * passes


@dataclass(frozen=True)
class LayerCost:
    """Bytes and operations of one layer for one image, its share of the batch's included."""

    layer: str
    forward_bytes: float
    backward_bytes: float
    flops: float


def layer_costs(kernels: Iterable[Kernel], batch: int, itemsize: int) -> list[LayerCost]:
    """The kernels of each layer added up, layers in their order."""
    sums: dict[str, list[float]] = {}
    for kernel in kernels:
        cost = sums.setdefault(kernel.layer, [0.0, 0.0, 0.0])
        cost[kernel.phase == "backward"] += kernel.bytes_of(batch, itemsize) / batch
        cost[2] += kernel.flops
    return [LayerCost(layer, *cost) for layer, cost in sums.items()]

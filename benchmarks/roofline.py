"""The least that one update of a model costs: bytes and floating-point operations, layer by layer.

    python -m benchmarks.roofline CONFIG [section.key=value ...] [--batch N] [--dtype float16]
                                  [--card NAME | --bandwidth GB/S --tflops TFLOP/S] [--layers]

Bytes and operations of every kernel are counted in `benchmarks.traffic`, for four ways to cut an
update into kernels: `eager`, `compiled`, `fused 1x1` and `fused`. A kernel takes the longer of its
bytes at the card's bandwidth and its operations at the card's matrix rate; the floor is their sum.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cards import Card, card_named
from benchmarks.networks import Network, network_of
from benchmarks.report import format_table, new_report, write_json
from benchmarks.traffic import (
    VARIANTS,
    LayerCost,
    UpdateShape,
    Variant,
    layer_costs,
    model_kernels,
    other_kernels,
    update_bytes,
)
from dali_rsb.config import Config, load_config
from dali_rsb.errors import UserError, run_command

# What published training runs reach of the floor: MLPerf's on H100 0.69 to 0.72, NVIDIA's
# DeepLearningExamples on A100 0.68, MLPerf's on A100 0.57.
PUBLISHED_SHARES = (0.55, 0.70)
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Floor:
    """The least time of an update of one variant on a card, and of its forward passes alone."""

    variant: Variant
    update_bytes: float
    update_flops: float
    update_s: float
    forward_s: float
    images: int

    @property
    def img_per_s(self) -> float:
        """Images/s of training at the floor."""
        return self.images / self.update_s

    @property
    def forward_img_per_s(self) -> float:
        """Images/s of an evaluation at the floor."""
        return self.images / self.forward_s

    @property
    def mb_per_image(self) -> float:
        """Megabytes that an update moves for each image."""
        return self.update_bytes / self.images / 1e6


def floor_of(network: Network, variant: Variant, update: UpdateShape, card: Card) -> Floor:
    """Every kernel at the slower of memory and arithmetic, one after the other."""
    num_bytes = flops = seconds = forward_s = 0.0
    for kernel in [*model_kernels(network, variant), *other_kernels(network, update)]:
        moved, done = kernel.bytes_of(update.batch, update.itemsize), kernel.flops_of(update.batch)
        took = max(moved / card.bytes_per_s, done / card.flops_per_s)
        num_bytes, flops, seconds = num_bytes + moved, flops + done, seconds + took
        forward_s += took if kernel.phase == "forward" else 0.0
    times = update.accumulation
    once = update_bytes(network, update)
    return Floor(
        variant,
        num_bytes * times + once,
        flops * times,
        seconds * times + once / card.bytes_per_s,
        forward_s * times,
        update.images,
    )


def update_of(config: Config, batch: int, dtype: str) -> UpdateShape:
    """The update of a configuration on one device with micro-batches of `batch` images.

    Raises:
        UserError: `dtype` is none of a training run.
    """
    if dtype not in ITEMSIZES:
        raise UserError(f"--dtype {dtype}: take one of {', '.join(ITEMSIZES)}")
    accumulation = max(1, config.optimizer.batch_size // batch)
    has_ema = config.ema.decay is not None
    return UpdateShape(batch, accumulation, ITEMSIZES[dtype], config.optimizer.name, has_ema)


def network_of_config(config: Config) -> Network:
    """The layers of a configuration's model at its training size.

    Raises:
        UserError: see `network_of`.
    """
    model = config.model
    return network_of(model.name, config.augment.size, model.num_classes, model.drop_path)


@dataclass(frozen=True)
class Roofline:
    """The floors of one update on a card, and the layers that they are made of."""

    network: Network
    update: UpdateShape
    card: Card

    @property
    def floors(self) -> dict[Variant, Floor]:
        """Each variant's."""
        return {
            variant: floor_of(self.network, variant, self.update, self.card) for variant in VARIANTS
        }

    def layers(self, variant: Variant) -> list[LayerCost]:
        """What each layer costs for an image, and the parts of an update beside the model."""
        update, network = self.update, self.network
        kernels = [*model_kernels(network, variant), *other_kernels(network, update)]
        costs = layer_costs(kernels, update.batch, update.itemsize)
        once = update_bytes(network, update) / update.images
        return [*costs, LayerCost("optimizer, EMA, sums of gradients", 0.0, once, 0.0)]

    def as_json(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "card": {
                "name": self.card.name,
                "gb_per_s": self.card.bytes_per_s / 1e9,
                "tflops": self.card.flops_per_s / 1e12,
                "source": self.card.source,
            },
            "batch": self.update.batch,
            "accumulation": self.update.accumulation,
            "itemsize": self.update.itemsize,
            "floors": {
                variant: {
                    "mb_per_image": floor.mb_per_image,
                    "gflop_per_image": floor.update_flops / floor.images / 1e9,
                    "img_per_s": floor.img_per_s,
                    "forward_img_per_s": floor.forward_img_per_s,
                }
                for variant, floor in self.floors.items()
            },
            "layers": {
                variant: {
                    cost.layer: [cost.forward_bytes, cost.backward_bytes, cost.flops]
                    for cost in self.layers(variant)
                }
                for variant in VARIANTS
            },
        }

    def floors_table(self) -> str:
        """One row a variant, in Markdown."""
        header = ["update", "MB an image", "GFLOP an image", "floor img/s", "published runs reach"]
        low, high = PUBLISHED_SHARES
        rows = [
            [
                variant,
                f"{floor.mb_per_image:.1f}",
                f"{floor.update_flops / floor.images / 1e9:.2f}",
                f"{floor.img_per_s:.0f}",
                f"{low * floor.img_per_s:.0f} to {high * floor.img_per_s:.0f}",
            ]
            for variant, floor in self.floors.items()
        ]
        return format_table(header, rows)

    def layers_table(self) -> str:
        """One row a layer: its bytes in every variant, forwards and backwards, and its FLOP."""
        costs = {
            variant: {cost.layer: cost for cost in self.layers(variant)} for variant in VARIANTS
        }
        header = ["layer", "MFLOP", *(f"{variant} kB, fwd + bwd" for variant in VARIANTS)]
        rows = []
        for layer, cost in costs["eager"].items():
            moved = []
            for variant in VARIANTS:
                found = costs[variant].get(layer)
                both = (found.forward_bytes, found.backward_bytes) if found else (0.0, 0.0)
                moved.append(" + ".join(f"{part / 1e3:.0f}" for part in both))
            rows.append([layer, f"{cost.flops / 1e6:.0f}", *moved])
        return format_table(header, rows)


def shares_of_floors(steps: Mapping[str, Any], roofline: Roofline) -> dict[str, dict[str, float]]:
    """For each candidate its images/s over each floor's; peers do no more work than ours."""
    return {
        name: {
            variant: float(f"{step['img_per_s']['median'] / floor.img_per_s:.3g}")
            for variant, floor in roofline.floors.items()
        }
        for name, step in steps.items()
    }


def roofline_text(roofline: Roofline, shares: Mapping[str, Mapping[str, float]]) -> str:
    """Layers, floors and what was reached of them, in Markdown."""
    card, names = roofline.card, list(next(iter(shares.values())))
    rows = [[name, *(f"{share[n]:.0%}" for n in names)] for name, share in shares.items()]
    return "\n\n".join(
        [
            roofline.layers_table(),
            f"{card.name}: {card.bytes_per_s / 1e9:.0f} GB/s copied, "
            f"{card.flops_per_s / 1e12:.2f} TFLOP/s multiplied ({card.source})",
            roofline.floors_table(),
            format_table(["reached of the floor", *names], rows),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/a3.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--batch", type=int, default=256, help="images of a device's micro-batch")
    parser.add_argument("--dtype", default="float16", help=", ".join(ITEMSIZES))
    add_card_arguments(parser)
    parser.add_argument("--layers", action="store_true", help="print each layer too")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_intermixed_args(arguments)
    if options.batch < 1:
        raise UserError("--batch must be at least 1")
    config = load_config(options.config, options.overrides)
    card = card_of(options)
    if card is None:
        raise UserError("give --card NAME, such as H100, or --bandwidth and --tflops")
    roofline = Roofline(
        network_of_config(config), update_of(config, options.batch, options.dtype), card
    )
    print(f"{config.name}, {config.model.name}, {card.name} ({card.source})\n")
    print(roofline.floors_table())
    if options.layers:
        print(f"\n{roofline.layers_table()}")
    if options.output is not None:
        report = new_report("roofline", {"config": config.name, "model": config.model.name})
        write_json(options.output, report | roofline.as_json())


def add_card_arguments(parser: argparse.ArgumentParser, flag: str = "--card") -> None:
    """The arguments that name a card, or say what an unknown one can do."""
    parser.add_argument(flag, dest="card", metavar="NAME", help="such as V100 or 'H100 PCIe'")
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="what a copy reaches, read and written"
    )
    parser.add_argument(
        "--tflops", type=float, metavar="TFLOP/S", help="what a 16-bit matrix product reaches"
    )


def card_of(options: argparse.Namespace) -> Card | None:
    """The card of the command line; None where none is given.

    Raises:
        UserError: it is unknown and its rates are not given, or one of them is missing.
    """
    given = (options.bandwidth, options.tflops)
    if given == (None, None):
        return None if options.card is None else card_named(options.card)
    if any(rate is None or rate <= 0 for rate in given):
        raise UserError("--bandwidth and --tflops: give both, each above 0")
    bandwidth, tflops = given
    name = options.card or "a card"
    source = f"given: {bandwidth:g} GB/s, {tflops:g} TFLOP/s"
    return Card(name, bandwidth * 1e9, tflops * 1e12, source)


if __name__ == "__main__":
    run_command(main)

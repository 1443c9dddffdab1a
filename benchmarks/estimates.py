"""Images/s of a recipe, and what can be said of them for a card that is not at hand.

Each rate says where it comes from. Those that others have published, and shares of the roofline's
floors, are estimates.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks import published_rates
from benchmarks.cards import CARDS, Card, matching_names
from benchmarks.networks import network_of
from benchmarks.roofline import (
    PUBLISHED_SHARES,
    card_of,
    floor_of,
    network_of_config,
    update_of,
)
from benchmarks.traffic import Variant
from dali_rsb.config import Config
from dali_rsb.errors import UserError
from dali_rsb.system.hours import img_per_s_of_cores

# A training pass is a forward pass and a backward pass of twice its cost.
PASSES_OF_TRAINING = 3
# What one core of an AMD EPYC took for the crop window of a 500 x 375 JPEG, the rest left to the
# GPU, with 2 cores at work: the decoder of machines whose cards have no JPEG engine, such as V100.
DECODE_MS = 0.92
# Micro-batch and precision of an estimate from the roofline; both change it by a percent.
BATCH, DTYPE = 256, "float16"


@dataclass(frozen=True)
class Rates:
    """Images/s of all GPUs together, and the seconds before the first update.

    `is_estimate`: not measured on this machine with this configuration.
    """

    train_img_per_s: float
    eval_img_per_s: float
    start_up_s: float
    source: str
    is_estimate: bool = False

    def on_gpus(self, gpus: int) -> Rates:
        """The same on so many GPUs, if each does as much as one."""
        if gpus == 1:
            return self
        return Rates(
            self.train_img_per_s * gpus,
            self.eval_img_per_s * gpus,
            self.start_up_s,
            f"{self.source}; times {gpus}",
            is_estimate=True,
        )

    def limited_by_cores(self, cores: int) -> Rates:
        """The same where `cores` decode for all of them; a JPEG engine would add to it."""
        decoded = img_per_s_of_cores(DECODE_MS, cores)
        what = f"{cores} cores decode {decoded:.0f} img/s"
        if decoded < self.train_img_per_s:
            what = f"limited by the loader: {what}"
        return Rates(
            min(self.train_img_per_s, decoded),
            min(self.eval_img_per_s, decoded),
            self.start_up_s,
            f"{self.source}; {what}",
            is_estimate=True,
        )


def estimated_rates(gpu: str, config: Config, card: Card | None) -> list[Rates]:
    """What is published about a GPU, and what the roofline says of it.

    Args:
        card: what the GPU can do; None where nothing is known about it.

    Raises:
        UserError: nothing is known about this GPU and this model.
    """
    rates = published_estimates(gpu, config)
    if card is not None and not config.model.name.startswith("timm:"):
        rates += roofline_estimates(card, config)
    if not rates:
        raise UserError(
            f"nothing is known about {config.model.name} on --gpu {gpu}; measure on the machine "
            "itself and give --rates JSON, or, for a built-in model, --bandwidth and --tflops"
        )
    return rates


def roofline_estimates(card: Card, config: Config) -> list[Rates]:
    """The shares of the eager and of the compiled floor that published runs reach."""
    variants: tuple[Variant, ...] = ("eager", "compiled")
    update = update_of(config, BATCH, DTYPE)
    network = network_of_config(config)
    model = config.model
    evaluated = network_of(model.name, config.evaluation.size, model.num_classes)
    rates = []
    for variant in variants:
        floor = floor_of(network, variant, update, card)
        of_evaluation = floor_of(evaluated, variant, update, card).forward_img_per_s
        for share in PUBLISHED_SHARES:
            rates.append(
                Rates(
                    share * floor.img_per_s,
                    share * of_evaluation / num_models(config),
                    0.0,
                    f"{card.name}, {variant}: {share:.2f} of the roofline's floor of "
                    f"{floor.img_per_s:.0f} img/s; {card.source}",
                    is_estimate=True,
                )
            )
    return rates


def published_estimates(gpu: str, config: Config) -> list[Rates]:
    """The published rates of a GPU at the sizes of a configuration, the lowest and the highest.

    There is none for another model than theirs.
    """
    found = published_rates.rates_of(gpu) if config.model.name == published_rates.MODEL else []
    rates = []
    for rate in found:
        train_range = rate.range_at(config.augment.size)
        eval_range = rate.range_at(config.evaluation.size)
        scaled = rate.size_px != config.augment.size
        for which in range(2 if scaled else 1):
            how = "as published"
            if scaled:
                power = sorted(published_rates.SIZE_EXPONENTS)[which]
                how = f"from {rate.size_px} to {config.augment.size} px by power {power:g}"
            rates.append(
                Rates(
                    train_range[which],
                    PASSES_OF_TRAINING * eval_range[which] / num_models(config),
                    0.0,
                    f"{rate.gpu}, {how}: {rate.source}",
                    is_estimate=True,
                )
            )
    return rates


def num_models(config: Config) -> int:
    """Models of an evaluation: the weights, and their average where there is one."""
    return 1 if config.ema.decay is None else 2


def card_if_known(options: argparse.Namespace) -> Card | None:
    """None for a card of which nothing but published rates may be known."""
    if (options.bandwidth, options.tflops) == (None, None):
        found = matching_names(options.card, (card.name for card in CARDS))
        if len(found) != 1:
            return None
    return card_of(options)

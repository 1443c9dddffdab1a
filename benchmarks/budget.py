"""How long a whole recipe takes: training, evaluation, start-up.

    python -m benchmarks.budget CONFIG [section.key=value ...] [--rates JSON] [--gpus N]
                                [--gpu NAME [--bandwidth GB/S --tflops TFLOP/S] [--cores N]]
                                [--images N] [--val-images N] [--output FILE]

The rates are those that benchmarks.train has measured on this machine: `--rates`, or measured now
where data.train is given. `--gpu NAME` asks for a card that is not at hand: it takes the rates that
others have published for it, each with its source, and from 0.55 to 0.70 of the floors of the
roofline, which is what published runs reach; the outcome is called an estimate. `--cores N` says
how many cores that machine has to decode with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import train
from benchmarks.estimates import Rates, card_if_known, estimated_rates, num_models
from benchmarks.report import format_table, new_report, write_json
from benchmarks.roofline import add_card_arguments
from dali_rsb.config import Config, load_config
from dali_rsb.draws.order import epoch_length
from dali_rsb.errors import UserError, run_command
from dali_rsb.system.hours import hours

IMAGENET_IMAGES, IMAGENET_VAL_IMAGES = 1_281_167, 50_000
# What the authors of the recipes say, on 4 V100.
HOURS_OF_AUTHORS = {"a3": 15.0, "a1": 4.6 * 24}
GPUS_OF_AUTHORS = 4


@dataclass(frozen=True)
class Amount:
    """What a whole run has to do.

    Attributes:
        updates_per_epoch, updates: of the optimizer.
        train_images: that go through the training step.
        evaluations: epochs that end with one.
        eval_images: that are evaluated, however many models see each.
    """

    updates_per_epoch: int
    updates: int
    train_images: int
    evaluations: int
    eval_images: int

    @classmethod
    def of(cls, config: Config, num_images: int, num_val_images: int) -> Amount:
        """The amount for datasets of these sizes.

        Raises:
            UserError: an epoch is shorter than one global batch.
        """
        global_batch, epochs = config.optimizer.batch_size, config.schedule.epochs
        per_epoch = epoch_length(num_images, config.augment.repeats) // global_batch
        if per_epoch == 0:
            raise UserError(
                f"--images {num_images} is less than optimizer.batch_size={global_batch}; "
                "lower optimizer.batch_size"
            )
        updates = min(epochs * per_epoch, config.run.max_steps or epochs * per_epoch)
        begun = -(-updates // per_epoch)  # epochs; the last of a run always has an evaluation
        every = config.evaluation.every
        evaluations = begun // every + (begun % every != 0)
        return cls(
            per_epoch, updates, updates * global_batch, evaluations, evaluations * num_val_images
        )


@dataclass(frozen=True)
class Hours:
    """How long each part of a run takes."""

    training: float
    evaluation: float
    start_up: float

    @classmethod
    def of(cls, amount: Amount, rates: Rates) -> Hours:
        return cls(
            hours(amount.train_images, rates.train_img_per_s),
            hours(amount.eval_images, rates.eval_img_per_s),
            rates.start_up_s / 3600,
        )

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.start_up


def measured_rates(report: Mapping[str, Any], config: Config) -> Rates:
    """The rates in a result of benchmarks.train.

    Raises:
        UserError: it is something else, or was measured with another model, size or optimizer.
    """
    try:
        settings = report["settings"]
        found = {
            "model.name": settings["model"],
            "augment.size": settings["size_px"],
            "optimizer.name": settings["optimizer"],
        }
        rates = Rates(
            report["triples"]["dali_rsb"]["together"]["median"],
            report["candidates"]["dali_rsb, evaluation"]["img_per_s"]["median"],
            report["facts"]["dali_rsb"]["start_up_s"],
            f"measured here: {report['machine'].get('gpu', report['machine']['cpu'])}, "
            f"{report['date'][:10]}",
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            "--rates is no result of benchmarks.train; write one with "
            "python -m benchmarks.train CONFIG --output FILE"
        ) from error
    wanted = {
        "model.name": config.model.name,
        "augment.size": config.augment.size,
        "optimizer.name": config.optimizer.name,
    }
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(
                f"--rates was measured with {key}={found[key]}, the configuration has {value}; "
                "measure again with this configuration"
            )
    return rates


@dataclass(frozen=True)
class AgainstAuthors:
    """A run against that of the recipe's authors: above 1 it takes less of either."""

    authors_hours: float
    speed_up: float
    fewer_gpu_hours: float

    @classmethod
    def of(cls, config: Config, hours: Hours, gpus: int) -> AgainstAuthors | None:
        """None where the authors do not say how long theirs took."""
        authors = HOURS_OF_AUTHORS.get(config.name)
        if authors is None:
            return None
        speed_up = authors / hours.total
        return cls(authors, speed_up, speed_up * GPUS_OF_AUTHORS / gpus)


def verdict(config: Config, comparisons: Sequence[AgainstAuthors], is_estimate: bool) -> str:
    """One line: by how much the authors' time is met, or missed."""
    slowest, fastest = (f(each.speed_up for each in comparisons) for f in (min, max))
    if slowest >= 1:
        met = "would be met" if is_estimate else "are met"
    elif fastest < 1:
        met = "would be missed" if is_estimate else "are missed"
    else:
        met = "may or may not be met"
    span = f"{slowest:.2f}" if slowest == fastest else f"{slowest:.2f} to {fastest:.2f}"
    return (
        f"{config.name.upper()}'s {comparisons[0].authors_hours:g} h on {GPUS_OF_AUTHORS} V100 "
        f"{met}: {span} times as fast"
        f"{'; an estimate, nothing of it was measured here' if is_estimate else ''}"
    )


def measure_now(options: argparse.Namespace) -> dict[str, Any]:
    """Run benchmarks.train for a minute or two; returns its result."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "train.json"
        arguments = [str(options.config), *options.overrides, "--no-timm", "--rounds", "3"]
        train.main([*arguments, "--output", str(output)])
        report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return report


def _read_rates(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --rates {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--rates {path} is no JSON; give a result of benchmarks.train") from error
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/a3.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--rates", type=Path, metavar="JSON", help="a result of benchmarks.train")
    parser.add_argument("--gpus", type=int, default=1, metavar="N")
    add_card_arguments(parser, "--gpu")
    parser.add_argument(
        "--cores", type=int, metavar="N", help="of the machine with --gpu, for all its GPUs"
    )
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES, help="for training")
    parser.add_argument("--val-images", type=int, default=IMAGENET_VAL_IMAGES)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_intermixed_args(arguments)
    if options.gpus < 1:
        raise UserError("--gpus must be at least 1")
    config = load_config(options.config, options.overrides)
    amount = Amount.of(config, options.images, options.val_images)
    if options.cores is not None and (options.cores < 1 or options.card is None):
        raise UserError("--cores must be at least 1, and goes with --gpu NAME")
    if options.card is not None:
        one_gpu = estimated_rates(options.card, config, card_if_known(options))
    elif options.rates is not None:
        one_gpu = [measured_rates(_read_rates(options.rates), config)]
    elif config.data.train is None and config.data.digits is None:
        raise UserError(
            "no rates: give --rates JSON (a result of benchmarks.train), data.train=FOLDER to "
            "measure now, or --gpu NAME for an estimate"
        )
    else:
        one_gpu = [measured_rates(measure_now(options), config)]
    rates = [rate.on_gpus(options.gpus) for rate in one_gpu]
    if options.cores is not None:
        rates = [rate.limited_by_cores(options.cores) for rate in rates]
    hours = [Hours.of(amount, rate) for rate in rates]
    print(_text(config, amount, rates, hours, options.gpus))
    if options.output is not None:
        report = new_report("budget", {"config": config.name, "gpus": options.gpus})
        report["amount"] = asdict(amount)
        report["rates"] = [asdict(rate) for rate in rates]
        report["hours"] = [asdict(each) | {"total": each.total} for each in hours]
        comparisons = [AgainstAuthors.of(config, each, options.gpus) for each in hours]
        report["comparisons"] = [None if each is None else asdict(each) for each in comparisons]
        write_json(options.output, report)


def _text(
    config: Config, amount: Amount, rates: Sequence[Rates], hours: Sequence[Hours], gpus: int
) -> str:
    comparisons = [AgainstAuthors.of(config, each, gpus) for each in hours]
    header = ["rates", "img/s", "train h", "eval h", "start s", "total h"]
    rows = [
        [
            f"{'estimate' if rate.is_estimate else 'measured'} [{number}]",
            f"{rate.train_img_per_s:.0f}",
            f"{each.training:.2f}",
            f"{each.evaluation:.2f}",
            f"{rate.start_up_s:.0f}" if rate.start_up_s else "-",
            f"{each.total:.2f}",
        ]
        for number, (rate, each) in enumerate(zip(rates, hours, strict=True), start=1)
    ]
    known = [comparison for comparison in comparisons if comparison is not None]
    if known:
        header.append("fewer GPU h")  # the authors' over these
        rows = [
            [*row, f"{comparison.fewer_gpu_hours:.2f}"]
            for row, comparison in zip(rows, known, strict=True)
        ]
    lines = [
        f"{config.name}: {amount.updates:,} updates, {amount.updates_per_epoch:,} an epoch, of "
        f"{amount.train_images:,} images; {gpus} GPU(s)",
        f"{amount.evaluations} evaluations of {num_models(config)} model(s) on "
        f"{amount.eval_images // max(amount.evaluations, 1):,} images",
        "",
        format_table(header, rows),
        *(f"[{number}] {rate.source}" for number, rate in enumerate(rates, start=1)),
    ]
    if known:
        lines += ["", verdict(config, known, any(rate.is_estimate for rate in rates))]
    if not any(rate.start_up_s for rate in rates):
        lines += [
            "start-up is not counted; published rates are ceilings: but for the RSB",
            "authors', none has RandAugment, mixing, LAMB or an EMA in it; the roofline has",
            "all but RandAugment",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)

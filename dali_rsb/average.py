"""The command `dali-rsb average SOURCE SOURCE ... --output FILE`: average several models' weights.

The sources are checkpoints, runs (their best checkpoint) or files of weights of one architecture
and one dataset: the last epochs of a run, or several fine-tunings from the same weights. With
--greedy, from the best source on, each is kept that does not lower the accuracy on the validation
images. The statistics of batch norms are computed again by a pass over training images, prepared as
for an evaluation. FILE is a .safetensors file, which every command here reads.

    dali-rsb average runs/a3/last.pt runs/a3/last-1.pt --output a3.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dali_rsb import config as cfg
from dali_rsb.config.options import OptionsParser, add_output
from dali_rsb.dataset import DatasetIndex
from dali_rsb.errors import UserError, run_command
from dali_rsb.evaluation.validation import Validation
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import Processes, processes
from dali_rsb.training.assembly import validation
from dali_rsb.training.datasets import open_training, open_validation
from dali_rsb.training.opened_weights import (
    config_of,
    default_preprocessing,
    image_batches,
    images_to_compare,
    open_as_asked,
)
from dali_rsb.weights.averaging import (
    Soup,
    averaged,
    check_alike,
    greedy_soup,
    norm_layers,
    with_norm_statistics,
)
from dali_rsb.weights.export.accuracy import KnownAccuracy, named_images
from dali_rsb.weights.export.exporting import check_options, export
from dali_rsb.weights.export.subject import Subject, completed
from dali_rsb.weights.weights import Weights

# Images on which the file is compared with the average in memory.
NUM_COMPARED = 16


def main() -> None:
    arguments = _parser().parse_args()
    if len(arguments.sources) < 2:
        raise UserError("give at least two sources to average, such as runs/a3/last.pt runs/a3")
    if arguments.output is None:
        raise UserError("--output is missing: give the file to write, as --output mean.safetensors")
    if arguments.output.suffix != ".safetensors":
        raise UserError(f"--output {arguments.output}: give a file that ends in .safetensors")
    if arguments.num_images < 2 or arguments.batch < 2:
        raise UserError("give --num-images and --batch of at least 2")
    target = arguments.output.absolute()
    check_options("safetensors", target, False, arguments.overwrite)
    with console_messages(), processes(arguments.device) as alone:
        if alone.world_size > 1:
            raise UserError("average runs in one process; start it without torchrun")
        sources, is_assumed = _opened(arguments)
        check_alike(sources)
        data = _Images(arguments, sources[0], alone)
        if arguments.greedy:
            soup = greedy_soup(sources, data.top1, data.average)
            print(_table(soup))
            weights = _with_accuracy(soup, data)
        else:
            weights = data.average(sources)
        images, images_are = images_to_compare(weights, arguments.images, NUM_COMPARED)
        export(Subject.of(weights, images, images_are, is_assumed), "safetensors", target)
    number = len(weights.run.get("averaged", [weights]))
    print(f"{target}: the mean of {number} of {len(sources)} sources")


def _parser() -> argparse.ArgumentParser:
    parser = OptionsParser("average", __doc__)
    parser.add_argument("sources", metavar="SOURCE", nargs="+")
    add_output(parser, "FILE", "a .safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier file")
    parser.add_argument(
        "--greedy", action="store_true", help="keep the sources that help, judged on --val"
    )
    parser.add_argument(
        "--weights", choices=("ema", "model"), help="of checkpoints with both; default: the EMA"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="training images for the norm statistics; default: those of the first source's run",
    )
    parser.add_argument(
        "--num-images", type=int, default=8192, metavar="N", help="so many of them (8192)"
    )
    parser.add_argument(
        "--val",
        type=Path,
        metavar="FOLDER",
        help="--greedy: images that judge; default: the validation images of that run",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--device", choices=("cuda", "cpu", "auto"), default="auto")
    parser.add_argument("--model", metavar="NAME", help="architecture of sources that name none")
    return parser


def _opened(arguments: argparse.Namespace) -> tuple[list[Weights], bool]:
    """The sources, completed; whether the preprocessing of the first is assumed."""
    found = [
        completed(
            open_as_asked(source, arguments.weights),
            arguments.model,
            None,
            default_preprocessing(),
            {},
        )
        for source in arguments.sources
    ]
    return [weights for weights, _ in found], found[0][1]


class _Images:
    """The images of a command: those for the norm statistics, and those that judge.

    Raises:
        UserError: there are none, or they do not fit the model's classes.
    """

    def __init__(self, arguments: argparse.Namespace, weights: Weights, alone: Processes) -> None:
        self._alone = alone
        self._num_images = arguments.num_images
        self.config = cfg.with_values(
            config_of(weights), {"evaluation.batch_per_device": arguments.batch}
        )
        training = self.judging = self.config.data
        if arguments.images is not None:  # whatever its classes are
            training = _elsewhere(training, train=arguments.images, classes=None)
        if arguments.val is not None:
            self.judging = _elsewhere(self.judging, val=arguments.val)
        self._train: DatasetIndex | None = None
        self._validation: Validation | None = None
        if norm_layers(weights.model()):
            if training.train is None and training.digits is None:
                raise UserError(
                    f"{weights.source} names no training images, and the norm statistics take "
                    "some; give them by --images FOLDER"
                )
            self._train = open_training(training)
        if arguments.greedy:
            self._validation = self._open_validation(weights)

    def _open_validation(self, weights: Weights) -> Validation:
        data = self.judging
        if data.val is None and data.digits is None and data.val_fraction is None:
            raise UserError(
                f"{weights.source} names no validation images, and --greedy judges by some; give "
                "them by --val FOLDER"
            )
        if weights.classes is None:
            raise UserError(
                f"{weights.source} does not name its classes, so that --greedy cannot judge; leave "
                "it out, or export the sources with --classes first"
            )
        index = open_validation(data, weights.classes, f"the classes of {weights.source}")
        return validation(self.config, index, self._alone)

    def average(self, sources: Sequence[Weights]) -> Weights:
        """The mean of some sources, with norm statistics of its own."""
        weights = averaged(sources)
        if self._train is None:
            return weights
        return with_norm_statistics(weights, self._batches(self._train), self._alone.device)

    def _batches(self, index: DatasetIndex) -> Iterator[Tensor]:
        return image_batches(self.config, index, self._num_images, self._alone)

    def top1(self, weights: Weights) -> float:
        """Accuracy on the images that judge, in percent."""
        assert self._validation is not None
        (result,) = self._validation.evaluate([weights.model().to(self._alone.device)])
        return result.top1


def _elsewhere(data: cfg.Data, **values: Any) -> cfg.Data:
    """Where images are that the user names, in place of the run's."""
    values = {
        key: value.expanduser().absolute() if isinstance(value, Path) else value
        for key, value in values.items()
    }
    return data.model_copy(update={"digits": None, "exclude": None, "val_fraction": None, **values})


def _with_accuracy(soup: Soup, data: _Images) -> Weights:
    """The soup's weights, which say how good they are, and that this has chosen them."""
    of = data.config.evaluation
    images = named_images({"config": {"data": data.judging.model_dump(mode="json")}})
    accuracy = KnownAccuracy(
        soup.top1,
        None,
        images.get("val"),
        of.size,
        of.crop_ratio,
        of.interpolation,
        has_chosen=True,
    )
    run = {**soup.weights.run, "accuracy": asdict(accuracy)}
    return replace(soup.weights, run=run)


def _table(soup: Soup) -> str:
    """What each source is worth, best first."""
    width = max(len(weights.source) for weights, _, _ in soup.trials)
    lines = [f"{'':{width}}{'top-1 %':>9}{'with it':>9}"]
    for weights, alone, with_it in soup.trials:
        is_in = any(weights is chosen for chosen in soup.ingredients)
        lines.append(
            f"{weights.source:{width}}{alone:9.3f}{with_it:9.3f}  {'kept' if is_in else 'left out'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)

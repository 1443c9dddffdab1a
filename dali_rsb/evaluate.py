"""The command `dali-rsb evaluate WEIGHTS ... DATA`: how accurate weights are on which images.

WEIGHTS: a run folder (its best checkpoint), a checkpoint, a file of weights, a folder as timm lays
it out, timm:NAME.TAG or hf:OWNER/NAME; any number of them.
DATA: a folder of class folders, tar shards, a list of images, or a flat folder with --labels.

With one word alone, it is WEIGHTS, evaluated on the validation images of their run. With several,
the last is DATA, unless --data, --suite or data.val=PATH says where the images are; then all are
WEIGHTS. Each image is decoded once for all weights that want it in the same size.

Classes are joined by their names, never by their numbers: images of a class that the weights do not
know are refused. Where the images are of some of the classes only, further rows tell how well the
weights choose among these alone, as one evaluates on ImageNet-A and -R.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from dali_rsb import config as cfg
from dali_rsb.config.arguments import ConfigParser, is_override
from dali_rsb.constants import HUB_PREFIX, TIMM_PREFIX
from dali_rsb.dataset.classes import read_class_names, shown
from dali_rsb.errors import UserError, run_command
from dali_rsb.evaluation import imagenet
from dali_rsb.evaluation.predictions import Batches
from dali_rsb.evaluation.report import (
    Row,
    check_writable,
    introduction,
    table,
    write_classes,
    write_json,
)
from dali_rsb.evaluation.rows import Model, View, check_fits, rows_of
from dali_rsb.evaluation.sets import EvaluationSet, find_sets, open_set, with_real
from dali_rsb.loader.pillow import PillowLoader
from dali_rsb.run.checkpointer import checkpoint_to_evaluate
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import Processes, processes
from dali_rsb.system.cpus import threads_per_process
from dali_rsb.training.assembly import eval_loader
from dali_rsb.training.datasets import open_other_validation, open_validation_as_found
from dali_rsb.training.subjects import OpenedSubject, open_subjects
from dali_rsb.weights.hub import is_model_folder

# What users of timm's validate.py write.
_OF_TIMM = {
    "--batch-size": "evaluation.batch_per_device=N",
    "-b": "evaluation.batch_per_device=N",
    "--workers": "data.threads=N",
    "-j": "data.threads=N",
    "--model": "model.name=NAME",
    "-m": "model.name=NAME",
    "--checkpoint": "the checkpoint as it is, before DATA",
    "--img-size": "--size PX",
    "--crop-pct": "--crop-ratio RATIO",
    "--interpolation": "evaluation.interpolation=bicubic",
    "--amp": "run.amp=auto",
    "--device": "run.device=cpu",
    "--use-ema": "--use ema",
    "--real-labels": "--real FILE",
    "--results-file": "--json FILE",
    "--data-dir": "--data DATA",
    "--num-classes": "nothing: the weights say it",
}
_OF_WEIGHTS = (".pt", ".pth", ".pth.tar", ".safetensors", ".bin")  # ends of their names


def main() -> None:
    options = _parser().parse()
    words = [options.weights, *options.overrides]
    overrides = list(filter(is_override, words))
    words, data = _split(options, list(itertools.filterfalse(is_override, words)))
    if options.crop_ratio is not None:
        overrides.append(f"evaluation.crop_ratio={options.crop_ratio}")
    check_writable("--json", options.json)
    check_writable("--per-class", options.per_class)
    real = None if options.real is None else imagenet.read_real(options.real)
    names = None if options.classes is None else read_class_names(options.classes)
    opened = open_subjects(words, options.use, overrides, options.size, names)
    subjects, config = [one.subject for one in opened], opened[0].config
    with (
        processes(config.run.device, config.run.timeout) as this_process,
        console_messages(this_process.is_first),
    ):
        with this_process.first_goes_ahead("indexing the images"):
            sets = _open_sets(options, data, config.data, real)
        plan = _plan(opened, sets, this_process)
        if this_process.is_first:
            print(introduction(subjects, sets), flush=True)
        rows = _evaluate(plan, sets, config, options, this_process)
    if this_process.is_first:
        print(table(rows))
        if options.json is not None:
            write_json(options.json, subjects, rows)
        if options.per_class is not None:
            write_classes(options.per_class, subjects, rows)


def _parser() -> ConfigParser:
    subject = "one or more, then the images"
    parser = ConfigParser("evaluate", __doc__, "WEIGHTS", subject, instead=_OF_TIMM)
    parser.usage = "dali-rsb evaluate WEIGHTS ... [DATA] [OPTIONS] [section.key=value ...]"
    images = parser.add_argument_group("which images")
    where = images.add_mutually_exclusive_group()
    where.add_argument("--data", type=_path, metavar="DATA", help="the images")
    where.add_argument(
        "--suite", type=_path, metavar="FOLDER", help="every subfolder is a set of images"
    )
    images.add_argument(
        "--labels",
        type=_path,
        metavar="FILE",
        help="classes of a flat folder: lines with FILE and CLASS, Kaggle's LOC_val_solution.csv, "
        "or ILSVRC2012_validation_ground_truth.txt with meta.mat beside it",
    )
    images.add_argument("--real", type=_path, metavar="FILE", help="ReaL's labels, real.json")
    how = parser.add_argument_group("how they are seen")
    how.add_argument(
        "--size",
        type=_sizes,
        default=[],
        metavar="PX[,PX]",
        help="side of the crop; default: the weights'",
    )
    how.add_argument(
        "--crop-ratio", metavar="RATIO", help="size / shorter edge; default: the weights'"
    )
    how.add_argument(
        "--decoder",
        choices=("dali", "pillow"),
        default="dali",
        help="pillow: by Pillow's pixels too, beside DALI's",
    )
    how.add_argument(
        "--flip", action="store_true", help="average the logits with the mirror image's"
    )
    which = parser.add_argument_group("which weights")
    which.add_argument(
        "--use",
        choices=("both", "model", "ema"),
        default="both",
        help="of a checkpoint with both: the trained weights, their EMA, or both",
    )
    which.add_argument(
        "--classes",
        type=_path,
        metavar="FILE",
        help="names of the outputs, in their order, of weights that have none",
    )
    output = parser.add_argument_group("what is written")
    output.add_argument("--json", type=_path, metavar="FILE", help="all figures with all digits")
    output.add_argument(
        "--per-class", type=_path, metavar="FILE.csv", help="counts and confusions of each class"
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _sizes(text: str) -> list[str]:
    return text.split(",")


def _split(options: argparse.Namespace, words: list[str]) -> tuple[list[str], Path | None]:
    """The words that are weights, and the images.

    Raises:
        UserError: there are no weights, or the images are named in no way or in two.
    """
    given = [options.weights, *options.overrides]
    by_key = any(word.startswith("data.val=") for word in given)
    if by_key and (options.data or options.suite):
        raise UserError("data.val names the images a second time: leave it or the option out")
    if not words:
        raise UserError("no weights are named: dali-rsb evaluate WEIGHTS ... DATA")
    if options.suite is not None and options.labels is not None:
        raise UserError(
            "--labels is of one flat folder: in a suite, put the file beside the folder, with its "
            "name and .txt or .csv"
        )
    if options.data is not None or options.suite is not None or by_key or len(words) == 1:
        return words, options.data
    last = Path(words[-1]).expanduser()
    is_folder = last.is_dir() and (checkpoint_to_evaluate(last).is_file() or is_model_folder(last))
    is_named = words[-1].endswith(_OF_WEIGHTS) or words[-1].startswith((TIMM_PREFIX, HUB_PREFIX))
    if is_folder or is_named:
        raise UserError(
            f"{shown(words[-1], 120)}, the last word, stands for the images and holds weights: "
            "name the images last, or by --data DATA"
        )
    return words[:-1], last


def _open_sets(
    options: argparse.Namespace,
    path: Path | None,
    data: cfg.Data,
    real: Sequence[Sequence[int]] | None,
) -> list[EvaluationSet]:
    """The images that the command line names, else the validation images of the first run.

    Args:
        path: of the images, if the words or --data name them.
        data: section of the first run.
    """

    opened = partial(open_other_validation, data)
    if options.suite is not None:
        return find_sets(options.suite, opened, real)
    path = path or data.val
    if path is not None:
        found = open_set(str(path), path, opened, options.labels, needs_labels=real is None)
    elif data.digits is not None or data.val_fraction is not None:
        index = open_validation_as_found(data)
        found = EvaluationSet(str(index.origin), index)
    else:
        raise UserError(
            "these weights name no validation images of their own: give images as the last word, "
            "dali-rsb evaluate WEIGHTS DATA"
        )
    return [found if real is None else with_real(found, real)]


def _plan(
    opened: Sequence[OpenedSubject], sets: Sequence[EvaluationSet], this_process: Processes
) -> dict[cfg.Evaluation, list[Model]]:
    """The models that want their images in one way, for each way.

    Whatever does not fit is said here, before hours of evaluation.

    Raises:
        UserError: weights do not fit their model, a model does not take a size, or a set has images
            of classes that a model does not know.
    """
    plan: dict[cfg.Evaluation, list[Model]] = {}
    # What is no way to see images must not keep weights from sharing a decode.
    first = opened[0].config.evaluation
    alike = {name: getattr(first, name) for name in ("every", "batch_per_device")}
    for one in opened:
        models = one.models(this_process.device)
        for images in sets:
            images.questions(one.subject.classes, models[0].whose)
        for way in one.ways:
            for model in models:
                check_fits(model, way.size)
            plan.setdefault(way.model_copy(update=alike), []).extend(models)
    return plan


def _evaluate(
    plan: dict[cfg.Evaluation, list[Model]],
    sets: Sequence[EvaluationSet],
    config: cfg.Config,
    options: argparse.Namespace,
    this_process: Processes,
) -> list[Row]:
    """All rows: for each set one pass over its images for each way in which models want them."""
    rows = []
    for images in sets:
        for way, models in plan.items():
            config = config.model_copy(update={"evaluation": way})
            samples, loader = eval_loader(config, images.index, this_process)
            loaders: dict[str, Batches] = {"DALI": loader}
            if options.decoder == "pillow":
                threads = config.data.threads or threads_per_process(this_process.local_world_size)
                loaders["Pillow"] = PillowLoader(
                    samples, way.interpolation, this_process.device, threads
                )
            view = View(samples, way.interpolation, loaders)
            with closing(loader):
                rows += rows_of(images, models, view, options.flip, this_process)
    return rows


if __name__ == "__main__":
    run_command(main)

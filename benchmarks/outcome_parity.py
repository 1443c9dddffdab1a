"""Training by this project and by timm's train.py with equal hyper-parameters: is it equally good?

    TIMM_SOURCE=CHECKOUT python -m benchmarks.outcome_parity [--seeds 10] [--output FILE]

For each of four settings both train a small ResNet with the seeds 0 to 9. A seed gives the two
different random numbers, so what is compared is the mean accuracy after the last epoch. The result
of each run is kept in `--folder`: interrupted and started again, it goes on with the next run.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import os
import runpy
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from benchmarks.drop_in import read_comparison, version_of
from benchmarks.photographs import write_cuts
from benchmarks.report import new_report, report_progress, write_json
from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.dataset.digits import write_digits
from dali_rsb.errors import UserError, run_command
from dali_rsb.system.atomic import atomic_file

MODEL = "test_resnet"  # the smallest of timm's: 370,000 parameters


@dataclass(frozen=True)
class Arguments:
    """The same settings in the words of both programs."""

    ours: str
    timms: str

    def __add__(self, other: Arguments) -> Arguments:
        return Arguments(f"{self.ours} {other.ours}", f"{self.timms} {other.timms}")


@dataclass(frozen=True)
class Images:
    """A data set: its folder's writer, and what both programs are told of it."""

    write: Callable[[Path], object]
    arguments: Arguments


def _sizes(size: int, batch: int, num_classes: int, least_area: float, hflip: float) -> Arguments:
    return Arguments(
        f"augment.size={size} evaluation.size={size} optimizer.batch_size={batch} "
        f"model.num_classes={num_classes} augment.scale=[{least_area},1.0] augment.hflip={hflip}",
        f"--img-size {size} --batch-size {batch} --num-classes {num_classes} "
        f"--scale {least_area} 1.0 --hflip {hflip}",
    )


IMAGES = {
    "digits": Images(
        lambda root: write_digits(root, val_fraction=0.5), _sizes(24, 32, 10, 0.6, 0.0)
    ),
    "photographs": Images(lambda root: write_cuts(root, 24, 30, 64), _sizes(64, 32, 20, 0.35, 0.5)),
}

# On top of the recipe A3.
_COMMON = Arguments(
    f"model.name=timm:{MODEL} run.device=cpu run.warm_up=false data.threads=1",
    f"--model {MODEL} --device cpu --workers 1 "
    f"--mean {' '.join(map(str, IMAGENET_MEAN))} --std {' '.join(map(str, IMAGENET_STD))} "
    "--train-interpolation random --interpolation bicubic --crop-pct 0.95 "
    "--aa rand-m6-mstd0.5-inc1 --sched cosine --sched-on-updates",
)
_LAMB = Arguments(
    "optimizer.lr=8e-3", "--opt lamb --lr 8e-3 --weight-decay 0.02 --bce-loss "
    "--bce-target-thresh 0.2",
)  # fmt: skip
_MIXED = Arguments("", "--mixup 0.1 --cutmix 1.0 --smoothing 0.0")
# Without mixing and without smoothing timm's train.py takes cross-entropy in spite of --bce-loss;
# with a target threshold no target feels the smoothing.
_UNMIXED = Arguments("mixing.mixup=0 mixing.cutmix=0 loss.smoothing=0.1", "--smoothing 0.1")
_SGD = Arguments(
    "optimizer.name=sgd optimizer.lr=0.1 optimizer.momentum=0.9 optimizer.nesterov=true "
    "optimizer.weight_decay=1e-4 loss.name=ce loss.target_threshold=null",
    "--opt sgd --lr 0.1 --momentum 0.9 --weight-decay 1e-4",
)


@dataclass(frozen=True)
class Setting:
    """What is trained on what for how long."""

    name: str
    images: str
    epochs: int
    recipe: Arguments

    @property
    def arguments(self) -> Arguments:
        """All that both programs are told, but for folders and seeds."""
        schedule = Arguments(
            f"schedule.epochs={self.epochs} schedule.warmup_epochs=1 schedule.warmup_lr=1e-4 "
            f"schedule.min_lr=1e-6 evaluation.every={self.epochs}",
            f"--epochs {self.epochs} --warmup-epochs 1 --warmup-lr 1e-4 --min-lr 1e-6 "
            f"--val-interval {self.epochs}",
        )
        return _COMMON + IMAGES[self.images].arguments + self.recipe + schedule


SETTINGS = (
    Setting("digits, A3", "digits", 4, _LAMB + _MIXED),
    Setting("digits, SGD and cross-entropy", "digits", 3, _SGD + _UNMIXED),
    Setting("digits, LAMB and BCE without mixing", "digits", 3, _LAMB + _UNMIXED),
    Setting("photographs, A3", "photographs", 4, _LAMB + _MIXED),
)
PROGRAMS = ("dali_rsb", "timm")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/outcome_parity"), help="images and results"
    )
    args, source = read_comparison(parser, "runs of each program and setting")
    # The server's and its children's paths: timm, of which both take the model, is the checkout's.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), *sys.path])
    sys.path.insert(0, str(source))
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["timm", "dali_rsb.training.assembly"])  # once for all runs
    runs = Runs(args.folder.absolute(), source, server)
    top1: dict[str, dict[str, list[float]]] = {
        setting.name: {program: [] for program in PROGRAMS} for setting in SETTINGS
    }
    # Seed after seed, so that what an interrupted comparison has is of all settings.
    for seed in range(args.seeds):
        for setting in SETTINGS:
            for program in PROGRAMS:
                value = runs.accuracy(program, setting, seed)
                top1[setting.name][program].append(value)
                report_progress(f"seed {seed}, {setting.name}, {program}: {value:.2f} %")
    arguments = {setting.name: asdict(setting.arguments) for setting in SETTINGS}
    report = new_report(
        "outcome_parity",
        {"seeds": args.seeds, "timm": version_of(source), "arguments": arguments},
    )
    report["results"] = summarize(top1)
    print(json.dumps(report["results"], indent=2))
    if args.output is not None:
        write_json(args.output, report)


class Runs:
    """Accuracies of runs, each trained once.

    Args:
        folder: for the images and for the result of each run.
        source: checkout of timm's repository; dali_rsb alone needs none.
        server: makes the processes.
    """

    def __init__(self, folder: Path, source: Path | None, server: ForkServerContext) -> None:
        self.folder = folder
        self.source = source
        self._server = server

    def accuracy(self, program: str, setting: Setting, seed: int) -> float:
        """Top-1 in percent after the last epoch; trains, unless that was done before.

        Raises:
            UserError: the program failed; its output is in the folder.
        """
        words = self._words(program, setting, seed)
        result = self.folder / "results" / f"{self._output(program, setting, seed).name}.json"
        if result.exists():
            known = json.loads(result.read_text(encoding="utf-8"))
            if known["words"] == words:
                return float(known["top1"])
        images = self.folder / setting.images
        if not images.exists():
            IMAGES[setting.images].write(images)
        top1 = self._train(program, words, self._output(program, setting, seed))
        result.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(result) as file:
            file.write(json.dumps({"words": words, "top1": top1}, indent=2).encode())
        return top1

    def _output(self, program: str, setting: Setting, seed: int) -> Path:
        name = f"{setting.name} {program} {seed}"
        return self.folder / "runs" / "-".join(name.replace(",", "").split())

    def _words(self, program: str, setting: Setting, seed: int) -> list[str]:
        """The command line of a run, without the program."""
        images, output = self.folder / setting.images, self._output(program, setting, seed)
        if program == "dali_rsb":
            folders = f"data.train={images}/train data.val={images}/val run.dir={output}"
            return f"a3 {setting.arguments.ours} run.seed={seed} {folders}".split()
        folders = f"--data-dir {images} --output {output.parent} --experiment {output.name}"
        return f"{setting.arguments.timms} --seed {seed} {folders}".split()

    def _train(self, program: str, words: list[str], output: Path) -> float:
        shutil.rmtree(output, ignore_errors=True)  # of a run that was interrupted
        output.parent.mkdir(parents=True, exist_ok=True)
        log = output.with_suffix(".log")
        script = None if program == "dali_rsb" else Path(self.source or "") / "train.py"
        process = self._server.Process(target=_run, args=(script, words, log))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise UserError(f"{program} failed with exit code {process.exitcode}: see {log}")
        if script is None:
            return _last_value(output / "metrics.csv", "val_top1")
        return _last_value(output / "summary.csv", "eval_top1")


def _run(script: Path | None, words: list[str], log: Path) -> None:
    """What a child of the fork server does: run one program, one thread, its output in a file."""
    import torch

    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as where a shell has started the program
    sys.argv = [str(script or "train"), *words]
    if script is not None:
        runpy.run_path(str(script), run_name="__main__")
        return
    from dali_rsb import train

    run_command(train.main)


def _last_value(path: Path, name: str) -> float:
    with path.open(encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1][name])


def summarize(top1: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """For each setting the mean and deviation of both programs, and whether the means agree.

    The difference's standard error is that of two independent means.

    Args:
        top1: accuracies in percent by setting and program, one for each seed.
    """
    results = {}
    for name, accuracies in top1.items():
        means = {program: statistics.mean(values) for program, values in accuracies.items()}
        error = math.sqrt(
            sum(statistics.variance(values) / len(values) for values in accuracies.values())
        )
        difference = means["dali_rsb"] - means["timm"]
        results[name] = {
            "mean": means,
            "deviation": {
                program: statistics.stdev(values) for program, values in accuracies.items()
            },
            "difference": difference,
            "standard_error": error,
            "within_two_standard_errors": abs(difference) <= 2 * error,
            "top1": {program: list(values) for program, values in accuracies.items()},
        }
    return results


if __name__ == "__main__":
    run_command(main)

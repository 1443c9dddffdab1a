"""Fine-tuning by `dali-rsb finetune` and by timm's train.py: are they equally good?

    TIMM_SOURCE=CHECKOUT python -m benchmarks.finetune_parity [--seeds 10] [--output FILE]

timm's train.py first trains a small ResNet on grey cuts from six photographs. Both then go on from
its weights on 200 cuts from four others, with the same hyper-parameters and the same seeds, and are
judged after the last epoch on 400 more. A seed gives the two programs different random numbers:
what is compared is the mean of the paired differences with its standard error.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drop_in import read_comparison, run_script, version_of
from benchmarks.report import new_report, write_json
from dali_rsb.errors import UserError, run_command

MODEL, SIZE, EPOCHS, BATCH = "test_resnet", 48, 10, 16
NUM_TRAIN, NUM_VAL = 50, 100  # of each class

_SHARED = f"--model {MODEL} --img-size {SIZE} --device cpu --workers 1 --crop-pct 0.95 "
PRETRAINING = (
    f"{_SHARED} --num-classes 6 --opt adamw --lr 3e-3 --weight-decay 0.05 --epochs 12 "
    "--warmup-epochs 1 --batch-size 32 --scale 0.35 1.0 --seed 99 --val-interval 12"
)
TIMM = (
    f"{_SHARED} --num-classes 4 --opt adamw --lr 2e-3 --weight-decay 0.05 --layer-decay 0.9 "
    f"--sched cosine --sched-on-updates --epochs {EPOCHS} --warmup-epochs 1 --warmup-lr 1e-6 "
    f"--min-lr 1e-6 --batch-size {BATCH} --smoothing 0.1 --aa rand-m5-mstd0.5-inc1 "
    f"--scale 0.35 1.0 --hflip 0.5 --train-interpolation random --val-interval {EPOCHS}"
)
# The rest is the recipe's own.
OURS = (
    f"optimizer.lr=2e-3 schedule.epochs={EPOCHS} schedule.warmup_epochs=1 "
    f"optimizer.batch_size={BATCH} augment.size={SIZE} evaluation.size={SIZE} "
    f"evaluation.crop_ratio=0.95 evaluation.every={EPOCHS} run.device=cpu run.warm_up=false "
    "data.threads=1"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args, source = read_comparison(parser, "paired runs")
    with tempfile.TemporaryDirectory() as folder:
        report = compare(source, Path(folder), args.seeds)
    print(json.dumps(report, indent=2))
    if args.output is not None:
        write_json(args.output, report)


def compare(source: Path, folder: Path, num_seeds: int) -> dict[str, Any]:
    """Fine-tune with both, seed by seed."""
    photographs = read_photographs()
    write_cuts(folder / "old", photographs[4:], seed=0)
    write_cuts(folder / "new", photographs[:4], seed=1)
    by_timm(source, folder, "old", f"{PRETRAINING} --output {folder / 'old_runs'}")
    weights = folder / "old_runs/run/last.pth.tar"
    report = new_report(
        "finetune_parity",
        {
            "pretraining": PRETRAINING,
            "timm_arguments": TIMM,
            "our_arguments": OURS,
            "timm": version_of(source),
        },
    )
    runs: list[dict[str, float]] = []
    for seed in range(num_seeds):
        output = folder / f"timm{seed}"
        arguments = f"{TIMM} --pretrained --pretrained-path {weights} --seed {seed}"
        timm = by_timm(source, folder, "new", f"{arguments} --output {output}")
        ours = by_us(folder / "new", weights, folder / f"ours{seed}", seed)
        runs.append({"seed": seed, "timm": timm, "ours": ours})
        print(runs[-1], file=sys.stderr, flush=True)
    differences = [run["ours"] - run["timm"] for run in runs]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(num_seeds)
    report["runs"] = runs
    report["top1"] = {
        "timm": statistics.mean(run["timm"] for run in runs),
        "ours": statistics.mean(run["ours"] for run in runs),
        "mean_difference": mean,
        "standard_error": error,
        "within_two_standard_errors": abs(mean) <= 2 * error,
    }
    return report


def by_timm(source: Path, folder: Path, images: str, arguments: str) -> float:
    """Run timm's train.py; returns the last accuracy in percent."""
    output = Path(arguments.rpartition(" ")[2])
    run_script(source, "train.py", "timm", folder / images, f"{arguments} --experiment run", folder)
    return _last_value(output / "run/summary.csv", "eval_top1")


def by_us(images: Path, weights: Path, output: Path, seed: int) -> float:
    """Run `dali-rsb finetune`; returns the last accuracy in percent."""
    command = [sys.executable, "-m", "dali_rsb.finetune", str(images), "--from", str(weights)]
    keys = [*OURS.split(), f"run.seed={seed}", f"run.dir={output}"]
    result = subprocess.run([*command, *keys], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(f"dali-rsb finetune failed: {result.stderr[-2000:]}")
    return _last_value(output / "metrics.csv", "val_top1")


def _last_value(path: Path, name: str) -> float:
    with path.open(encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1][name])


def read_photographs() -> list[Any]:
    """Ten photographs that installed packages carry, as grey PIL images."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "text")
    arrays = [getattr(data, name)() for name in names] + list(load_sample_images().images)
    return [Image.fromarray(array).convert("L") for array in arrays]


def write_cuts(root: Path, photographs: Sequence[Any], seed: int) -> None:
    """Write square cuts as JPEG files; a class is a photograph, without its colours or contrast."""
    from PIL import ImageOps

    generator = np.random.default_rng(seed)
    for split, number in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for label, photograph in enumerate(photographs):
            folder = root / split / f"{root.name}{label}"
            folder.mkdir(parents=True)
            for cut in range(number):
                side = int(generator.integers(60, 140))
                left = int(generator.integers(photograph.width - side))
                top = int(generator.integers(photograph.height - side))
                image = photograph.crop((left, top, left + side, top + side)).resize((56, 56))
                image = ImageOps.autocontrast(image).convert("RGB")
                image.save(folder / f"{cut}.jpg", quality=90)


if __name__ == "__main__":
    run_command(main)

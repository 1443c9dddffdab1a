"""timm's own scripts with timm's loader and with ours, one import changed: do they end alike?

    TIMM_SOURCE=CHECKOUT python -m benchmarks.drop_in train    [--seeds 5] [--output FILE]
    TIMM_SOURCE=CHECKOUT python -m benchmarks.drop_in validate [--output FILE]
    python -m benchmarks.drop_in speed --data DATA [--output FILE]

`train`: `train.py` with LAMB, BCE, mixup, CutMix and RandAugment for three epochs on the quickstart
digits, with each loader and seed in turn. `validate`: `validate.py` on photographs, with a model
that `train.py` has trained on other cuts from them, and both loaders' predictions image by image.
`speed`: images/s of what both `create_loader` return with the same arguments, normalised batches on
the CPU; DATA is a folder of class folders, as benchmarks.imagenet_like writes it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import (
    Work,
    measure,
    new_report,
    ratios,
    report_progress,
    sections_as_json,
    write_json,
)
from dali_rsb.dataset.digits import write_digits
from dali_rsb.errors import UserError, run_command
from dali_rsb.system.cpus import available_cpus

IMPORT = "from timm.data import create_dataset, create_loader, "
SWAPPED = "from dali_rsb import create_loader\nfrom timm.data import create_dataset, "
LOADERS = ("timm", "dali_rsb")

TRAIN_ARGUMENTS = (
    "--model resnet18 --img-size 32 --num-classes 10 --device cpu --workers 1 --batch-size 16 "
    "--opt lamb --lr 5e-3 --weight-decay 0.02 --epochs 3 --warmup-epochs 0 "
    "--bce-loss --smoothing 0 --mixup .1 --cutmix 1 --aa rand-m6-mstd0.5-inc1 --crop-pct 0.95"
)

SPEED_ARGUMENTS: dict[str, Any] = {
    "common": {"batch_size": 128},
    "train": {
        "input_size": (3, 160, 160),
        "is_training": True,
        "auto_augment": "rand-m6-mstd0.5-inc1",
        "interpolation": "random",
    },
    "evaluation": {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.95},
}

NUM_CUTS = {"train": 40, "validation": 80}  # of each photograph
PHOTO_SIZE_PX = 96
PHOTO_ARGUMENTS = f"--model test_resnet --img-size {PHOTO_SIZE_PX} --device cpu --workers 1"
PHOTO_TRAINING = "--opt adamw --lr 2e-3 --epochs 12 --warmup-epochs 1 --batch-size 32 --smoothing 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "validate", "speed"))
    parser.add_argument("--data", type=Path, help="class folders, for speed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.what == "speed":
        if args.data is None:
            raise UserError("speed needs images; give --data FOLDER")
        report = compare_speed(args.data)
    else:
        source = timm_checkout()
        with tempfile.TemporaryDirectory() as folder:
            if args.what == "train":
                report = compare_training(source, Path(folder), args.seeds)
            else:
                report = compare_validation(source, Path(folder))
    print(json.dumps(report, indent=2))
    if args.output is not None:
        write_json(args.output, report)


def compare_training(source: Path, folder: Path, num_seeds: int) -> dict[str, Any]:
    """Train with both loaders in turn, seed by seed."""
    write_digits(folder / "digits")
    report = new_report("drop_in", {"arguments": TRAIN_ARGUMENTS, "timm": version_of(source)})
    runs: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
    for seed in range(num_seeds):
        for loader, of_loader in runs.items():
            output = folder / f"{loader}{seed}"
            start_s = time.perf_counter()
            arguments = f"{TRAIN_ARGUMENTS} --seed {seed} --output {output} --experiment run"
            run_script(source, "train.py", loader, folder / "digits", arguments, folder)
            with (output / "run/summary.csv").open(encoding="utf-8") as file:
                last = list(csv.DictReader(file))[-1]
            names = ("train_loss", "eval_loss", "eval_top1", "eval_top5")
            result = {name: float(last[name]) for name in names}
            of_loader.append({"seed": seed, **result, "wall_s": time.perf_counter() - start_s})
            print(loader, of_loader[-1], file=sys.stderr, flush=True)
    top1 = {loader: [run["eval_top1"] for run in of_loader] for loader, of_loader in runs.items()}
    report["runs"] = runs
    report["eval_top1"] = {
        loader: {
            "mean": statistics.mean(values),
            "stdev": statistics.stdev(values) if num_seeds > 1 else None,
            "min": min(values),
            "max": max(values),
        }
        for loader, values in top1.items()
    }
    return report


def compare_validation(source: Path, folder: Path) -> dict[str, Any]:
    """Validate one model with both loaders; count images on which the predictions differ."""
    num_classes = write_photographs(folder / "photographs")
    classes = f"--num-classes {num_classes}"
    arguments = f"{PHOTO_ARGUMENTS} {PHOTO_TRAINING} {classes}"
    output = f"--output {folder / 'out'} --experiment run"
    run_script(source, "train.py", "timm", folder / "photographs", f"{arguments} {output}", folder)
    checkpoint = folder / "out/run/model_best.pth.tar"

    settings = {
        "arguments": f"{PHOTO_ARGUMENTS} {classes}",
        "training_arguments": PHOTO_TRAINING,
        "timm": version_of(source),
    }
    report = new_report("drop_in", settings)
    results = {}
    for loader in LOADERS:
        arguments = f"{PHOTO_ARGUMENTS} {classes} --batch-size 50 --checkpoint {checkpoint}"
        text = run_script(source, "validate.py", loader, folder / "photographs", arguments, folder)
        result = text[text.index("--result\n") + len("--result\n") :]
        results[loader] = json.JSONDecoder().raw_decode(result)[0]
    report["results"] = results
    report["predictions"] = compare_predictions(folder / "photographs", checkpoint, num_classes)
    return report


def compare_predictions(data: Path, checkpoint: Path, num_classes: int) -> dict[str, Any]:
    """Predictions of the model on the batches of both loaders, created as validate.py does."""
    import timm
    import torch
    from timm.data import create_dataset, resolve_data_config
    from timm.data.loader import create_loader as timms_create_loader

    from dali_rsb import create_loader

    model = timm.create_model("test_resnet", num_classes=num_classes)
    timm.models.load_checkpoint(model, str(checkpoint))
    model.eval()
    config = resolve_data_config({"img_size": PHOTO_SIZE_PX}, model=model, use_test_size=True)
    logits, targets = [], []
    for create in (timms_create_loader, create_loader):
        loader = create(
            create_dataset("", root=str(data), split="validation"),
            input_size=config["input_size"],
            batch_size=50,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            device=torch.device("cpu"),
        )
        with torch.inference_mode():
            batches = [(model(images), labels) for images, labels in loader]
        logits.append(torch.cat([outputs for outputs, _ in batches]))
        targets.append(torch.cat([labels for _, labels in batches]))
    theirs, ours = (outputs.argmax(1) for outputs in logits)
    return {
        "images": len(ours),
        "identical_share": (theirs == ours).float().mean().item(),
        "same_order": bool(torch.equal(*targets)),
        "mean_logit_difference": (logits[0] - logits[1]).abs().mean().item(),
        "mean_logit_spread": logits[0].std(1).mean().item(),
    }


def compare_speed(data: Path) -> dict[str, Any]:
    """Time both loaders in alternation, each in a process of its own."""
    num_cpus = available_cpus()
    settings = SPEED_ARGUMENTS | {"num_workers": num_cpus}
    candidates = {
        f"{loader}, {work}": partial(start_loader, loader, work, str(data), num_cpus)
        for work in ("train", "evaluation")
        for loader in LOADERS
    }
    sections = measure(
        candidates,
        Work(seconds=10.0, num_batches=4, num_warmup_batches=4 * num_cpus, round_to=num_cpus),
        num_rounds=5,
        num_cpus=num_cpus,
        progress=report_progress,
    ).sections
    report = new_report("drop_in", settings)
    report["candidates"] = sections_as_json(sections)
    report["ratios"] = {
        work: asdict(ratios(sections[f"dali_rsb, {work}"], sections[f"timm, {work}"]))
        for work in ("train", "evaluation")
    }
    return report


def start_loader(loader: str, work: str, data: str, num_workers: int) -> Iterator[int]:
    """Batch sizes of an endless pass over a loader; what a child process runs."""
    import timm.data.loader
    import torch
    from timm.data import FastCollateMixup, create_dataset

    import dali_rsb

    torch.set_num_threads(1)
    create = {"timm": timm.data.loader.create_loader, "dali_rsb": dali_rsb.create_loader}[loader]
    common = SPEED_ARGUMENTS["common"] | {
        "num_workers": num_workers,
        "device": torch.device("cpu"),
    }
    dataset = create_dataset("", root=data)
    if work == "train":
        mixup = FastCollateMixup(0.1, 1.0, label_smoothing=0.0, num_classes=1000)
        batches = create(dataset, collate_fn=mixup, **common, **SPEED_ARGUMENTS["train"])
    else:
        batches = create(dataset, **common, **SPEED_ARGUMENTS["evaluation"])
    while True:
        yield from (len(images) for images, _ in batches)


def write_photographs(root: Path) -> int:
    """Write cuts of various sizes from photographs as JPEG files; a class is a photograph.

    Returns the number of classes.
    """
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "text")
    photographs = [getattr(data, name)() for name in names] + list(load_sample_images().images)
    generator = np.random.default_rng(0)
    for split, number in NUM_CUTS.items():
        for label, photograph in enumerate(photographs):
            image = Image.fromarray(photograph).convert("RGB")
            folder = root / split / f"photograph{label}"
            folder.mkdir(parents=True)
            for cut in range(number):
                width, height = generator.integers(100, (image.width, image.height), 2)
                left = generator.integers(0, image.width - width + 1)
                top = generator.integers(0, image.height - height + 1)
                box = (left, top, left + width, top + height)
                quality = int(generator.integers(60, 96))
                image.crop(box).save(folder / f"{cut}.jpg", quality=quality)
    return len(photographs)


def timm_checkout() -> Path:
    """The checkout of timm that TIMM_SOURCE names.

    Raises:
        UserError: it names none.
    """
    if "TIMM_SOURCE" not in os.environ:
        raise UserError("TIMM_SOURCE is not set; give it a checkout of timm's repository")
    return Path(os.environ["TIMM_SOURCE"]).absolute()


def read_comparison(parser: argparse.ArgumentParser, seeds: str) -> tuple[argparse.Namespace, Path]:
    """The command line of a comparison with timm over seeds, and timm's checkout.

    Args:
        parser: gets the options --seeds and --output.
        seeds: what --seeds counts, for `--help`.

    Raises:
        UserError: there is no checkout, or the seeds are too few.
    """
    parser.add_argument("--seeds", type=int, default=10, help=seeds)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    source = timm_checkout()
    if args.seeds < 2:
        raise UserError(f"--seeds {args.seeds}: give at least 2, for a standard error")
    return args, source


def version_of(source: Path) -> str:
    """The version that a checkout of timm says it is."""
    return (source / "timm/version.py").read_text(encoding="utf-8").split("'")[1]


def run_script(
    source: Path, name: str, loader: str, data: Path, arguments: str, folder: Path
) -> str:
    """Run one of timm's scripts with one of the loaders and return what it printed.

    Raises:
        UserError: the script does not import what it did when this was written, or it failed.
    """
    text = (source / name).read_text(encoding="utf-8")
    if text.count(IMPORT) != 1:
        raise UserError(f"{source / name} does not import create_loader as expected")
    if loader == "dali_rsb":
        text = text.replace(IMPORT, SWAPPED)
    script = folder / f"{loader}_{name}"
    script.write_text(text, encoding="utf-8")
    paths = [source, Path(__file__).parent.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HOME": str(folder)}
    result = subprocess.run(
        [sys.executable, str(script), "--data-dir", str(data), *arguments.split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = result.stdout + result.stderr
    if result.returncode != 0:
        raise UserError(f"{name} with the loader of {loader} failed: {printed[-2000:]}")
    if "DALI does not do" in printed:
        raise UserError(f"{name} fell back to timm's loader: {printed[-2000:]}")
    return printed


if __name__ == "__main__":
    run_command(main)

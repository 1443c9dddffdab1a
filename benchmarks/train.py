"""Training from end to end on real images, and what limits it.

    python -m benchmarks.train CONFIG data.train=FOLDER [section.key=value ...] [--output FILE]

Three rates of one process, in alternation: the loader alone, the model alone (the same training
step on a few batches that stay where they are), and both together. CPUs and threads are those of
training throughout. Beside this project timm: its training step, fed by its loader. Evaluation is
measured too, on the training images where the configuration has no others.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.report import (
    BatchCounts,
    Delivery,
    NotInstalledError,
    Parts,
    Start,
    Work,
    measure,
    new_report,
    report_progress,
    sections_as_json,
    summarize,
    write_json,
)
from benchmarks.step import (
    add_config_arguments,
    describe_config,
    overrides_of,
    resolve_device,
    updates_per_reading,
    wait_for,
)
from benchmarks.train_steps import TimmStep, timm_mixup_arguments
from benchmarks.triple import (
    LOADER,
    MODEL,
    TARGET_SHARE,
    TARGET_WAIT_PERCENT,
    TOGETHER,
    Triple,
    triples_table,
)
from dali_rsb.config import Config, load_config
from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.digits import write_digits
from dali_rsb.errors import UserError, run_command
from dali_rsb.evaluation.accuracy import evaluate
from dali_rsb.loader.warm_up import warm_up_training
from dali_rsb.run.meter import WaitTimer
from dali_rsb.run.processes import Processes
from dali_rsb.system.cpus import available_cpus
from dali_rsb.training.assembly import build_trainer, device_batch

OURS, TIMM = "dali_rsb", "timm"
EVALUATION = "evaluation"
ENDLESS = 10**6  # epochs
# Datasets up to this size are read once beforehand, so that all candidates find them in memory.
MAX_IMAGES_TO_READ = 20_000
EVALUATION_BATCHES_PER_READING = 2

T = TypeVar("T")


def _timed(batches: Iterator[T], waits: WaitTimer) -> Generator[T, None, None]:
    """The same batches; the time until each is there counts as waiting."""
    while True:
        with waits:
            batch = next(batches)
        yield batch


def _parts(
    device: torch.device,
    accumulation: int,
    batch: int,
    start_loader: Callable[[], Generator[T, None, None]],
    update: Callable[[Iterator[T]], None],
) -> dict[str, Callable[[], BatchCounts]]:
    """The three parts of a training loop; each reading covers a few updates."""
    repeats = updates_per_reading(device, accumulation)
    micro_batches = repeats * accumulation
    images = micro_batches * batch

    def loader() -> BatchCounts:
        batches = start_loader()
        try:
            while True:
                for _ in range(micro_batches):
                    next(batches)
                wait_for(device)
                yield images
        finally:
            batches.close()

    first = start_loader()
    kept = list(itertools.islice(first, accumulation))
    first.close()

    def model() -> BatchCounts:
        batches = itertools.cycle(kept)
        while True:
            for _ in range(repeats):
                update(batches)
            wait_for(device)
            yield images

    def together() -> BatchCounts:
        batches, waits = start_loader(), WaitTimer(device)
        timed = _timed(batches, waits)
        try:
            while True:
                for _ in range(repeats):
                    update(timed)
                wait_for(device)
                yield Delivery(images, waits.read())
        finally:
            batches.close()

    return {LOADER: loader, MODEL: model, TOGETHER: together}


def start_ours(config: Config) -> Parts:
    """The trainer's loader and step, and its evaluation."""
    device = resolve_device(config.run.device)
    trainer = build_trainer(with_validation(config), Processes(device))
    trainer.step.train()
    layout = trainer.samples.layout

    def update(batches: Iterator[Any]) -> None:
        trainer.schedule.step(trainer.step.updates_done)
        trainer.step.update(batches)

    def start_loader() -> Generator[Any, None, None]:
        return trainer.loader.batches(trainer.samples.stream(0, ENDLESS))

    if config.run.warm_up:
        warm_up_training(trainer.loader, trainer.samples, 0, config.schedule.epochs, 0)
    batches = start_loader()
    update(batches)
    wait_for(device)
    start_up_s = process_age_s()
    batches.close()
    models = [trainer.step.model]
    if trainer.step.ema is not None:
        models.append(trainer.step.ema.module)

    def evaluation() -> BatchCounts:
        val = trainer.validation
        while True:
            batches = val.loader.batches(val.samples.specs())
            while group := list(itertools.islice(batches, EVALUATION_BATCHES_PER_READING)):
                evaluate(models, group, val.processes, val.precision, val.mean, val.std)
                yield sum(batch.num_valid for batch in group)

    parts = _parts(device, layout.accumulation, layout.batch_per_device, start_loader, update)
    facts = {
        "batch_per_device": layout.batch_per_device,
        "accumulation": layout.accumulation,
        "dtype": str(trainer.validation.precision.input_dtype).removeprefix("torch."),
        "torch_threads": torch.get_num_threads(),
        "start_up_s": round(start_up_s, 1),
        "evaluated_models": len(models),
        "dataset": describe_images(trainer.samples.index),
    }
    return Parts({**parts, EVALUATION: evaluation}, facts)


def start_timm(config: Config) -> Parts:
    """timm's training step, fed by timm's `create_loader` with timm's mixing in its workers.

    Raises:
        NotInstalledError: timm is missing, or cannot do what the configuration says.
    """
    device = resolve_device(config.run.device)
    step = TimmStep(config, device)
    batch = device_batch(config, Processes(device))
    loader = _timm_loader(config, batch, device)

    def start_loader() -> Generator[Any, None, None]:
        yield from itertools.chain.from_iterable(itertools.repeat(loader))

    parts = _parts(device, step.accumulation, batch, start_loader, step.update_mixed)
    facts = {
        "batch_per_device": batch,
        "accumulation": step.accumulation,
        "dtype": str(step.precision.input_dtype).removeprefix("torch."),
        "torch_threads": torch.get_num_threads(),
        "workers": loader_threads(config),
    }
    return Parts(parts, facts)


def _timm_loader(config: Config, batch: int, device: torch.device) -> Any:
    from timm.data import FastCollateMixup, create_dataset, create_loader

    folder = training_folder(config)
    if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
        raise NotInstalledError(f"timm's loader reads folders of class folders, not {folder}")
    augment, data = config.augment, config.data
    return create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, augment.size, augment.size),
        batch_size=batch,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=0.0,
        auto_augment=augment.randaugment,
        interpolation=augment.interpolation,
        mean=data.mean,
        std=data.std,
        num_workers=loader_threads(config),
        collate_fn=FastCollateMixup(**timm_mixup_arguments(config)) if config.mixes else None,
        pin_memory=device.type == "cuda",
        device=device,
        use_multi_epochs_loader=True,
    )


def training_folder(config: Config) -> Path:
    """The folder of training images.

    Raises:
        UserError: the configuration names none.
    """
    if config.data.digits is not None:
        return write_digits(config.data.digits)[0]
    if config.data.train is None:
        raise UserError("data.train is not set; give the folder of images, data.train=PATH")
    return config.data.train


def with_validation(config: Config) -> Config:
    """The same, evaluated on the training images where there are no others."""
    if config.data.digits is not None or config.data.val is not None:
        return config
    both = {"val": config.data.train, "allow_overlap": True}
    data = config.data.model_copy(update=both)
    return config.model_copy(update={"data": data})


def loader_threads(config: Config) -> int:
    """Workers for timm: as many as our loader has threads where nobody has tuned it."""
    return config.data.threads or available_cpus()


def describe_images(index: DatasetIndex) -> dict[str, Any]:
    """Count the images; read them once, into the page cache, where they are not too many."""
    described: dict[str, Any] = {"images": len(index), "classes": len(index.classes)}
    if len(index) <= MAX_IMAGES_TO_READ:
        sizes = []
        for image in range(len(index)):
            with index.open(image) as file:
                sizes.append(len(file.read()))
        described["mean_bytes"] = round(sum(sizes) / len(sizes))
    return described


def process_age_s() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def work_of(config: Config, options: argparse.Namespace) -> Work:
    """Sections after a warm-up longer than any queue, in whole groups of timm's workers."""
    device = resolve_device(config.run.device)
    batch = device_batch(config, Processes(device))
    accumulation = config.optimizer.batch_size // batch
    group = accumulation * updates_per_reading(device, accumulation)
    workers = loader_threads(config)
    return Work(
        options.seconds,
        options.updates,
        num_warmup_batches=1 + math.ceil(2 * workers / group),
        round_to=workers // math.gcd(workers, group),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument("--updates", type=int, default=4, help="of a timed section, at least")
    parser.add_argument("--no-timm", action="store_true", help="leave the peer out")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, overrides_of(options))
    training_folder(config)
    candidates: dict[str, Start] = {OURS: partial(start_ours, config)}
    if not options.no_timm:
        candidates[TIMM] = partial(start_timm, config)
    num_cpus = available_cpus()
    measured = measure(
        candidates, work_of(config, options), options.rounds, num_cpus, report_progress
    )
    triples = {
        name: Triple.of(measured.sections, name, num_cpus)
        for name in candidates
        if name not in measured.left_out
    }
    report = new_report("train", describe_config(config, options, measured.num_rounds))
    report |= {
        "candidates": sections_as_json(measured.sections),
        "facts": measured.facts,
        "triples": {name: triple.as_json() for name, triple in triples.items()},
        "targets": {
            "share_of_slower": TARGET_SHARE,
            "data_wait_percent": TARGET_WAIT_PERCENT,
        },
        "left_out": measured.left_out,
    }
    if TIMM in triples:
        pairs = zip(triples[OURS].together.runs, triples[TIMM].together.runs, strict=True)
        report["ratio_to_timm"] = asdict(summarize([ours / theirs for ours, theirs in pairs]))
    if options.output is not None:
        write_json(options.output, report)
    print(triples_table(triples))
    for name, triple in triples.items():
        print(f"\n{name}: {triple.verdict()}")
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)

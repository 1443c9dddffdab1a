"""The training step on synthetic data: how fast the model is when images are always there.

    python -m benchmarks.step CONFIG [section.key=value ...] [--device cpu|cuda] [--model NAME]
                              [--batch N] [--vary section.key=value,value ...] [--output FILE]

The trainer's own step, beside timm's and the plainest that PyTorch allows: a whole update, and its
parts one by one (mix, forward, backward; the rest of the update is optimizer, average and loss
scaling). `--vary` compares settings of the step, every combination of them: the fastest is named.
Beside it stands the least that the update could take here (`benchmarks.roofline`): its bytes and
operations layer by layer, at the bandwidth and the matrix rate that are measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bandwidth import measured_card
from benchmarks.report import (
    Measurements,
    Parts,
    Section,
    Start,
    Work,
    format_table,
    measure,
    new_report,
    ratios,
    report_progress,
    sections_as_json,
    summarize,
    write_json,
)
from benchmarks.roofline import (
    Roofline,
    network_of_config,
    roofline_text,
    shares_of_floors,
    update_of,
)
from benchmarks.train_steps import (
    OurStep,
    PlainStep,
    Step,
    TimmStep,
    synthetic_batches,
    trainer_without_data,
)
from dali_rsb.config import Config, load_config
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.errors import UserError, run_command
from dali_rsb.loader.batch import Batch
from dali_rsb.run.processes import Processes
from dali_rsb.system.cpus import available_cpus
from dali_rsb.training.assembly import device_batch

# The parts that are timed; those reported are their differences.
UPDATE, MIX, FORWARD, BACKWARD = "update", "mix", "forward", "forward and backward"
OURS = "dali_rsb"
# On a GPU the clock is read after so many micro-batches: waiting for each would leave it idle.
GPU_BATCHES_PER_READING = 8


def resolve_device(name: str) -> torch.device:
    """The device of `run.device`.

    Raises:
        UserError: a GPU is asked for where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda, but PyTorch sees no GPU here; give --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", 0)


def updates_per_reading(device: torch.device, accumulation: int) -> int:
    """Updates between two readings of the clock."""
    return math.ceil(GPU_BATCHES_PER_READING / accumulation) if device.type == "cuda" else 1


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_ours(config: Config) -> Parts:
    """This project's step, as the trainer builds it."""
    device = resolve_device(config.run.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_without_data(config, device, Path(folder))
    facts = {"dtype": str(trainer.validation.precision.input_dtype).removeprefix("torch.")}
    return _parts(OurStep(trainer), config, trainer.samples.mixing, device, facts)


def start_timm(config: Config) -> Parts:
    """timm's step."""
    device = resolve_device(config.run.device)
    step = TimmStep(config, device)
    dtype = str(step.precision.input_dtype).removeprefix("torch.")
    # It draws its mixing itself.
    return _parts(step, config, None, device, {"dtype": dtype})


def start_plain(config: Config) -> Parts:
    """The plainest step."""
    device = resolve_device(config.run.device)
    step = PlainStep(config, device)
    dtype = str(step.precision.input_dtype).removeprefix("torch.")
    return _parts(step, config, None, device, {"dtype": dtype})


def _parts(
    step: Step,
    config: Config,
    mixing: MixPolicy | None,
    device: torch.device,
    facts: Mapping[str, Any],
) -> Parts:
    batch = device_batch(config, Processes(device))
    batches = synthetic_batches(
        batch, config.augment.size, config.model.num_classes, mixing, device
    )
    start_s = time.perf_counter()
    step.update(itertools.cycle(batches))  # compiles, chooses algorithms
    wait_for(device)
    facts = {
        **facts,
        "batch_per_device": batch,
        "accumulation": step.accumulation,
        "first_update_s": round(time.perf_counter() - start_s, 2),
    }
    repeats = updates_per_reading(device, step.accumulation)
    micro_batches = repeats * step.accumulation

    def timed(number: int, images: int, work: Callable[[Batch], object]) -> Iterator[int]:
        for group in itertools.count():
            for call in range(number):
                work(batches[(group * number + call) % len(batches)])
            wait_for(device)
            yield number * images

    def updates() -> Iterator[int]:
        endless = itertools.cycle(batches)
        while True:
            for _ in range(repeats):
                step.update(endless)
            wait_for(device)
            yield micro_batches * batch

    def forward(mixed: Iterator[Any]) -> Iterator[int]:
        return timed(micro_batches, batch, lambda _: step.loss(next(mixed)))

    def forward_and_backward(mixed: Iterator[Any]) -> Iterator[int]:
        return timed(micro_batches, batch, lambda _: step.loss(next(mixed)).backward())

    # A forward pass leaves a peer's mixed batch as it was; mixing may not.
    return Parts(
        {
            UPDATE: updates,
            MIX: lambda: timed(micro_batches, batch, step.mix),
            FORWARD: lambda: forward(itertools.cycle([step.mix(b) for b in batches])),
            BACKWARD: lambda: forward_and_backward(itertools.cycle([step.mix(b) for b in batches])),
        },
        facts,
    )


def part_times_ms(
    sections: Mapping[str, Sequence[Section]], candidate: str, images: int
) -> dict[str, list[float]]:
    """Milliseconds of each part of one update of `images` images, round by round.

    "optimizer" is what an update takes beside mixing and both passes: optimizer, average, loss
    scaling. A graph or overlap that the whole update has and its parts have not makes it smaller,
    below zero even.
    """

    def times(part: str) -> list[float]:
        return [1000 * images / run.img_per_s for run in sections[f"{candidate}, {part}"]]

    update, mix, forward, both = (times(part) for part in (UPDATE, MIX, FORWARD, BACKWARD))
    rounds = list(zip(update, mix, forward, both, strict=True))
    return {
        "update": update,
        "mix": mix,
        "forward": forward,
        "backward": [b - f for _, _, f, b in rounds],
        "optimizer": [u - m - b for u, m, _, b in rounds],
    }


def variants(base: Config, vary: Sequence[str], reload: Callable[..., Config]) -> dict[str, Config]:
    """Every combination of the values of `section.key=value,value` arguments, by name.

    Args:
        reload: builds the configuration with more overrides.

    Raises:
        UserError: an argument without a list of values.
    """
    choices = []
    for argument in vary:
        key, equals, values = argument.partition("=")
        if not equals or not values:
            raise UserError(f"--vary {argument}: write section.key=value,value")
        choices.append([f"{key}={value}" for value in values.split(",")])
    if not choices:
        return {OURS: base}
    return {
        f"{OURS} {' '.join(combination)}": reload(combination)
        for combination in itertools.product(*choices)
    }


def candidates_of(configs: Mapping[str, Config], peers: Sequence[str]) -> dict[str, Start]:
    """Ours with each setting, and the peers, each also compiled where one of ours is."""
    candidates: dict[str, Start] = {
        name: partial(start_ours, config) for name, config in configs.items()
    }
    base = next(iter(configs.values()))
    compiled = [config for config in configs.values() if config.run.compile is True]
    starts = {"timm": start_timm, "plain": start_plain}
    for peer in peers:
        candidates[peer] = partial(starts[peer], _with_compile(base, False))
        if compiled and peer == "timm":
            candidates[f"{peer} compiled"] = partial(starts[peer], compiled[0])
    return candidates


def _with_compile(config: Config, value: bool) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"compile": value})})


def steps_as_json(measured: Measurements, candidates: Sequence[str]) -> dict[str, Any]:
    """For each candidate images/s and memory of whole updates, the parts, what it said."""
    result: dict[str, Any] = {}
    for name in candidates:
        if name in measured.left_out:
            continue
        facts = measured.facts[name]
        images = facts["batch_per_device"] * facts["accumulation"]
        times = part_times_ms(measured.sections, name, images)
        updates = measured.sections[f"{name}, {UPDATE}"]
        result[name] = {
            **sections_as_json({name: updates})[name],
            "ms_per_update": {part: asdict(summarize(values)) for part, values in times.items()},
            **facts,
        }
    return result


def roofline_here(config: Config, steps: Mapping[str, Any]) -> Roofline | None:
    """The floors of our update, in the batch and the precision that it was measured in.

    Returns None, and says why, where the model is none whose layers are known.
    """
    facts = next((step for name, step in steps.items() if name.startswith(OURS)), None)
    if facts is None:
        return None
    try:
        network = network_of_config(config)
    except UserError as error:
        report_progress(f"no roofline: {error}")
        return None
    dtype: str = facts["dtype"]
    card = measured_card(resolve_device(config.run.device), getattr(torch, dtype))
    return Roofline(network, update_of(config, facts["batch_per_device"], dtype), card)


def fastest(steps: Mapping[str, Any]) -> str | None:
    """The fastest of our settings, by median images/s."""
    ours = {name: step for name, step in steps.items() if name.startswith(OURS)}
    return max(ours, key=lambda name: ours[name]["img_per_s"]["median"], default=None)


def steps_table(steps: Mapping[str, Any]) -> str:
    """One row a candidate, in Markdown."""
    parts = ("mix", "forward", "backward", "optimizer", "update")
    header = ["step", "img/s", "min-max", *(f"{part} ms" for part in parts), "memory GiB"]
    rows = []
    for name, step in steps.items():
        rate = step["img_per_s"]
        times = (step["ms_per_update"][part]["median"] for part in parts)
        memory = step.get("peak_memory_gib")
        rows.append(
            [
                name,
                f"{rate['median']:.0f}",
                f"{rate['min']:.0f}-{rate['max']:.0f}",
                *(f"{time_ms:.1f}" for time_ms in times),
                "" if memory is None else f"{memory:.1f}",
            ]
        )
    return format_table(header, rows)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that benchmarks of a whole configuration share."""
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/a3.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), help="run.device")
    parser.add_argument("--model", help="model.name")
    parser.add_argument("--batch", type=int, help="run.batch_per_device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a timed section, at least")
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The overrides of the command line, those with an option of their own last."""
    keys = {
        "run.device": options.device,
        "model.name": options.model,
        "run.batch_per_device": options.batch,
    }
    given = [f"{key}={value}" for key, value in keys.items() if value is not None]
    return [*options.overrides, *given]


def describe_config(config: Config, options: argparse.Namespace, num_rounds: int) -> dict[str, Any]:
    """What the head of a result file says about the configuration and the rounds there were."""
    return {
        "config": config.name,
        "overrides": overrides_of(options),
        "device": config.run.device,
        "model": config.model.name,
        "size_px": config.augment.size,
        "global_batch": config.optimizer.batch_size,
        "optimizer": config.optimizer.name,
        "ema": config.ema.decay is not None,
        "threads": available_cpus(),
        "rounds": num_rounds,
        "seconds": options.seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument("--updates", type=int, default=4, help="of a timed section, at least")
    parser.add_argument("--vary", nargs="+", default=[], metavar="section.key=value,value")
    parser.add_argument("--peers", nargs="*", choices=("timm", "plain"), default=["timm", "plain"])
    options = parser.parse_intermixed_args(arguments)
    overrides = overrides_of(options)
    config = load_config(options.config, overrides)
    resolve_device(config.run.device)
    configs = variants(
        config, options.vary, lambda more: load_config(options.config, [*overrides, *more])
    )
    candidates = candidates_of(configs, options.peers)
    measured = measure(
        candidates,
        Work(options.seconds, options.updates, num_warmup_batches=2),
        options.rounds,
        available_cpus(),
        report_progress,
        keep_going=len(candidates) > 1,
    )
    steps = steps_as_json(measured, list(candidates))
    if not steps:
        raise UserError("no step could be measured; the reasons stand above")
    report = new_report("step", describe_config(config, options, measured.num_rounds))
    report |= {"candidates": steps, "left_out": measured.left_out, "fastest": fastest(steps)}
    best = report["fastest"]
    report["ratios"] = {
        f"{best} / {name}": asdict(
            ratios(measured.sections[f"{best}, {UPDATE}"], measured.sections[f"{name}, {UPDATE}"])
        )
        for name in steps
        if best is not None and name != best
    }
    roofline = roofline_here(config, steps)
    if roofline is not None:
        shares = shares_of_floors(steps, roofline)
        report["roofline"] = roofline.as_json() | {"shares": shares}
        print(f"{roofline_text(roofline, shares)}\n")
    if options.output is not None:
        write_json(options.output, report)
    print(steps_table(steps))
    if best is not None:
        print(f"\nfastest setting: {best}")
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)

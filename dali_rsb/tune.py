"""The command `dali-rsb tune CONFIG [section.key=value ...]`.

Finds the fastest settings of the training loader for this machine and the images of a
configuration, and stores them for training to pick up. It measures the loader alone, with all of
its augmentation and no model. On a GPU machine it searches threads, prefetch depth, the number of
round-robin pipelines, the batches that share an iteration, who decodes (the CPUs, the GPU or both),
and the share of the JPEG engine. Each way to decode is measured in a process of its own there: one
that crashes is a line in the table. Without a GPU, model and loader share the CPUs, and more loader
threads would only take from the model: threads stay at this process's share of the CPUs. Keys that
the configuration sets are left alone.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from dali_rsb.checks.machine.jpeg_engine import count_jpeg_engines
from dali_rsb.checks.machine.packs import print_advice
from dali_rsb.config import Config
from dali_rsb.config.arguments import ConfigParser
from dali_rsb.dataset import DatasetIndex
from dali_rsb.draws.samples import TrainSamples
from dali_rsb.errors import UserError, run_command
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.decoding import fault_of_gpu_windows, nvimgcodec_version
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings, default_settings
from dali_rsb.run.console import console_messages
from dali_rsb.run.processes import Processes, processes
from dali_rsb.training.assembly import (
    decodes_once_for_all_copies,
    device_batch,
    train_loader,
    train_samples,
)
from dali_rsb.training.datasets import open_training
from dali_rsb.training.measuring import RecipeLoading
from dali_rsb.tuning.apart import MeasureApart
from dali_rsb.tuning.search import LoaderDiedError, LoaderRate, Result, Search, Space
from dali_rsb.tuning.settings import NAMES, given_settings, tuning_key
from dali_rsb.tuning.store import Tuned, store_tuned

logger = logging.getLogger("dali_rsb.tune")  # not __name__, which is __main__ here

DEFAULT_SECONDS = 100.0
MIN_SECONDS = 5.0
# A whole search on a GPU takes about so many measurements; each also builds a pipeline.
_MEASUREMENTS = 50
_MIN_BATCHES = 4
# Threads to try on a GPU, as shares of this process's CPUs. Few of them too: a decoder of the GPU
# has as many threads of its own beside the pipeline's.
THREAD_SHARES = (0.25, 0.5, 0.75, 1, 1.5, 2)


def main() -> None:
    parser = ConfigParser("tune", __doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=DEFAULT_SECONDS,
        help="time for the measurements (%(default)g); an index is built before, where none is",
    )
    parser.add_argument(
        "--local-ranks",
        type=int,
        default=1,
        help="processes that training will run on this machine, one for each GPU (%(default)s)",
    )
    parser.add_argument(
        "--packs",
        action="store_true",
        help="then measure which pack of the images would pay (dali-rsb pack), a minute or so",
    )
    config, arguments = parser.read()
    if arguments.seconds < MIN_SECONDS:
        raise UserError(f"--seconds {arguments.seconds:g}: give at least {MIN_SECONDS:g}")
    if arguments.local_ranks < 1:
        raise UserError(f"--local-ranks {arguments.local_ranks}: give at least 1")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("tune measures one process: start it without torchrun, with --local-ranks")
    with processes(config.run.device) as alone, console_messages():
        ranks = arguments.local_ranks
        this_process = Processes(alone.device, world_size=ranks, local_world_size=ranks)
        try:
            tune(config, this_process, arguments.seconds)
        except KeyboardInterrupt:
            print("interrupted: nothing was stored", file=sys.stderr)
            sys.exit(130)
        if arguments.packs:
            print_advice(open_training(config.data), RecipeLoading(config, alone.device))


def tune(config: Config, this_process: Processes, seconds: float) -> Tuned:
    """Search, print the table, store the choice and return it.

    Args:
        this_process: rank 0 of the processes that training will run; only this one runs.
        seconds: time for the measurements.

    Raises:
        UserError: as `dali_rsb.train`, or nothing is left to tune, or the result cannot be stored.
    """
    index = open_training(config.data)
    batch = device_batch(config, this_process)
    start = _starting_point(config, this_process, batch)
    space = search_space(config, this_process, start)
    if not space.names:
        raise UserError(
            "the configuration sets every setting that could be tuned: leave out data.threads, "
            "data.prefetch, data.pipelines, data.batches_per_run, data.decode or "
            "data.hw_decoder_load"
        )
    logger.info("tuning the loader alone for %s, %s", index.origin, _scope(this_process, batch))
    of_one = seconds / _MEASUREMENTS
    # What decodes on a GPU may crash: it is measured in processes of its own.
    apart = MeasureApart(partial(_meter, config, this_process, batch, of_one))
    on_gpu = this_process.device.type == "cuda"
    meter = apart if on_gpu else LoaderMeter(config, index, this_process, batch, of_one)
    names = NAMES if on_gpu else NAMES[:-1]

    def tell(settings: LoaderSettings, rate: LoaderRate, spent_s: float) -> None:
        changed = [n for n in names if getattr(settings, n) != getattr(start, n)]
        logger.info(
            "%3.0f of %.0f s  %s img/s, %.2f CPU ms/img  %s",
            *(spent_s, seconds, f"{rate.img_per_s:,.0f}", rate.cpu_ms_per_img),
            describe(settings, changed) or "the defaults",
        )

    try:
        result = Search(meter, time.monotonic, seconds, tell).run(start, space)
    except LoaderDiedError as death:
        raise UserError(
            f"the loader with {describe(start, names)} cannot be measured: {death}; run dali-rsb "
            "doctor"
        ) from death
    finally:
        apart.close()
    print(table(result, start, names))
    tuned = Tuned(
        settings={name: getattr(result.best, name) for name in space.names},
        date=datetime.date.today().isoformat(),
        img_per_s=_median(result.rates[result.best]),
        default_img_per_s=_median(result.rates[start]),
    )
    path = store_tuned(tuning_key(config, index, this_process, batch), tuned)
    print(verdict(result, start))
    print(f"stored in {path}; training with this configuration on this machine uses it")
    return tuned


def _meter(
    config: Config, this_process: Processes, batch_per_device: int, seconds: float
) -> LoaderMeter:
    """The measurement in a process of its own, which opens the images for itself."""
    index = open_training(config.data)
    return LoaderMeter(config, index, this_process, batch_per_device, seconds)


class LoaderMeter:
    """Measures the training loader of a configuration with various settings.

    Each measurement continues the epoch where the last one stopped: it finds the page cache as
    training would, and no images that another measurement has read before.
    """

    def __init__(
        self,
        config: Config,
        index: DatasetIndex,
        this_process: Processes,
        batch_per_device: int,
        seconds: float,
    ) -> None:
        self._config = config
        self._index = index
        self._process = this_process
        self._batch = batch_per_device
        self._seconds = seconds
        data = config.data
        self._bad_images = BadImages(
            index, data.on_bad_image, data.max_bad_fraction, data.max_pixels
        )
        samples = self._samples(LoaderSettings(threads=1))
        self._specs = (spec for epoch in itertools.count() for spec in samples.specs(epoch))

    def __call__(self, settings: LoaderSettings) -> LoaderRate:
        """Images/s and CPU time in steady state, from one batch's arrival to another's."""
        samples = self._samples(settings)
        loader = train_loader(self._config.data, samples, settings, self._process, self._bad_images)
        batches = loader.batches(self._specs)
        try:
            iterations = _iterations(batches, settings.batches_per_run)
            for _ in range(loader.prefetch + 1):
                next(iterations)
            self._wait_for_device()
            num_batches = 0
            cpu_start_s, start_s = time.process_time(), time.perf_counter()
            while num_batches < _MIN_BATCHES or time.perf_counter() - start_s < self._seconds:
                num_batches += next(iterations)
            self._wait_for_device()
            wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_start_s
        finally:
            batches.close()
            loader.close()
        num_images = num_batches * self._batch
        return LoaderRate(num_images / wall_s, 1000 * cpu_s / num_images)

    def _samples(self, settings: LoaderSettings) -> TrainSamples:
        return train_samples(self._config, self._index, self._process, self._batch, settings)

    def _wait_for_device(self) -> None:
        if self._process.device.type == "cuda":
            torch.cuda.synchronize(self._process.device)


def _iterations(batches: Iterator[object], batches_per_run: int) -> Iterator[int]:
    """Take the batches of one pipeline iteration at a time: they come all at once."""
    while True:
        for _ in range(batches_per_run):
            next(batches)
        yield batches_per_run


def search_space(config: Config, this_process: Processes, start: LoaderSettings) -> Space:
    """The values worth trying here; none for keys that the configuration sets."""
    data, on_gpu = config.data, this_process.device.type == "cuda"
    loads = [start.hw_decoder_load]
    if on_gpu and data.hw_decoder_load is None and count_jpeg_engines() != 0:
        loads += [0.0, 0.9, 1.0]
    modes: list[DecodeSetting] = [start.decode]
    if data.decode == "auto" and not decodes_once_for_all_copies(config, this_process):
        modes = _modes(this_process, nvimgcodec_version())
    threads: list[int] = []
    if on_gpu and data.threads is None:
        threads = sorted({max(1, round(start.threads * f)) for f in THREAD_SHARES})
    batches_per_run: list[int] = []
    if data.batches_per_run is None:
        start_runs = start.batches_per_run
        batches_per_run = [1, 2, 4, 8] if on_gpu else sorted({1, start_runs, 2 * start_runs})
    return Space(
        decoding=[(mode, load) for mode in modes for load in loads],
        threads=threads,
        prefetch=[2, 3, 5] if data.prefetch is None else [],
        pipelines=[1, 2, 4] if data.pipelines is None else [],
        batches_per_run=batches_per_run,
    )


def _modes(this_process: Processes, version: tuple[int, int] | None) -> list[DecodeSetting]:
    """Ways to decode that are worth trying here, the default first.

    Args:
        version: of nvImageCodec.
    """
    if this_process.device.type != "cuda":
        return ["host", "full"]
    gpu_windows: list[DecodeSetting] = [] if fault_of_gpu_windows(version) else ["roi"]
    return ["host", "hybrid", "full", *gpu_windows]


def _starting_point(
    config: Config, this_process: Processes, batch_per_device: int
) -> LoaderSettings:
    """The defaults, but for the keys that the configuration sets."""
    defaults = default_settings(
        this_process.device, this_process.local_world_size, batch_per_device, config.augment.size
    )
    return replace(defaults, **given_settings(config))


def _scope(this_process: Processes, batch: int) -> str:
    where = "a GPU" if this_process.device.type == "cuda" else "the CPU"
    return f"batches of {batch} on {where}, one of {this_process.local_world_size} process(es) here"


def describe(settings: LoaderSettings, names: Sequence[str]) -> str:
    """Some of the settings, as `name=value`."""
    return " ".join(f"{name}={getattr(settings, name)}" for name in names)


# Of a table of 80 columns; what has no heading here has its name.
_HEADINGS = {"batches_per_run": "per run", "hw_decoder_load": "engine"}


def table(result: Result, start: LoaderSettings, names: Sequence[str]) -> str:
    """All settings that were tried, the fastest first; those that failed last, with the reason.

    The columns behind the settings are the median rate, half its range in percent, and CPU time an
    image in milliseconds.
    """
    rows = [(*(_HEADINGS.get(name, name) for name in names), "img/s", "+/-", "CPU ms", "")]
    ranked = sorted(result.rates.items(), key=lambda item: -_median(item[1]))
    for settings, rates in ranked:
        mark = {result.best: "chosen", start: "default"}.get(settings, "")
        mark = "default, chosen" if result.best == start == settings else mark
        median, img_per_s = _median(rates), [rate.img_per_s for rate in rates]
        spread = (max(img_per_s) - min(img_per_s)) / 2 / median
        cpu_ms = statistics.median(rate.cpu_ms_per_img for rate in rates)
        rows.append(
            (*_values(settings, names), f"{median:,.0f}", f"{spread:.0%}", f"{cpu_ms:.2f}", mark)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(map(str.rjust, row[:-1], widths)) + f" {row[-1]}" for row in rows]
    for settings, reason in result.deaths.items():
        lines.append(" ".join(map(str.rjust, _values(settings, names), widths)) + f" {reason}")
    return "\n".join(line.rstrip() for line in lines)


def _values(settings: LoaderSettings, names: Sequence[str]) -> list[str]:
    return [str(getattr(settings, name)) for name in names]


def verdict(result: Result, start: LoaderSettings) -> str:
    """The choice in a line, and what it gains over the defaults."""
    hint = " (the time ran out before all was tried; give more --seconds)"
    end = hint if result.ran_out_of_time else ""
    if result.best == start:
        return f"nothing is faster than the defaults beyond the noise: they stay{end}"
    changes = [
        f"data.{name}={getattr(result.best, name)}"
        for name in NAMES
        if getattr(result.best, name) != getattr(start, name)
    ]
    return f"{', '.join(changes)}: {result.gain:.2f} x the rate of the defaults{end}"


def _median(rates: Sequence[LoaderRate]) -> float:
    return statistics.median(rate.img_per_s for rate in rates)


if __name__ == "__main__":
    run_command(main)

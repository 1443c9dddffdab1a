"""Which pack of a dataset pays on this machine: some of its images are packed in each way, and then
loaded; the CPU time of that makes hours of a whole recipe."""

from __future__ import annotations

import itertools
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dali_rsb.checks.machine.pack_advice import Advice, PackCost, argument_text
from dali_rsb.checks.machine.storage import Reads, read_cold
from dali_rsb.dataset import DatasetIndex, open_index
from dali_rsb.dataset.packing import PackOptions, pack, plan
from dali_rsb.draws.samples import TrainSamples
from dali_rsb.errors import UserError
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import train_loader
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.system.cpus import available_cpus
from dali_rsb.training.measuring import RecipeLoading

NUM_IMAGES = 200
SECONDS = 30.0  # of the measurements, at most; packing the images comes on top
MIN_ROUNDS = 2
_SHARD_BYTES = 4_000_000  # small ones, which the disk's rate is measured with as whole files

ORIGINALS = PackOptions()
# What comes into question for everyone: the first three change no pixel.
KNOWN = (
    ORIGINALS,
    PackOptions(tiles=True),
    PackOptions(tiles=True, raw=0.5),
    PackOptions(max_side=400, quality=90),
    PackOptions(max_side=400, quality=90, raw=0.5),
)

Tell = Callable[[str], None]


def ways_to_pack(asked: PackOptions = ORIGINALS) -> list[PackOptions]:
    """Those that come into question here, and the one that was asked for."""
    has_jpegtran = shutil.which("jpegtran") is not None
    known = [each for each in KNOWN if has_jpegtran or not each.tiles]
    same = (asked.tiles, asked.max_side, asked.quality, asked.raw)
    is_known = any(same == (e.tiles, e.max_side, e.quality, e.raw) for e in known)
    return known if is_known else [*known, asked]


def advise(
    index: DatasetIndex,
    loading: RecipeLoading,
    *,
    folder: Path | None = None,
    asked: PackOptions = ORIGINALS,
    tell: Tell = lambda _: None,
    seconds: float = SECONDS,
) -> Advice:
    """Pack some of the images in each way and load them.

    Args:
        index: the dataset.
        loading: how images are augmented, and for how many epochs.
        folder: an existing folder on the disk that packs are for; temporary files' by default.
        asked: a way to pack that the user has in mind.
        tell: is given a line about each step.
        seconds: for the measurements.

    Raises:
        UserError: an image cannot be read, or the folder is not writable or full.
    """
    rows = np.random.Generator(np.random.Philox(0)).permutation(len(index))[:NUM_IMAGES]
    ways = ways_to_pack(asked)
    with _temporary(folder) as temporary:
        packs: list[Path] = []
        for number, options in enumerate(ways):
            tell(f"packing {len(rows)} images: {argument_text(options)}")
            packs.append(temporary / str(number))
            _pack(index.select(np.sort(rows)), packs[-1], options)
        reads = read_cold([shard for path in packs for shard in sorted(path.glob("*.tar"))])
        measured = _measure(packs, loading, seconds, tell)
        costs = [
            PackCost(options, _changes(options, index), plan(index, options).num_bytes, *figures)
            for options, figures in zip(ways, measured, strict=True)
        ]
    rate = _rate_of_disk(reads)
    return Advice(costs, len(index), loading.epochs, available_cpus(), rate, loading.name)


def _pack(index: DatasetIndex, target: Path, options: PackOptions) -> None:
    pack(index, target, replace(options, shard_bytes=_SHARD_BYTES), progress=False)


@contextmanager
def _temporary(folder: Path | None) -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix=".dali_rsb_", dir=folder)
    except OSError as error:
        raise UserError(
            f"cannot write the packs that are measured to {folder or tempfile.gettempdir()} "
            f"({error.strerror}): name a DST on another disk, or set TMPDIR"
        ) from error
    with temporary as path:
        yield Path(path)


def _changes(options: PackOptions, index: DatasetIndex) -> bool:
    if options.quality is not None:
        return True
    sides = np.maximum(index.widths, index.heights)
    return options.max_side is not None and bool((sides > options.max_side).any())


@contextmanager
def _without_remarks() -> Iterator[None]:
    logger = logging.getLogger("dali_rsb")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _rate_of_disk(reads: Reads) -> float | None:
    """None where the kernel kept what it was to forget, or does not tell."""
    if reads.num_images == 0 or reads.cached_at_start is None or reads.cached_at_start > 0.1:
        return None
    return reads.mb_per_s


def _measure(
    packs: Sequence[Path],
    loading: RecipeLoading,
    seconds: float,
    tell: Tell,
) -> list[tuple[float, float]]:
    """CPU milliseconds and bytes read of an image, of each pack; measured in alternation."""
    with _without_remarks():  # nobody asked for these packs: that their pixels are others
        indices = [open_index(path) for path in packs]
    meters = [_Meter(loading.samples(index), loading.device) for index in indices]
    for number, meter in enumerate(meters, start=1):
        tell(f"loading pack {number} of {len(meters)} for the first time")
        meter.cpu_ms()  # builds the pipelines, and reads all images once
    start_s, rounds = time.monotonic(), list[list[float]]()
    for number in itertools.count(1):
        rounds.append([meter.cpu_ms() for meter in meters])
        spent_s = time.monotonic() - start_s
        tell(f"round {number} of all packs: {spent_s:.0f} of {seconds:.0f} s")
        if number >= MIN_ROUNDS and spent_s * (number + 1) / number > seconds:
            break
    for meter in meters:
        meter.loader.close()
    cpu_ms = [statistics.median(times) for times in zip(*rounds, strict=True)]
    return [(ms, meter.read_bytes()) for ms, meter in zip(cpu_ms, meters, strict=True)]


class _Meter:
    """Loads a pack again and again."""

    def __init__(self, samples: TrainSamples, device: torch.device) -> None:
        settings = LoaderSettings.untuned(device, available_cpus())
        bad_images = BadImages(samples.index, max_fraction=1.0)  # a run will say what is too many
        self.loader: Loader = train_loader(samples, settings, device, bad_images)
        self._samples = samples
        self._specs = itertools.chain.from_iterable(map(samples.specs, itertools.count()))

    def cpu_ms(self) -> float:
        """CPU milliseconds of all threads for an image; nothing is in flight before and after."""
        specs = list(itertools.islice(self._specs, self.loader.batches_in_flight))
        start_s = time.process_time()
        for _ in self.loader.batches(specs):
            pass
        spent_s = time.process_time() - start_s
        return 1000 * spent_s / sum(len(spec.indices) for spec in specs)

    def read_bytes(self) -> float:
        """Mean bytes that are read of an image."""
        return float(self._samples.prepare(next(self._specs)).read_bytes.mean())


def print_advice(
    index: DatasetIndex,
    loading: RecipeLoading,
    folder: Path | None = None,
    asked: PackOptions = ORIGINALS,
) -> None:
    """`advise`, with its progress on stderr; the table, what it means, and which pack pays."""
    advice = advise(
        index,
        loading,
        folder=folder,
        asked=asked,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print("", advice.table(), advice.explanation(), advice.verdict(), sep="\n")

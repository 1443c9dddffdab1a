"""Which pack of a dataset pays on this machine: some of its images are packed in each way, and then
loaded; the CPU time of that makes hours of a whole recipe."""

from __future__ import annotations

import itertools
import logging
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dali_rsb.checks.machine.finding import Finding, note, ok
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
from dali_rsb.system.hours import hours, img_per_s_of_cores
from dali_rsb.training.measuring import RecipeLoading

NUM_IMAGES = 200
SECONDS = 30.0  # of the measurements, at most; packing the images comes on top
MIN_ROUNDS = 2
_SHARD_BYTES = 4_000_000  # small ones, which the disk's rate is measured with as whole files

MIN_GAIN = 1.03  # of the rate; below, it may be noise
_WIDTH = 80  # columns

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


def argument_text(options: PackOptions) -> str:
    """Options as `dali-rsb pack` takes them; "original bytes" without any."""
    words = []
    if options.tiles:
        words.append("--tiles")
    if options.max_side is not None:
        words.append(f"--max-side {options.max_side}")
    if options.quality is not None:
        words.append(f"--quality {options.quality}")
    if options.raw > 0:
        words.append(f"--raw {options.raw:g}")
    return " ".join(words) or "original bytes"


def ways_to_pack(asked: PackOptions = ORIGINALS) -> list[PackOptions]:
    """Those that come into question here, and the one that was asked for."""
    has_jpegtran = shutil.which("jpegtran") is not None
    known = [each for each in KNOWN if has_jpegtran or not each.tiles]
    same = (asked.tiles, asked.max_side, asked.quality, asked.raw)
    is_known = any(same == (e.tiles, e.max_side, e.quality, e.raw) for e in known)
    return known if is_known else [*known, asked]


@dataclass(frozen=True)
class PackCost:
    """What a pack costs.

    Attributes:
        options: how it is packed.
        changes_pixels: whether pixels are others than those of the originals.
        num_bytes: of a pack of the whole dataset.
        cpu_ms: CPU time of the loader for an image, all threads together.
        read_bytes: mean bytes that are read of an image.
    """

    options: PackOptions
    changes_pixels: bool
    num_bytes: int
    cpu_ms: float
    read_bytes: float


@dataclass(frozen=True)
class Advice:
    """The costs of several packs, and what turns them into hours.

    Attributes:
        costs: the first is that of the original bytes.
        num_images: of the whole dataset.
        epochs: of the recipe.
        cores: CPUs of this process.
        disk_mb_per_s: what the disk of the packs was read at; None where only memory was met.
        recipe: its name.
    """

    costs: Sequence[PackCost]
    num_images: int
    epochs: int
    cores: int
    disk_mb_per_s: float | None
    recipe: str

    def img_per_s(self, cost: PackCost) -> float:
        """Images/s that the cores load, or the disk gives if that is less."""
        by_cores = img_per_s_of_cores(cost.cpu_ms, self.cores)
        return by_cores if self._disk_suffices(cost) else self._by_disk(cost)

    def hours(self, cost: PackCost) -> float:
        """Hours of the recipe's loading."""
        return hours(self.epochs * self.num_images, self.img_per_s(cost))

    def needed_mb_per_s(self, cost: PackCost) -> float:
        """MB/s that are read when no core waits."""
        return img_per_s_of_cores(cost.cpu_ms, self.cores) * cost.read_bytes / 1e6

    def _by_disk(self, cost: PackCost) -> float:
        assert self.disk_mb_per_s is not None
        return self.disk_mb_per_s * 1e6 / cost.read_bytes

    def _disk_suffices(self, cost: PackCost) -> bool:
        return self.disk_mb_per_s is None or self.disk_mb_per_s >= self.needed_mb_per_s(cost)

    def table(self) -> str:
        """A line for each pack, of 80 columns at most."""
        row = "{:<38} {:<7} {:>7} {:>6} {:>6} {:>6} {:>4}".format
        lines = [row("pack", "pixels", "GB", "CPU ms", "hours", "MB/s", "disk")]
        for cost in self.costs:
            if self.disk_mb_per_s is None:
                disk = "?"
            else:
                disk = "ok" if self._disk_suffices(cost) else "slow"
            lines.append(
                row(
                    argument_text(cost.options)[:38],
                    "changed" if cost.changes_pixels else "same",
                    _short(cost.num_bytes / 1e9),
                    f"{cost.cpu_ms:.2f}",
                    _short(self.hours(cost)),
                    f"{self.needed_mb_per_s(cost):.0f}",
                    disk,
                ).rstrip()
            )
        return "\n".join(lines)

    def explanation(self) -> str:
        """What the columns of the table mean."""
        if self.disk_mb_per_s is None:
            disk = "the disk's rate is not known: what it was asked for lay in memory"
        else:
            disk = f"the disk of these packs gave {self.disk_mb_per_s:,.0f} MB/s"
        return _filled(
            f"CPU ms: of the loader, for an image, as {self.recipe} augments it. hours: of loading "
            f"{self.epochs} epochs of {self.num_images:,} images with {self.cores} core(s), as far "
            f"as the disk keeps up; a model that is slower sets the pace. MB/s: what these cores "
            f"read; {disk}."
        )

    def verdict(self) -> str:
        """Which pack pays most, without other pixels and with them, in a line each."""
        lines = [self._choice(self.best(), "with the same pixels")]
        fastest = min(self.costs, key=self.hours)
        if fastest.changes_pixels:
            lines.append(self._choice(fastest, "with other pixels"))
        return "\n".join(map(_filled, lines))

    def best(self) -> PackCost:
        """The fastest of those with the same pixels; the original bytes, if none is faster."""
        fastest = min((cost for cost in self.costs if not cost.changes_pixels), key=self.hours)
        return fastest if self._gain(fastest) >= MIN_GAIN else self.costs[0]

    def _gain(self, cost: PackCost) -> float:
        return self.hours(self.costs[0]) / self.hours(cost)

    def _choice(self, cost: PackCost, which: str) -> str:
        originals, gain = self.costs[0], self._gain(cost)
        if gain < MIN_GAIN:
            return f"{which}: no pack is faster than the original bytes"
        more = (cost.num_bytes - originals.num_bytes) / 1e9
        size = f"{_short(abs(more))} GB {'more' if more > 0 else 'less'}"
        return (
            f"{which}: {argument_text(cost.options)} saves "
            f"{_short(self.hours(originals) - self.hours(cost))} of "
            f"{_short(self.hours(originals))} hours "
            f"({gain:.2f} times the rate), and takes {size}"
        )


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


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False)


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


def check_packs(root: Path, advice: Advice) -> Finding:
    """Would a pack with the same pixels be faster to load?"""
    message, best = " ".join(advice.verdict().split()), advice.best()
    if best is advice.costs[0]:
        return ok("packs", message)
    fix = f"dali-rsb pack {root} DIRECTORY {argument_text(best.options)}  # --dry-run: all figures"
    return note("packs", message, fix)

"""Costs of several packs of a dataset, as hours of a recipe: a table, and which pack pays."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dali_rsb.checks.machine.finding import Finding, note, ok
from dali_rsb.dataset.packing import PackOptions
from dali_rsb.system.hours import hours, img_per_s_of_cores

MIN_GAIN = 1.03  # of the rate; below, it may be noise
_WIDTH = 80  # columns


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


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False)


def check_packs(root: Path, advice: Advice) -> Finding:
    """Would a pack with the same pixels be faster to load?"""
    message, best = " ".join(advice.verdict().split()), advice.best()
    if best is advice.costs[0]:
        return ok("packs", message)
    fix = f"dali-rsb pack {root} DIRECTORY {argument_text(best.options)}  # --dry-run: all figures"
    return note("packs", message, fix)

"""The members of a sweep: one run for each seed, and for each value of the varied key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dali_rsb.errors import UserError

_MAX_SEEDS = 10_000


@dataclass(frozen=True)
class Variation:
    """The key that is varied, and its values as they are written; the first is the baseline."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        seed: of all its draws.
        setting: "section.key=value" of the varied key; "" where none is varied.
        folder: its run folder.
    """

    seed: int
    setting: str
    folder: Path

    @property
    def label(self) -> str:
        """As the terminal names it."""
        return f"{self.setting}, seed {self.seed}" if self.setting else f"seed {self.seed}"

    @property
    def overrides(self) -> list[str]:
        """What makes the sweep's configuration this run's."""
        setting = [self.setting] if self.setting else []
        return [*setting, f"run.seed={self.seed}", f"run.dir={self.folder}"]


def parse_seeds(text: str) -> list[int]:
    """Seeds such as 0-9 or 0,3,5-7, in their order.

    Raises:
        UserError: it is something else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first or last - first >= _MAX_SEEDS:
            raise UserError(f"--seeds {text[:80]!r}: write seeds as 0-9 or 0,3,5-7")
        seeds += range(first, last + 1)
    if len({*seeds}) < len(seeds):
        raise UserError(f"--seeds {text[:80]!r}: names a seed twice; name each once")
    return seeds


def parse_variation(text: str) -> Variation:
    """A key and its values, such as optimizer.lr=1e-3,5e-3; brackets hold lists together.

    Raises:
        UserError: it is something else, or has fewer than two values.
    """
    key, equals, rest = text.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[]*\])", rest)]
    if not equals or len(values) < 2 or not all(values):
        raise UserError(f"--vary {text[:80]!r}: write section.key=A,B with at least two values")
    if key in ("run.seed", "run.dir"):
        raise UserError(f"--vary {key}: the sweep sets it itself; use --seeds or --output")
    if len({*values}) < len(values):
        raise UserError(f"--vary {text[:80]!r}: names a value twice; name each once")
    return Variation(key, tuple(values))


def plan(folder: Path, seeds: Sequence[int], variation: Variation | None) -> list[Member]:
    """All members, seed by seed: what is finished early are pairs.

    Args:
        folder: of the sweep, above the runs' own.
    """
    settings = [""]
    if variation is not None:
        settings = [f"{variation.key}={value}" for value in variation.values]
    names = _folder_names(settings)
    return [
        Member(seed, setting, folder / names[setting] / f"seed-{seed}")
        for seed in seeds
        for setting in settings
    ]


def share(members: Sequence[Member], number: int, count: int) -> list[Member]:
    """What one of `count` jobs carries out, `number` from 0: every count-th member."""
    return list(members[number::count])


def job_of_array(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Number, from 0, and count of the jobs of the Slurm array that this is one of, or None."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    values = [environment.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values):
        return None
    task, first, count = map(int, values)
    if not 0 <= task - first < count:
        raise UserError(
            f"SLURM_ARRAY_TASK_ID={task} is not one of {count} tasks from {first} on; submit with "
            f"--array={first}-{first + count - 1}, or give --member"
        )
    return task - first, count


def _folder_names(settings: Sequence[str]) -> dict[str, str]:
    """A folder name for each setting, which any filesystem takes and none shares."""
    names: dict[str, str] = {}
    for setting in settings:
        name = re.sub(r"[^\w.=+-]+", "_", setting)[:80]
        while name.lower() in (other.lower() for other in names.values()):
            name += "_"
        names[setting] = name
    return names

"""What `dali_rsb.parity` measures of a stage, and how it tells: table, JSON and picture."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dali_rsb.checks.machine.software import DALI_DISTRIBUTIONS
from dali_rsb.errors import UserError
from dali_rsb.system.cpus import cpu_model

PACKAGES = (*DALI_DISTRIBUTIONS, "pillow", "timm", "torch", "numpy")
MAX_PICTURE_ROWS = 12
TILE_PX = 224
AMPLIFICATION = 20
_MARGIN_PX, _TEXT_PX = 8, 16


@dataclass(frozen=True)
class Limits:
    """Largest and mean difference in levels, and share of values within 2 levels; None: any."""

    largest: int | None = None
    mean: float | None = None
    within_2: float | None = None


@dataclass(frozen=True)
class WorstCase:
    """The image with the largest mean difference; both images are uint8 [H, W, 3]."""

    label: str
    mean: float
    ours: np.ndarray
    reference: np.ndarray


@dataclass
class Stage:
    """Differences between two sets of images, in levels from 0 to 255.

    Attributes:
        name: what is compared.
        limits: None where the difference is told but not judged.
        counts: int64 [256], how many values differ by so many levels.
    """

    name: str
    limits: Limits | None
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    worst: WorstCase | None = None

    def add(self, ours: np.ndarray, reference: np.ndarray, label: str) -> None:
        """Count one image; both are uint8 of one shape."""
        difference = np.abs(ours.astype(np.int16) - reference)
        self.counts += np.bincount(difference.ravel(), minlength=256)
        mean = float(difference.mean())
        if self.worst is None or mean > self.worst.mean:
            self.worst = WorstCase(label, mean, ours.copy(), reference.copy())

    def share_within(self, levels: int) -> float:
        return float(self.counts[: levels + 1].sum() / self.counts.sum())

    @property
    def largest(self) -> int:
        return int(np.flatnonzero(self.counts)[-1])

    @property
    def mean(self) -> float:
        return float(self.counts @ np.arange(256) / self.counts.sum())

    @property
    def verdict(self) -> str:
        """ "ok", "off", or "-" where there are no limits."""
        limits = self.limits
        if limits is None:
            return "-"
        too_far = (
            (limits.largest is not None and self.largest > limits.largest)
            or (limits.mean is not None and self.mean >= limits.mean)
            or (limits.within_2 is not None and self.share_within(2) < limits.within_2)
        )
        return "off" if too_far else "ok"

    def figures(self) -> dict[str, Any]:
        """The stage as it stands in the JSON file."""
        return {
            "stage": self.name,
            "largest": self.largest,
            "mean": round(self.mean, 5),
            "share_within_1": round(self.share_within(1), 6),
            "share_within_2": round(self.share_within(2), 6),
            "share_exact": round(self.share_within(0), 6),
            "num_values": int(self.counts.sum()),
            "limits": None if self.limits is None else asdict(self.limits),
            "verdict": self.verdict,
            "worst_image": None if self.worst is None else self.worst.label,
            "worst_image_mean": None if self.worst is None else round(self.worst.mean, 5),
        }


def write_report(stages: Sequence[Stage], folder: Path, facts: dict[str, Any]) -> str:
    """Write parity.json and parity.png to a folder and return the table.

    Args:
        facts: what else the JSON file should say of the run.

    Raises:
        UserError: the folder cannot be written.
    """
    report = {
        "command": "python -m dali_rsb.parity " + " ".join(sys.argv[1:]),
        **facts,
        "machine": {
            "processor": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | _versions(),
        "stages": [stage.figures() for stage in stages],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "parity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _picture(stages).save(folder / "parity.png")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give --output") from error
    return _table(stages, folder)


def _table(stages: Sequence[Stage], folder: Path) -> str:
    """A line for each stage, none longer than 80 columns, and one that sums them up."""
    width = max(len(stage.name) for stage in stages)
    head = f"{'':{width}}  max   mean  <= 2 %  exact %"
    rows = [
        f"{stage.name:{width}}  {stage.largest:3d}{stage.mean:7.3f}"
        f"{100 * stage.share_within(2):8.2f}{100 * stage.share_within(0):9.2f}  {stage.verdict}"
        for stage in stages
    ]
    return "\n".join([head, *rows, "", _verdict(stages, folder)])


def _verdict(stages: Sequence[Stage], folder: Path) -> str:
    judged = [stage for stage in stages if stage.limits is not None]
    off = [stage.name for stage in judged if stage.verdict == "off"]
    told = f"; {len(stages) - len(judged)} (-) have no limits" if len(judged) < len(stages) else ""
    if not off:
        return f"all {len(judged)} stages are within their limits{told}; details in {folder}"
    return f"OFF: {len(off)} of {len(judged)} stages ({'; '.join(off)}){told}; see {folder}"


def _picture(stages: Sequence[Stage]) -> Image.Image:
    """The worst cases of the stages that differ most: ours, Pillow's, the difference."""
    cases = [(s.worst, s.name) for s in stages if s.worst is not None and s.worst.mean > 0]
    cases = sorted(cases, key=lambda case: -case[0].mean)[:MAX_PICTURE_ROWS]
    step = TILE_PX + _MARGIN_PX
    row_px = TILE_PX + _TEXT_PX + _MARGIN_PX
    size = (3 * step + _MARGIN_PX, max(1, len(cases)) * row_px + _TEXT_PX + _MARGIN_PX)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    titles = ("dali_rsb", "Pillow", f"difference x {AMPLIFICATION}")
    for column, title in enumerate(titles):
        draw.text((_MARGIN_PX + column * step, 4), title, "black")
    for row, (case, name) in enumerate(cases):
        top = _TEXT_PX + _MARGIN_PX + row * row_px
        draw.text((_MARGIN_PX, top), f"{name}: {case.label}, mean {case.mean:.2f}", "black")
        for column, tile in enumerate(_tiles(case)):
            at = (_MARGIN_PX + column * step, top + _TEXT_PX)
            picture.paste(Image.fromarray(tile), at)
    return picture


def _tiles(case: WorstCase) -> list[np.ndarray]:
    """Ours, Pillow's and the amplified difference, cut around the largest difference."""
    difference = np.abs(case.ours.astype(np.int16) - case.reference)
    peak = np.unravel_index(difference.max(axis=2).argmax(), difference.shape[:2])
    starts = [
        max(0, min(int(at) - TILE_PX // 2, side - TILE_PX))
        for at, side in zip(peak, difference.shape[:2], strict=True)
    ]
    window = tuple(slice(start, start + TILE_PX) for start in starts)
    amplified = np.minimum(255, AMPLIFICATION * difference).astype(np.uint8)
    return [image[window] for image in (case.ours, case.reference, amplified)]


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed

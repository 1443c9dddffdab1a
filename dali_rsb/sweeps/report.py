"""The report of a sweep: a table of 80 columns, a JSON tree, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError
from dali_rsb.run.records import EpochRow
from dali_rsb.sweeps.members import Member
from dali_rsb.sweeps.running import read_result
from dali_rsb.sweeps.statistics import CONFIDENCE, Comparison, compare, summarize
from dali_rsb.system.atomic import atomic_file

METRICS = ("val_top1", "val_top5", "ema_top1", "ema_top5", "val_loss", "train_loss")
_WIDTH = 80

# Results by seed of each setting, in the order of the settings.
Results = Mapping[str, Mapping[int, float]]


def collect(members: Sequence[Member], metric: str | None) -> tuple[str, Results]:
    """The results of the members that are finished: of their last epochs, not of their best ones.

    Args:
        metric: one of METRICS; None for the accuracy of the EMA, or of the weights without one.

    Returns:
        The metric, and the results.

    Raises:
        UserError: the runs do not have this metric.
    """
    found = [(member, read_result(member)) for member in members]
    rows = [(member, row) for member, row in found if row is not None]
    if metric is None:
        metric = "val_top1"
        if rows and all(row.ema_top1 is not None for _, row in rows):
            metric = "ema_top1"
    results: dict[str, dict[int, float]] = {member.setting: {} for member in members}
    for member, row in rows:
        results[member.setting][member.seed] = _value(row, metric, member)
    return metric, results


def _value(row: EpochRow, metric: str, member: Member) -> float:
    value = getattr(row, metric)
    if value is None or not math.isfinite(value):
        raise UserError(f"{member.label} has no {metric}; give another --metric, as val_top1")
    return float(value)


def comparisons(results: Results) -> dict[str, Comparison]:
    """Each setting but the first against the first, where they have seeds in common."""
    (_, baseline), *others = results.items()
    found = {setting: compare(baseline, other) for setting, other in others}
    return {setting: found_one for setting, found_one in found.items() if found_one is not None}


def table(metric: str, results: Results) -> str:
    """What the terminal shows, at most 80 columns wide."""
    names = {setting: setting or "all runs" for setting in results}
    width = min(34, max(len("run"), *map(len, names.values())))
    head = f"{metric:{width}.{width}}  runs      mean   std dev       min       max"
    lines = [head]
    for setting, of_seeds in results.items():
        name = _shortened(names[setting], width)
        if not of_seeds:
            lines.append(f"{name:{width}}     0")
            continue
        s = summarize([*of_seeds.values()])
        deviation = "-" if s.deviation is None else f"{s.deviation:.4f}"
        numbers = f"{s.num:5}{s.mean:10.4f}{deviation:>10}{s.min:10.4f}{s.max:10.4f}"
        lines.append(f"{name:{width}} {numbers}")
    if len(results) > 1:
        baseline = next(iter(results))
        for setting, comparison in comparisons(results).items():
            lines += ["", *_compared(setting, baseline, comparison)]
    return "\n".join(line[:_WIDTH] for line in lines)


def _compared(setting: str, baseline: str, comparison: Comparison) -> list[str]:
    paired, unpaired = comparison.paired, comparison.unpaired
    percent, between = f"{100 * CONFIDENCE:.0f} %", " against "
    width = (_WIDTH - len(between)) // 2
    lines = [
        f"{_shortened(setting, width)}{between}{_shortened(baseline, width)}",
        f"  difference {paired.difference:+.4f}, {percent} interval over "
        f"{comparison.num_pairs} seeds:",
        f"  paired    +- {paired.half_width:.4f}   {_judged(paired.holds_zero)}",
        f"  unpaired  +- {unpaired.half_width:.4f}   {_judged(unpaired.holds_zero)}",
    ]
    ratio = comparison.seeds_ratio
    if ratio is None:
        lines.append("  every pair differs by the same")
    else:
        alone = round(comparison.num_pairs * ratio)
        lines.append(
            f"  {comparison.num_pairs} paired seeds say as much as {alone} unpaired ones "
            f"({ratio:.2f} x)"
        )
    return lines


def _judged(holds_zero: bool) -> str:
    return "holds 0" if holds_zero else "excludes 0"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]


def as_tree(metric: str, results: Results) -> dict[str, Any]:
    """The same as plain values for sweep.json."""
    settings = [
        {
            "setting": setting,
            "results": {str(seed): value for seed, value in of_seeds.items()},
            "summary": asdict(summarize([*of_seeds.values()])) if of_seeds else None,
        }
        for setting, of_seeds in results.items()
    ]
    found = comparisons(results) if len(results) > 1 else {}
    return {
        "metric": metric,
        "confidence": CONFIDENCE,
        "settings": settings,
        "comparisons": {
            setting: {"baseline": next(iter(results)), **asdict(comparison)}
            for setting, comparison in found.items()
        },
    }


def plot(path: Path, metric: str, results: Results) -> None:
    """Write an SVG: a point for each run, a line for each seed, a bar for each mean.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 1.6 * len(results), 4), layout="constrained")
    axes = figure.add_subplot()
    seeds = sorted({seed for of_seeds in results.values() for seed in of_seeds})
    for seed in seeds:
        places = [place for place, of in enumerate(results.values()) if seed in of]
        values = [of[seed] for of in results.values() if seed in of]
        axes.plot(places, values, "o-", color="0.6", linewidth=0.8, markersize=4)
    for place, of_seeds in enumerate(results.values()):
        if of_seeds:
            mean = summarize([*of_seeds.values()]).mean
            axes.hlines(mean, place - 0.2, place + 0.2, color="C0", linewidth=2.5)
    axes.set_xticks(range(len(results)), [setting or "all runs" for setting in results])
    axes.set_xlim(-0.6, len(results) - 0.4)
    axes.set_ylabel(metric)
    axes.set_title(f"{len(seeds)} seeds; lines join runs of one seed, bars are means", fontsize=9)
    with atomic_file(path) as file:
        figure.savefig(file, format="svg")

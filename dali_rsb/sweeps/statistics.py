"""What the runs of a sweep say: each value's mean and spread, and differences by pairs of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dali_rsb.sweeps.student import t_quantile

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Results of some runs.

    Attributes:
        num: of runs.
        mean, min, max: of their results.
        deviation: of the sample, None for a single run.
    """

    num: int
    mean: float
    deviation: float | None
    min: float
    max: float


@dataclass(frozen=True)
class Interval:
    """A difference of means and the half width of its 95 % confidence interval."""

    difference: float
    half_width: float

    @property
    def holds_zero(self) -> bool:
        return abs(self.difference) <= self.half_width


@dataclass(frozen=True)
class Comparison:
    """The results of one value of the varied key against those of the baseline.

    Attributes:
        num_pairs: seeds that both have.
        paired: by the differences of runs of one seed (Student's t).
        unpaired: as if no seed had been shared (Welch's t), of the same runs.
        correlation: of the two runs of a seed, None where one of both has no spread.
        seeds_ratio: how many times as many seeds unpaired runs need for the same interval; None
            where all pairs differ by the same.
    """

    num_pairs: int
    paired: Interval
    unpaired: Interval
    correlation: float | None
    seeds_ratio: float | None


def summarize(results: Sequence[float]) -> Summary:
    """The summary of at least one run's results."""
    deviation = statistics.stdev(results) if len(results) > 1 else None
    return Summary(len(results), statistics.fmean(results), deviation, min(results), max(results))


def compare(baseline: Mapping[int, float], other: Mapping[int, float]) -> Comparison | None:
    """The difference `other` - `baseline` over the seeds that both have; None for fewer than two.

    Args:
        baseline, other: results by seed.
    """
    seeds = sorted(baseline.keys() & other.keys())
    num = len(seeds)
    if num < 2:
        return None
    before, after = [baseline[seed] for seed in seeds], [other[seed] for seed in seeds]
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = statistics.fmean(differences)
    var_before, var_after = statistics.variance(before), statistics.variance(after)
    var_paired, var_unpaired = statistics.variance(differences), var_before + var_after
    correlation = None
    if var_before > 0 and var_after > 0:
        correlation = statistics.correlation(before, after)
    return Comparison(
        num,
        Interval(mean, _half_width(var_paired / num, num - 1)),
        Interval(mean, _half_width(var_unpaired / num, _welch_degrees(var_before, var_after, num))),
        correlation,
        var_unpaired / var_paired if var_paired > 0 else None,
    )


def _half_width(variance_of_mean: float, degrees: float) -> float:
    return t_quantile((1 + CONFIDENCE) / 2, degrees) * math.sqrt(variance_of_mean)


def _welch_degrees(first: float, second: float, num: int) -> float:
    """Degrees of freedom of a difference of two means, by Welch and Satterthwaite.

    Args:
        first, second: variances of two samples of `num` each.
    """
    squares = first**2 + second**2
    return (num - 1) * (first + second) ** 2 / squares if squares > 0 else num - 1.0

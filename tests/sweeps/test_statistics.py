"""The statistics of a sweep against numbers worked out by hand, and SciPy's t distribution."""

import json
import math

import pytest
import scipy.stats

from dali_rsb.sweeps.report import as_tree, plot, table
from dali_rsb.sweeps.statistics import compare, summarize
from dali_rsb.sweeps.student import t_cdf, t_quantile

# Differences 1, 2, 3, 2: mean 2, variance 2/3. Variances of the two: 20/3 and 10.
BASELINE = {0: 70.0, 1: 72.0, 2: 74.0, 3: 76.0}
OTHER = {0: 71.0, 1: 74.0, 2: 77.0, 3: 78.0}
RESULTS = {"optimizer.lr=1e-3": BASELINE, "optimizer.lr=5e-3": OTHER}


@pytest.mark.parametrize("degrees", [1, 2, 3.7, 9, 31, 1000.5])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9995])
def test_quantiles_of_t(probability, degrees):
    expected = scipy.stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert t_cdf(expected, degrees) == pytest.approx(probability, rel=1e-12)


def test_a_summary():
    summary = summarize([*BASELINE.values()])
    assert (summary.num, summary.mean, summary.min, summary.max) == (4, 73, 70, 76)
    assert summary.deviation == pytest.approx(math.sqrt(20 / 3))
    assert summarize([5.0]).deviation is None


def test_a_paired_difference_beside_the_unpaired_one():
    found = compare(BASELINE, OTHER)
    assert found.num_pairs == 4
    assert found.paired.difference == found.unpaired.difference == 2
    # 3.182446 is t's 97.5 % quantile for 3 degrees of freedom, in any table.
    assert found.paired.half_width == pytest.approx(3.182446 * math.sqrt(2 / 3 / 4), rel=1e-6)
    degrees = 3 * (20 / 3 + 10) ** 2 / ((20 / 3) ** 2 + 10**2)
    expected = scipy.stats.t.ppf(0.975, degrees) * math.sqrt((20 / 3 + 10) / 4)
    assert found.unpaired.half_width == pytest.approx(expected, rel=1e-9)
    assert found.seeds_ratio == pytest.approx((20 / 3 + 10) / (2 / 3))
    assert not found.paired.holds_zero
    assert found.unpaired.holds_zero


def test_a_paired_interval_is_scipys():
    found = compare(BASELINE, OTHER)
    interval = scipy.stats.ttest_rel([*OTHER.values()], [*BASELINE.values()]).confidence_interval()
    assert found.paired.difference + found.paired.half_width == pytest.approx(interval.high)
    welch = scipy.stats.ttest_ind([*OTHER.values()], [*BASELINE.values()], equal_var=False)
    high = welch.confidence_interval().high
    assert found.unpaired.difference + found.unpaired.half_width == pytest.approx(high)


def test_only_seeds_that_both_have_are_pairs():
    assert compare(BASELINE, {**OTHER, 9: 1e9}) == compare(BASELINE, OTHER)
    assert compare(BASELINE, {0: 1.0}) is None
    same = compare({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0})
    assert (same.paired.half_width, same.seeds_ratio) == (0, None)


def test_the_table_fits_a_terminal_and_says_what_pairing_saves():
    long = {f"augment.randaugment=rand-m6-mstd0.5-inc1-{'x' * 60}": BASELINE, "b": OTHER, "c": {}}
    for results in (RESULTS, long, {"": BASELINE}, {"": {3: 99.5}}):
        text = table("val_top1", results)
        assert max(map(len, text.splitlines())) <= 80
    text = table("val_top1", RESULTS)
    assert "optimizer.lr=1e-3     4   73.0000    2.5820   70.0000   76.0000" in text
    assert "difference +2.0000, 95 % interval over 4 seeds" in text
    assert "paired    +- 1.2992   excludes 0" in text
    assert "4 paired seeds say as much as 100 unpaired ones (25.00 x)" in text


def test_of_long_settings_that_are_compared_the_ends_are_shown():
    start = f"augment.randaugment=rand-m6-mstd0.5-inc1-{'x' * 60}"
    text = table("val_top1", {f"{start}1": BASELINE, f"{start}2": OTHER})
    (line,) = (line for line in text.splitlines() if " against " in line)
    setting, baseline = line.split(" against ")
    assert (setting[:4], baseline[:4]) == ("...x", "...x")
    assert (setting[-2:], baseline[-2:]) == ("x2", "x1")
    assert len(setting) == len(baseline) == (80 - len(" against ")) // 2


def test_the_tree_is_plain_json():
    tree = json.loads(json.dumps(as_tree("val_top1", RESULTS)))
    assert tree["settings"][1]["results"] == {"0": 71, "1": 74, "2": 77, "3": 78}
    comparison = tree["comparisons"]["optimizer.lr=5e-3"]
    assert (comparison["baseline"], comparison["num_pairs"]) == ("optimizer.lr=1e-3", 4)
    assert comparison["seeds_ratio"] == pytest.approx(25)
    assert as_tree("val_top1", {"": {3: 99.5}})["comparisons"] == {}


def test_the_plot_has_a_point_for_each_run(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(tmp_path / "sweep.svg", "val_top1", RESULTS)
    text = (tmp_path / "sweep.svg").read_text()
    assert text.count("<use ") >= 8
    for name in (*RESULTS, "val_top1"):  # drawn as outlines, each with its text beside it
        assert f"<!-- {name} -->" in text

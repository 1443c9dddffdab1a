"""The arithmetic of the budget: what a recipe has to do, how long it takes, what is an estimate."""

import json

import pytest
from conftest import ROOT

from benchmarks import budget, published_rates
from benchmarks.budget import AgainstAuthors, Amount, Hours
from benchmarks.cards import card_named
from benchmarks.estimates import Rates, estimated_rates, published_estimates
from benchmarks.networks import network_of
from benchmarks.roofline import floor_of
from benchmarks.traffic import UpdateShape
from dali_rsb.config import load_config
from dali_rsb.errors import UserError

IMAGENET = (budget.IMAGENET_IMAGES, budget.IMAGENET_VAL_IMAGES)


def config_of(name, *overrides):
    return load_config(ROOT / "configs" / f"{name}.yaml", overrides)


@pytest.mark.parametrize(
    ("name", "updates_per_epoch", "epochs"),
    # 1,281,167 // 2048; A1 and A2 repeat each image three times in an epoch of the same length,
    # rounded down to 1,281,024; ResNet-RS has batches of 4096.
    [("a1", 625, 600), ("a2", 625, 300), ("a3", 625, 100), ("resnetrs50", 312, 350)],
)
def test_the_amount_of_each_recipe(name, updates_per_epoch, epochs):
    config = config_of(name)
    amount = Amount.of(config, *IMAGENET)
    assert amount.updates_per_epoch == updates_per_epoch
    assert amount.updates == epochs * updates_per_epoch
    assert amount.train_images == amount.updates * config.optimizer.batch_size
    assert amount.evaluations == epochs
    assert amount.eval_images == epochs * 50_000


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        (["evaluation.every=10"], 10),
        (["evaluation.every=7"], 15),  # 14 times in 98 epochs, and after the last
        (["evaluation.every=1000"], 1),
        (["run.max_steps=626"], 2),  # ends in the second epoch
        (["run.max_steps=625"], 1),
    ],
)
def test_when_there_are_evaluations(overrides, evaluations):
    assert Amount.of(config_of("a3", *overrides), *IMAGENET).evaluations == evaluations


def test_a_run_that_is_cut_short():
    amount = Amount.of(config_of("a3", "run.max_steps=10"), *IMAGENET)
    assert (amount.updates, amount.train_images) == (10, 20_480)


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match=r"lower optimizer\.batch_size"):
        Amount.of(config_of("a3"), 2047, 100)


def test_hours_and_what_the_authors_took():
    amount = Amount(625, 62_500, 128_000_000, 100, 5_000_000)
    rates = Rates(128_000_000 / 3600 / 5, 5_000_000 / 3600, 1800, "made up")
    hours = Hours.of(amount, rates)
    assert hours.training == pytest.approx(5)
    assert hours.evaluation == pytest.approx(1)
    assert hours.start_up == pytest.approx(0.5)
    assert hours.total == pytest.approx(6.5)
    comparison = AgainstAuthors.of(config_of("a3"), hours, gpus=2)
    assert comparison.speed_up == pytest.approx(15 / 6.5)
    assert comparison.fewer_gpu_hours == pytest.approx(60 / 13)
    assert AgainstAuthors.of(config_of("a2"), hours, gpus=2) is None


def test_more_gpus_are_an_estimate():
    one = Rates(1000, 2000, 10, "measured")
    assert one.on_gpus(1) == one
    four = one.on_gpus(4)
    assert (four.train_img_per_s, four.eval_img_per_s, four.start_up_s) == (4000, 8000, 10)
    assert four.is_estimate
    assert "times 4" in four.source


def test_the_verdict_says_whether_the_time_is_met():
    config = config_of("a3")
    fast, slow = AgainstAuthors(15, 2.0, 8.0), AgainstAuthors(15, 0.5, 0.5)
    assert "are met: 2.00 times as fast" in budget.verdict(config, [fast], False)
    assert "are missed: 0.50" in budget.verdict(config, [slow], False)
    both = budget.verdict(config, [fast, slow], True)
    assert "may or may not be met: 0.50 to 2.00" in both
    assert "estimate" in both


def test_published_rates_are_scaled_by_size_only_where_they_must_be():
    ffcv = next(rate for rate in published_rates.rates_of("A100") if rate.size_px == 160)
    assert ffcv.range_at(160) == (ffcv.img_per_s, ffcv.img_per_s)
    low, high = published_rates.PublishedRate("X", 1000, 224, "").range_at(160)
    assert high == pytest.approx(1960)
    assert low == pytest.approx(1748, rel=0.001)
    rates = published_estimates("A100", config_of("a3"))
    assert all(rate.is_estimate for rate in rates)
    assert [rate.train_img_per_s for rate in rates if "as published" in rate.source] == [3518]


def test_the_rate_of_the_authors_gives_their_hours():
    (authors,) = (rate for rate in published_rates.rates_of("V100") if "RSB" in rate.source)
    hours = 100 * budget.IMAGENET_IMAGES / (4 * authors.img_per_s) / 3600
    assert hours == pytest.approx(15, rel=0.002)


@pytest.mark.parametrize("gpu", ["H100", "h100", "NVIDIA H100 80GB HBM3"])
def test_a_gpu_is_found_by_its_name(gpu):
    assert {rate.gpu for rate in published_rates.rates_of(gpu)} == {"H100"}


@pytest.mark.parametrize(
    ("name", "overrides", "gpu", "message"),
    [
        ("a3", [], "abacus", "nothing is known about resnet50 on --gpu abacus"),
        ("a3", ["model.name=timm:resnet18"], "H100", "nothing is known about timm:resnet18"),
    ],
)
def test_what_nobody_knows(name, overrides, gpu, message):
    with pytest.raises(UserError, match=message):
        budget.main([str(ROOT / f"configs/{name}.yaml"), *overrides, "--gpu", gpu])


def test_a_card_that_nobody_has_measured_has_shares_of_its_floor():
    config = config_of("a3", "model.name=resnet18")
    card = card_named("RTX 4090")
    rates = estimated_rates("RTX 4090", config, card)
    assert all(rate.is_estimate for rate in rates)
    floors = [
        floor_of(network_of("resnet18", 160), variant, UpdateShape(256, 8, has_ema=False), card)
        for variant in ("eager", "compiled")
    ]
    expected = [share * floor.img_per_s for floor in floors for share in (0.55, 0.70)]
    assert [rate.train_img_per_s for rate in rates] == pytest.approx(expected)
    assert all(rate.eval_img_per_s > rate.train_img_per_s for rate in rates)


def test_a_card_of_which_only_its_rates_are_given(capsys):
    arguments = [str(ROOT / "configs/a3.yaml"), "--gpu", "abacus"]
    budget.main([*arguments, "--bandwidth", "1000", "--tflops", "100"])
    printed = capsys.readouterr().out
    assert "abacus, eager: 0.55 of the roofline's floor" in printed
    assert "; an estimate" in printed


def test_cores_may_limit():
    rates = Rates(20_000, 40_000, 0.0, "made up", is_estimate=True)
    few, many = rates.limited_by_cores(8), rates.limited_by_cores(100)
    assert few.train_img_per_s == few.eval_img_per_s == pytest.approx(8000 / 0.92)
    assert "limited by the loader: 8 cores" in few.source
    assert (many.train_img_per_s, many.eval_img_per_s) == (20_000, 40_000)
    assert "limited" not in many.source


def test_a3_on_four_v100(capsys):
    """As its authors trained it, on a machine of 16 cores: the cards limit, not the decoding."""
    arguments = [str(ROOT / "configs/a3.yaml"), "--gpu", "V100", "--gpus", "4", "--cores", "16"]
    budget.main(arguments)
    printed = capsys.readouterr().out
    assert "0.55 of the roofline's floor" in printed
    assert "16 cores decode 17391 img/s" in printed
    assert "limited by the loader" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if line.startswith(("|", "a3")))
    budget.main([*arguments[:-1], "4"])
    assert "limited by the loader: 4 cores decode 4348 img/s" in capsys.readouterr().out


def test_published_rates_of_a_variant_of_a_card_are_its_own():
    assert {rate.gpu for rate in published_rates.rates_of("NVIDIA H100 PCIe")} == {"H100 PCIe"}
    assert max(rate.img_per_s for rate in published_rates.rates_of("H200")) == 7950


REPORT = {
    "date": "2026-01-31T00:00:00",
    "machine": {"cpu": "a CPU"},
    "settings": {"model": "resnet50", "size_px": 160, "optimizer": "lamb"},
    "triples": {"dali_rsb": {"together": {"median": 5000.0}}},
    "candidates": {"dali_rsb, evaluation": {"img_per_s": {"median": 10_000.0}}},
    "facts": {"dali_rsb": {"start_up_s": 12.0}},
}


def test_measured_rates_are_those_of_a_result_of_the_same_model():
    rates = budget.measured_rates(REPORT, config_of("a3"))
    assert (rates.train_img_per_s, rates.eval_img_per_s, rates.start_up_s) == (5000, 10_000, 12)
    assert not rates.is_estimate
    with pytest.raises(UserError, match=r"augment\.size=160"):
        budget.measured_rates(REPORT, config_of("a2"))
    with pytest.raises(UserError, match="no result of"):
        budget.measured_rates({"benchmark": "loader"}, config_of("a3"))


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    rates = tmp_path / "train.json"
    rates.write_text(json.dumps(REPORT))
    output = tmp_path / "out" / "budget.json"
    arguments = [str(ROOT / "configs/a3.yaml"), "--rates", str(rates), "--output", str(output)]
    budget.main(arguments)
    printed = capsys.readouterr().out
    assert "62,500 updates" in printed
    assert "are met" in printed
    assert "estimate" not in printed
    written = json.loads(output.read_text())
    assert written["amount"]["train_images"] == 128_000_000
    total = 128_000_000 / 5000 + 5_000_000 / 10_000 + 12
    assert written["hours"][0]["total"] == pytest.approx(total / 3600)
    budget.main([*arguments, "--gpus", "4"])
    assert "an estimate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no rates"),
        (["--gpus", "0"], "--gpus"),
        (["--cores", "8"], "goes with --gpu"),
        (["--gpu", "V100", "--cores", "0"], "--cores must be at least 1"),
        (["--rates", "missing.json"], "cannot read"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        budget.main([str(ROOT / "configs/a3.yaml"), *arguments])

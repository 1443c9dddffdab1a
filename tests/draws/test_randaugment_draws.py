"""RandAugment's policy strings and draws: their distributions against timm's own."""

import math
import random

import numpy as np
import pytest
from scipy import stats
from timm.data import auto_augment

from dali_rsb.draws.randaugment import OPERATIONS, RandAugmentPolicy
from dali_rsb.errors import UserError
from pipelines.operands import Branch, branch_input, matrix_input, value_input
from pipelines.randaugment import randaugment_inputs

NUM_SAMPLES = 100_000
MIN_P_VALUE = 0.001


def draw(policy, num_samples=NUM_SAMPLES, seed=1):
    uniforms = np.random.default_rng(seed).random((num_samples, policy.num_uniforms))
    return policy.draw(uniforms)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand", RandAugmentPolicy(10, 2, 0.5, 0.0, 10, False)),
        ("rand-m7-mstd0.5-inc1", RandAugmentPolicy(7, 2, 0.5, 0.5, 10, True)),
        ("rand-inc1-mstd0.5-m6", RandAugmentPolicy(6, 2, 0.5, 0.5, 10, True)),
        ("rand-m9-n3-p0.25", RandAugmentPolicy(9, 3, 0.25, 0.0, 10, False)),
        ("rand-m15-mmax15", RandAugmentPolicy(15, 2, 0.5, 0.0, 15, False)),
        ("rand-mstd101", RandAugmentPolicy(10, 2, 0.5, math.inf, 10, False)),
        ("rand-mstd100", RandAugmentPolicy(10, 2, 0.5, 100.0, 10, False)),
        ("rand-inc0", RandAugmentPolicy(10, 2, 0.5, 0.0, 10, False)),
        ("rand-m3-m5-mstd1-mstd2-mmax5-mmax9", RandAugmentPolicy(5, 2, 0.5, 1.0, 5, False)),
        ("rand-mmax0", RandAugmentPolicy(10, 2, 0.5, 0.0, 10, False)),
    ],
)
def test_policy_string_has_timms_meaning(text, policy):
    assert RandAugmentPolicy.parse(text) == policy

    transform = auto_augment.rand_augment_transform(text, {})
    operations = transform.ops
    assert transform.num_layers == policy.num_layers
    assert {operation.magnitude for operation in operations} == {policy.magnitude}
    assert {operation.prob for operation in operations} == {policy.probability}
    assert {operation.magnitude_std for operation in operations} == {policy.magnitude_std}
    assert {operation.magnitude_max or 10 for operation in operations} == {policy.magnitude_max}
    names = [operation.name for operation in operations]
    assert tuple(name.removesuffix("Increasing") for name in names) == OPERATIONS
    assert any(name.endswith("Increasing") for name in names) == policy.increasing


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("original-mstd0.5", "original"),
        ("rand-m7.5", "m7.5"),
        ("rand-m7-tweights", "tweights"),
        ("rand-t3a", "t3a"),
        ("rand-m7-x3", "x3"),
        ("rand-mstdinf", "mstdinf"),
        ("rand-m", "m"),
        ("rand-m7-", "''"),
        ("rand-m-7", "'m'"),
        ("rand-n0", "n0"),
        ("rand-p1.5", "p1.5"),
        ("rand-mstd0.5x", "mstd0.5x"),
        ("rand-mmax1.5", "mmax1.5"),
    ],
)
def test_bad_policy_string_is_a_user_error_that_names_the_token(text, token):
    with pytest.raises(UserError) as raised:
        RandAugmentPolicy.parse(text)
    message = str(raised.value)
    assert token in message.removeprefix(f"auto-augment policy {text!r}")
    assert "\n" not in message


def test_operations_are_uniform_and_independent_between_layers():
    draws = draw(RandAugmentPolicy(probability=1.0))
    for layer in range(2):
        counts = np.bincount(draws.operation[:, layer], minlength=15)
        assert len(counts) == 15
        assert stats.chisquare(counts).pvalue > MIN_P_VALUE
    operation = draws.operation.astype(np.int64)
    pairs = np.bincount(operation[:, 0] * 15 + operation[:, 1], minlength=225)
    assert stats.chisquare(pairs).pvalue > MIN_P_VALUE


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_layers_are_applied_with_the_probability_and_independently(probability):
    draws = draw(RandAugmentPolicy(probability=probability))
    applied = draws.operation >= 0
    if probability in (0.0, 1.0):
        assert np.all(applied == bool(probability))
        return
    num_applied = np.bincount(applied.sum(axis=1), minlength=3)
    expected = stats.binom.pmf(np.arange(3), 2, probability) * NUM_SAMPLES
    assert stats.chisquare(num_applied, expected).pvalue > MIN_P_VALUE
    counts = np.bincount(draws.operation[applied], minlength=15)
    assert stats.chisquare(counts).pvalue > MIN_P_VALUE


def test_directions_are_fair_and_independent_of_the_rest():
    draws = draw(RandAugmentPolicy(magnitude_std=0.5))
    assert stats.binomtest(int(draws.negate.sum()), draws.negate.size).pvalue > MIN_P_VALUE
    for other in (draws.operation, draws.magnitude > 10):
        table = stats.contingency.crosstab(draws.negate.ravel(), other.ravel()).count
        assert stats.chi2_contingency(table).pvalue > MIN_P_VALUE


@pytest.mark.parametrize("magnitude", [6, 7])
def test_magnitude_noise_is_gaussian(magnitude):
    draws = draw(RandAugmentPolicy(magnitude=magnitude, magnitude_std=0.5))
    for layer in range(2):
        test = stats.kstest(draws.magnitude[:, layer], stats.norm(magnitude, 0.5).cdf)
        assert test.pvalue > MIN_P_VALUE
    assert draws.magnitude.mean() == pytest.approx(magnitude, abs=0.005)
    assert draws.magnitude.std() == pytest.approx(0.5, abs=0.005)
    assert abs(np.corrcoef(draws.magnitude.T)[0, 1]) < 0.015


def test_magnitude_is_clipped():
    clipped = draw(RandAugmentPolicy(magnitude=10, magnitude_std=4)).magnitude
    assert clipped.min() == 0
    assert clipped.max() == 10
    assert np.mean(clipped == 10) == pytest.approx(0.5, abs=0.01)
    assert draw(RandAugmentPolicy(magnitude=15)).magnitude.max() == 10
    assert draw(RandAugmentPolicy(magnitude=15, magnitude_max=15)).magnitude.min() == 15


def test_infinite_deviation_draws_uniform_magnitudes():
    draws = draw(RandAugmentPolicy(magnitude=8, magnitude_std=math.inf))
    test = stats.kstest(draws.magnitude.ravel(), stats.uniform(0, 8).cdf)
    assert test.pvalue > MIN_P_VALUE


def record_timm(text, num_images):
    """Run timm's transform on a stand-in for an image; return (name, argument) of all calls."""
    calls = []

    def recorder(name):
        def record(image, *arguments, **_):
            calls.append((name, arguments[0] if arguments else 0.0))
            return image

        return record

    with pytest.MonkeyPatch.context() as patch:
        for name in auto_augment.NAME_TO_OP:
            patch.setitem(auto_augment.NAME_TO_OP, name, recorder(name.removesuffix("Increasing")))
        transform = auto_augment.rand_augment_transform(text, {"translate_pct": 0.45})
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 -- timm draws from the global generator
    for _ in range(num_images):
        transform(None)
    return calls


@pytest.mark.parametrize("text", ["rand-m7-mstd0.5-inc1", "rand-m9-mstd101-p0.7"])
def test_operands_are_distributed_like_timms_arguments(text):
    num_images = 25_000
    calls = record_timm(text, num_images)
    timm_arguments = {name: [] for name in OPERATIONS}
    for name, argument in calls:
        timm_arguments[name].append(argument)

    policy = RandAugmentPolicy.parse(text)
    draws = draw(policy, num_images)
    operands = policy.to_operands(draws, (100, 200))
    values = np.stack([operands[value_input(layer)] for layer in range(2)], axis=1)
    matrices = np.stack([operands[matrix_input(layer)] for layer in range(2)], axis=1)
    arguments = {name: values[draws.operation == i] for i, name in enumerate(OPERATIONS)}
    warps = {name: matrices[draws.operation == i] for i, name in enumerate(OPERATIONS)}
    arguments["Rotate"] = np.degrees(-np.arcsin(warps["Rotate"][:, 0, 1]))
    arguments["ShearX"] = warps["ShearX"][:, 0, 1]
    arguments["ShearY"] = warps["ShearY"][:, 1, 0]
    arguments["TranslateXRel"] = warps["TranslateXRel"][:, 0, 2] / 200
    arguments["TranslateYRel"] = warps["TranslateYRel"][:, 1, 2] / 100
    arguments["Posterize"] = 8 - np.log2(256 - arguments["Posterize"])

    counts = [[len(timm_arguments[name]), len(arguments[name])] for name in OPERATIONS]
    assert stats.chi2_contingency(counts).pvalue > MIN_P_VALUE
    num_applied = [len(calls), int((draws.operation >= 0).sum())]
    not_applied = [2 * num_images - number for number in num_applied]
    assert stats.chi2_contingency([num_applied, not_applied]).pvalue > MIN_P_VALUE
    for name in OPERATIONS:
        ours, timms = np.asarray(arguments[name]), np.asarray(timm_arguments[name])
        if name in ("AutoContrast", "Equalize", "Invert"):
            assert not ours.any()
        elif name == "Posterize":
            kept_bits = np.arange(-1, 9)
            table = [[np.sum(side == bits) for bits in kept_bits] for side in (ours, timms)]
            table = np.array(table)[:, np.sum(table, axis=0) > 0]
            assert stats.chi2_contingency(table).pvalue > MIN_P_VALUE
        else:
            assert stats.ks_2samp(ours, timms).pvalue > MIN_P_VALUE, name


def test_operands_have_the_declared_names_and_types():
    policy = RandAugmentPolicy.parse("rand-m7-n3-mstd0.5-inc1")
    draws = draw(policy, 32)
    operands = policy.to_operands(draws, (160, 192))
    specs = randaugment_inputs(3)
    assert list(operands) == [spec.name for spec in specs]
    for spec in specs:
        array = operands[spec.name]
        assert array.flags.c_contiguous
        assert array.ndim == 1 + spec.ndim
        assert str(array.dtype).upper() == spec.dtype.name.replace("FLOAT", "FLOAT32")
    for layer in range(3):
        skipped = draws.operation[:, layer] < 0
        assert np.array_equal(operands[branch_input(layer)] == Branch.SKIP, skipped)


def test_draws_are_a_function_of_each_samples_own_numbers():
    policy = RandAugmentPolicy.parse("rand-m7-mstd0.5-inc1")
    uniforms = np.random.default_rng(0).random((64, policy.num_uniforms))
    together, alone = policy.draw(uniforms), policy.draw(uniforms[17:18])
    assert np.array_equal(together.operation[17:18], alone.operation)
    assert np.array_equal(together.magnitude[17:18], alone.magnitude)
    assert np.array_equal(together.negate[17:18], alone.negate)


def test_extreme_uniforms_stay_in_range():
    policy = RandAugmentPolicy.parse("rand-m7-mstd0.5-inc1-p1")
    for number, operation in ((0.0, 0), (np.nextafter(1.0, 0.0), len(OPERATIONS) - 1)):
        draws = policy.draw(np.full((1, policy.num_uniforms), number))
        assert np.all(draws.operation == operation)
        assert np.all((draws.magnitude >= 0) & (draws.magnitude <= 10))


def test_wrong_number_of_uniforms_is_refused():
    with pytest.raises(ValueError, match=r"expected \[batch, 10\]"):
        RandAugmentPolicy().draw(np.zeros((4, 9)))

"""BCE on sparse mixed targets: the Triton kernel, by Triton's interpreter, against its twin."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx import interpreted
from timm.loss import BinaryCrossEntropy

from dali_rsb.kernels import bce, bce_triton
from dali_rsb.kernels.bce import mixed_bce_plain
from dali_rsb.training.losses import MixedBinaryCrossEntropy, dense_target

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LOSS_SCALE = 65536.0  # with which GradScaler starts; more than float16 holds

_KERNELS = {
    name: interpreted(getattr(bce_triton, name)) for name in ("_mixed_bce_kernel", "_scale_kernel")
}


@pytest.fixture(autouse=True)
def _kernels_run_interpreted(monkeypatch):
    for name, kernel in _KERNELS.items():
        monkeypatch.setattr(bce_triton, name, kernel)


def loss_and_gradient(function, logits, *arguments, factor=1.0):
    """The loss, and the gradient of factor * loss times B * K, which does not depend on them."""
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, *arguments)
    (gradient,) = torch.autograd.grad(loss * factor, leaf)
    assert gradient.dtype == logits.dtype
    return loss.detach(), gradient.double() * logits.numel() / factor


def assert_equals_the_twin(logits, *arguments, factor=1.0):
    loss, gradient = loss_and_gradient(
        bce_triton.mixed_bce_triton, logits, *arguments, factor=factor
    )
    expected, expected_gradient = loss_and_gradient(
        mixed_bce_plain, logits, *arguments, factor=factor
    )
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    scale = 1.0 + logits.detach().abs().max().item()  # the twin subtracts y * z from softplus(z)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6 * scale)
    # Rounded to the dtype twice; the interpreter cuts bfloat16 off where a GPU rounds. What
    # float16 cannot hold, below 3e-8, differs.
    eps = torch.finfo(logits.dtype).eps
    torch.testing.assert_close(gradient, expected_gradient, rtol=2.5 * eps, atol=3e-7)


@st.composite
def batches(draw):
    """Logits in any memory layout, labels, partner labels and lambdas."""
    size = draw(st.integers(1, 5))
    num_classes = draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 33])))
    scale = draw(st.sampled_from([0.0, 1.0, 5.0, 30.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.randn(2 * size, num_classes + 3, generator=generator) * scale
    logits = logits.to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["contiguous", "rows", "columns", "transposed"]))
    if layout == "contiguous":
        logits = logits[:size, :num_classes].contiguous()
    elif layout == "rows":
        logits = logits[::2, 3:]
    elif layout == "columns":
        logits = logits[:size, 1 : num_classes + 1]
    else:
        logits = logits[:size, :num_classes].t().contiguous().t()

    def rows_of(values):
        return draw(st.lists(values, min_size=size, max_size=size))

    classes = st.integers(0, num_classes - 1)
    weights = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), st.floats(0, 1, width=32))
    labels, partners = torch.tensor(rows_of(classes)), torch.tensor(rows_of(classes))
    return logits, labels, partners, torch.tensor(rows_of(weights), dtype=torch.float32)


@settings(max_examples=80)
@given(
    batch=batches(),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    threshold=st.one_of(st.none(), st.sampled_from([0.0, 0.2, 0.5]), st.floats(0, 0.75)),
    factor=st.sampled_from([1.0, LOSS_SCALE]),
)
def test_equals_the_twin(batch, smoothing, threshold, factor):
    # For float16 without a loss scale, tiny gradients are lost; no matter whose.
    factor = LOSS_SCALE if batch[0].dtype == torch.float16 else factor
    assert_equals_the_twin(*batch, smoothing, threshold, factor=factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [1, 1000, 2500])  # the last in three blocks
def test_equals_the_twin_for_many_classes(dtype, num_classes):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(4, num_classes, generator=generator) * 4 - 5).to(dtype)
    labels = torch.randint(num_classes, (4,), generator=generator)
    lam = torch.tensor([0.0, 0.3, 0.5, 1.0])
    for smoothing, threshold in ((0.1, None), (0.0, 0.2)):
        arguments = labels, labels.flip(0), lam, smoothing, threshold
        assert_equals_the_twin(logits, *arguments, factor=LOSS_SCALE)


# At 0.2 and 0.8 a target equals the threshold; with smoothing 0.1 over four classes it does where
# 0.925 * lam + 0.025 * (1 - lam) does: the rounding of each step decides on which side it lies.
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_at_the_threshold_fall_on_the_twins_side(smoothing):
    lam = torch.linspace(0, 1, 21)
    labels, partners = torch.zeros(21, dtype=torch.int64), torch.ones(21, dtype=torch.int64)
    partners[::4] = 0
    target = dense_target(labels, partners, lam, 4, smoothing)
    for threshold in (0.0, 0.2, 0.5, 0.8, *target[:, 0].tolist()):
        logits = torch.zeros(21, 4)
        arguments = labels, partners, lam, smoothing, threshold
        _, gradient = loss_and_gradient(bce_triton.mixed_bce_triton, logits, *arguments)
        # At a logit of zero the gradient is 1/2 - target.
        assert torch.equal((gradient < 0), target > threshold)


def test_equals_timm_on_the_dense_target():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator) * 3
    labels = torch.randint(50, (6,), generator=generator)
    lam = torch.linspace(0, 1, 6)
    for smoothing, threshold in ((0.0, None), (0.1, None), (0.0, 0.2)):
        target = dense_target(labels, labels.flip(0), lam, 50, smoothing)
        theirs = BinaryCrossEntropy(target_threshold=threshold)
        expected = loss_and_gradient(theirs, logits, target)
        arguments = labels, labels.flip(0), lam, smoothing, threshold
        got = loss_and_gradient(bce_triton.mixed_bce_triton, logits, *arguments)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_small_losses_keep_their_digits():
    """softplus(-18) is 1.5e-8, below the rounding of 1 + exp(-18)."""
    logits = torch.full((2, 64), -18.0)
    logits[:, 0] = 18.0
    labels = torch.zeros(2, dtype=torch.int64)
    loss, _ = loss_and_gradient(
        bce_triton.mixed_bce_triton, logits, labels, labels, torch.ones(2), 0.0, None
    )
    expected = F.softplus(torch.tensor(-18.0, dtype=torch.float64)).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_logit_that_is_not_finite_shows_in_the_loss(value):
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    labels = torch.zeros(2, dtype=torch.int64)
    loss = bce_triton.mixed_bce_triton(logits, labels, labels, torch.ones(2))
    assert not torch.isfinite(loss)


def test_a_class_that_is_masked_out_costs_nothing():
    logits = torch.tensor([[1.0, float("-inf"), 0.5]])
    labels, lam = torch.tensor([0]), torch.ones(1)
    arguments = labels, labels, lam, 0.0, None
    loss, gradient = loss_and_gradient(bce_triton.mixed_bce_triton, logits, *arguments)
    expected, _ = loss_and_gradient(mixed_bce_plain, logits[:, ::2], *arguments)
    assert loss.item() == pytest.approx(expected.item() * 2 / 3)
    assert gradient[0, 1] == 0


def test_nothing_is_kept_where_no_gradient_is_wanted():
    logits = torch.zeros(2, 5, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        loss = bce_triton.mixed_bce_triton(logits, labels, labels, torch.ones(2))
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(0.693147)


def test_the_same_bits_again():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 100, generator=generator)
    labels = torch.randint(100, (16,), generator=generator)
    arguments = labels, labels.flip(0), torch.rand(16, generator=generator), 0.1, None
    first, second = (
        loss_and_gradient(bce_triton.mixed_bce_triton, logits, *arguments) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_operators_keep_pytorchs_rules():
    labels = torch.tensor([0, 1, 2])
    batch = labels, labels.flip(0), torch.tensor([0.0, 0.4, 1.0])
    logits = torch.linspace(-3, 3, 15).view(3, 5)
    for options in ((0.1, None, True), (0.0, 0.2, False)):
        torch.library.opcheck(
            bce_triton._mixed_bce,
            (logits.clone().requires_grad_(options[2]), *batch, *options),
        )
    torch.library.opcheck(bce_triton._scale_gradient, (logits, torch.tensor(2.0), 0.5))


def test_the_criterion_calls_the_kernel_under_autocast_and_torch_compile(monkeypatch):
    monkeypatch.setattr(bce, "runs_triton", lambda tensor: True)
    criterion = MixedBinaryCrossEntropy(0.1, 0.2)
    labels, lam = torch.tensor([0, 1, 2]), torch.tensor([0.3, 0.5, 0.9])
    weight = torch.linspace(-1, 1, 20).view(4, 5)
    inputs = torch.linspace(0, 2, 12).view(3, 4)

    def loss_of(parameter, function):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(inputs @ parameter, labels, labels.flip(0), lam)

    def on_twin(logits, *batch):
        return mixed_bce_plain(logits, *batch, 0.1, 0.2)

    results = []
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    for function in (criterion, compiled, on_twin):
        parameter = weight.clone().requires_grad_()
        loss = loss_of(parameter, function)
        loss.backward()
        results.append((loss.detach(), parameter.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    # The interpreter cuts bfloat16 off, twice; rows add up.
    torch.testing.assert_close(results[0][0], results[2][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[2][1], rtol=0.02, atol=2e-3)

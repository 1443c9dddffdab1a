"""Sparse mixed losses against timm's on the dense target that timm's mixup builds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from dali_rsb.errors import UserError
from dali_rsb.kernels.targets import dense_target
from dali_rsb.training.losses import (
    MixedBinaryCrossEntropy,
    MixedCrossEntropy,
    balanced_weights,
    create_loss,
)

NUM_CLASSES = 20


def make_batch(batch=8, num_classes=NUM_CLASSES, seed=0):
    """Logits, labels and, as in timm, the batch's flip as partners. Pair 0 has equal labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, generator=generator) * 4
    labels = torch.randint(num_classes, (batch,), generator=generator)
    labels[-1] = labels[0]
    return logits.requires_grad_(), labels, labels.flip(0)


def assert_same(ours, theirs, logits, tolerance=1e-6, num_terms=None):
    """Equal values, and gradients equal but for the rounding of sigmoid or softmax near 1.

    `num_terms` is what the loss averages over: all logits for BCE, the images for CE.
    """
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    (our_grad,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (their_grad,) = torch.autograd.grad(theirs, logits, retain_graph=True)
    num_terms = num_terms or logits.numel()
    torch.testing.assert_close(our_grad * num_terms, their_grad * num_terms, rtol=1e-5, atol=3e-7)


# At 0.2 and 0.8 a target lies exactly at the threshold, 0.2222 and 0.7778 are the bounds with
# smoothing over 1000 classes.
LAMS = [0.0, 0.2, 0.2222, 0.3, 0.5, 0.7778, 0.8, 1.0, float(np.nextafter(np.float32(0.2), 1))]


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dense_target_equals_timm(lam, smoothing):
    _, labels, partners = make_batch()
    lam = torch.full((8,), lam)
    ours = dense_target(labels, partners, lam, NUM_CLASSES, smoothing)
    theirs = mixup_target(labels, NUM_CLASSES, lam[0].item(), smoothing)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.5])
@pytest.mark.parametrize("num_classes", [3, NUM_CLASSES, 1000])
def test_bce_equals_timm(lam, smoothing, threshold, num_classes):
    logits, labels, partners = make_batch(num_classes=num_classes)
    lam = torch.full((8,), lam)
    target = mixup_target(labels, num_classes, lam[0].item(), smoothing)
    theirs = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)(logits, target)
    ours = MixedBinaryCrossEntropy(smoothing, threshold)(logits, labels, partners, lam)
    assert_same(ours, theirs, logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_without_mixing_equals_timm_on_class_indices(smoothing):
    logits, labels, partners = make_batch()
    theirs = BinaryCrossEntropy(smoothing=smoothing)(logits, labels)
    for partner in (partners, labels):
        ours = MixedBinaryCrossEntropy(smoothing)(logits, labels, partner, torch.ones(8))
        assert_same(ours, theirs, logits)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 5),
    num_classes=st.integers(2, 9),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    threshold=st.one_of(st.none(), st.sampled_from([0.0, 0.2, 0.5]), st.floats(0, 0.75, width=32)),
    scale=st.sampled_from([0.0, 1.0, 30.0, 200.0]),
    data=st.data(),
)
def test_bce_equals_the_dense_form(batch, num_classes, smoothing, threshold, scale, data):
    classes = st.lists(st.integers(0, num_classes - 1), min_size=batch, max_size=batch)
    weights = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), st.floats(0, 1, width=32))
    labels = torch.tensor(data.draw(classes, "labels"))
    partners = torch.tensor(data.draw(classes, "partners"))
    lam = torch.tensor(data.draw(st.lists(weights, min_size=batch, max_size=batch), "lam"))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    logits = (torch.randn(batch, num_classes, generator=generator) * scale).requires_grad_()

    target = dense_target(labels, partners, lam, num_classes, smoothing)
    if threshold is not None:
        target = (target > threshold).float()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    loss = MixedBinaryCrossEntropy(smoothing, threshold)(logits, labels, partners, lam)
    # The sparse form subtracts y * z from softplus(z): an error in units of the largest logit.
    assert_same(loss, expected, logits, tolerance=1e-6 + 1e-6 * scale)


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_class_weights_are_pytorchs(lam, smoothing, threshold):
    logits, labels, partners = make_batch()
    lam = torch.full((8,), lam)
    weights = torch.linspace(0.2, 3.0, NUM_CLASSES)
    target = dense_target(labels, partners, lam, NUM_CLASSES, smoothing)
    ours = MixedCrossEntropy(smoothing, weights)(logits, labels, partners, lam)
    theirs = F.cross_entropy(logits, target, weight=weights)
    assert_same(ours, theirs, logits, tolerance=2e-6, num_terms=8)
    target = target if threshold is None else (target > threshold).float()
    ours = MixedBinaryCrossEntropy(smoothing, threshold, weights)(logits, labels, partners, lam)
    theirs = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
    assert_same(ours, theirs, logits)


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0] * 50 + [1] * 5 + [3] * 45)
    weights = balanced_weights(labels, 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    assert weights[[2, 4]].tolist() == [1.0, 1.0]
    assert weights[labels].mean() == pytest.approx(1.0)


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_equals_timm(lam, smoothing):
    logits, labels, partners = make_batch()
    lam = torch.full((8,), lam)
    target = mixup_target(labels, NUM_CLASSES, lam[0].item(), smoothing)
    theirs = SoftTargetCrossEntropy()(logits, target)
    ours = MixedCrossEntropy(smoothing)(logits, labels, partners, lam)
    assert_same(ours, theirs, logits, tolerance=2e-6, num_terms=8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_without_mixing_is_label_smoothing(smoothing):
    logits, labels, partners = make_batch()
    ours = MixedCrossEntropy(smoothing)(logits, labels, partners, torch.ones(8))
    for theirs in (
        LabelSmoothingCrossEntropy(smoothing)(logits, labels),
        F.cross_entropy(logits, labels, label_smoothing=smoothing),
    ):
        assert_same(ours, theirs, logits, tolerance=2e-6, num_terms=8)


@pytest.mark.parametrize(
    ("loss", "oracle", "num_terms"),
    [
        (MixedBinaryCrossEntropy(0.1), BinaryCrossEntropy(), 8 * NUM_CLASSES),
        (MixedCrossEntropy(0.1), SoftTargetCrossEntropy(), 8),
    ],
    ids=["bce", "ce"],
)
def test_lam_differs_within_a_batch(loss, oracle, num_terms):
    logits, labels, partners = make_batch()
    lam = torch.linspace(0, 1, 8)
    target = dense_target(labels, partners, lam, NUM_CLASSES, 0.1)
    ours, theirs = loss(logits, labels, partners, lam), oracle(logits, target)
    assert_same(ours, theirs, logits, tolerance=2e-6, num_terms=num_terms)


def test_golden_values_at_zero_logits():
    logits = torch.zeros(4, 1000)
    _, labels, partners = make_batch(4, 1000)
    lam = torch.full((4,), 0.3)
    for smoothing, threshold in ((0.0, None), (0.1, None), (0.0, 0.2)):
        loss = MixedBinaryCrossEntropy(smoothing, threshold)(logits, labels, partners, lam)
        assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    loss = MixedCrossEntropy(0.1)(logits, labels, partners, lam)
    assert loss.item() == pytest.approx(6.907755, abs=1e-5)


def test_threshold_is_strict_and_makes_both_labels_positive():
    """d loss / dz = (sigmoid(z) - y) / (B K): the gradient at zero logits shows the target."""
    labels, partners = torch.tensor([1, 1, 1, 1]), torch.tensor([2, 2, 2, 1])
    lam = torch.tensor([0.2, 0.5, 0.8, 0.1])
    logits = torch.zeros(4, 3, requires_grad=True)
    MixedBinaryCrossEntropy(target_threshold=0.5)(logits, labels, partners, lam).backward()
    target = 0.5 - logits.grad * logits.numel()
    expected = [[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert torch.equal(target, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", ["bce", "ce"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computes_in_float32(name, dtype):
    logits, labels, partners = make_batch(64, 1000)
    low = logits.detach().to(dtype).requires_grad_()
    lam = torch.full((64,), 0.3)
    loss = create_loss(name, smoothing=0.1)
    expected = loss(low.detach().float(), labels, partners, lam)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(low, labels, partners, lam)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    got.backward()
    assert low.grad.dtype == dtype


def test_create_loss():
    bce = create_loss("bce", smoothing=0.1, target_threshold=0.2)
    assert isinstance(bce, MixedBinaryCrossEntropy)
    assert (bce.smoothing, bce.target_threshold) == (0.1, 0.2)
    ce = create_loss("ce", smoothing=0.1)
    assert isinstance(ce, MixedCrossEntropy)
    assert ce.smoothing == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bec",), "did you mean 'bce'"),
        (("ce", 0.0, 0.2), "target_threshold"),
        (("bce", 1.0), "smoothing"),
        (("ce", -0.1), "smoothing"),
        (("bce", 0.0, 1.5), "target_threshold"),
    ],
)
def test_create_loss_mistakes(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        create_loss(*arguments)
    assert "\n" not in str(caught.value)

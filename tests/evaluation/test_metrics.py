"""Figures from predictions, against brute force and published values."""

import math

import numpy as np
import pytest

from dali_rsb.evaluation.metrics import (
    calibration_error,
    class_results,
    metrics,
    metrics_of_answers,
    wilson_interval,
)
from dali_rsb.evaluation.predictions import Predictions


def test_wilson_interval_is_that_of_a_textbook():
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3: 81 of 263, 15 of 148, ...
    for hits, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (3, 7), (40123, 50000), (50000, 50000)]
)
def test_wilson_interval_ends_where_the_score_test_is_at_its_limit(hits, count):
    for end in wilson_interval(hits, count):
        if 0 < end < 1:
            score = abs(hits / count - end) / math.sqrt(end * (1 - end) / count)
            assert score == pytest.approx(1.959963984540054)
        else:
            assert end == hits / count


def _predictions(rng, num_images, num_classes):
    logits = rng.normal(size=(num_images, num_classes)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top = np.argsort(-logits, axis=1)[:, :5]
    labels = rng.integers(0, num_classes, num_images)
    labels[: num_images // 2] = top[: num_images // 2, 0]
    loss = -np.log(probabilities[np.arange(num_images), labels])
    confidence = probabilities.max(1)
    return Predictions(top, confidence.astype(np.float32), loss.astype(np.float32)), labels


def test_calibration_error_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    confidence = rng.random(400).astype(np.float32)
    confidence[:2] = 1.0, 1 / 3
    is_right = rng.random(400) < confidence**2
    error = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        inside = [i for i in range(400) if low < confidence[i] <= high]
        if inside:
            accuracy = sum(bool(is_right[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            error += len(inside) / 400 * abs(accuracy - mean)
    assert calibration_error(confidence, is_right) == pytest.approx(error, abs=1e-9)
    # Sure of everything, and right in half of it.
    assert calibration_error(np.ones(10, np.float32), np.arange(10) < 5) == pytest.approx(0.5)


def test_metrics_are_those_of_a_loop_over_the_images():
    predictions, labels = _predictions(np.random.default_rng(1), 200, 9)
    labels[labels == 4] = 3  # a class without images
    found = metrics(predictions, labels)
    right = [predictions.top[i, 0] == labels[i] for i in range(200)]
    assert found.images == 200
    assert found.top1 == pytest.approx(100 * sum(right) / 200)
    among = [labels[i] in predictions.top[i].tolist() for i in range(200)]
    assert found.top5 == pytest.approx(100 * sum(among) / 200)
    shares = []
    for label in sorted(set(labels.tolist())):
        rows = [i for i in range(200) if labels[i] == label]
        shares.append(sum(right[i] for i in rows) / len(rows))
    assert len(shares) == 8
    assert found.mean_per_class == pytest.approx(100 * sum(shares) / 8)
    assert found.loss == pytest.approx(predictions.loss.mean(), abs=1e-5)
    low, high = wilson_interval(sum(right), 200)
    assert found.top1_interval == pytest.approx((100 * low, 100 * high))


def test_with_several_right_answers_any_counts_and_images_without_are_left_out():
    predictions, labels = _predictions(np.random.default_rng(2), 60, 9)
    answers = [frozenset([label, (label + 1) % 9]) for label in labels.tolist()]
    answers[::4] = [frozenset()] * len(answers[::4])
    found = metrics_of_answers(predictions, answers)
    rows = [i for i in range(60) if answers[i]]
    assert (found.images, len(rows)) == (45, 45)
    assert found.top1 == pytest.approx(
        100 * sum(predictions.top[i, 0] in answers[i] for i in rows) / 45
    )
    assert found.top5 == pytest.approx(
        100 * sum(bool(answers[i] & set(predictions.top[i].tolist())) for i in rows) / 45
    )
    assert (found.loss, found.mean_per_class) == (None, None)
    one_each = [frozenset([label]) for label in labels.tolist()]
    assert metrics_of_answers(predictions, one_each).top1 == metrics(predictions, labels).top1


def test_class_results_name_the_commonest_confusion():
    top = np.array([[0], [1], [1], [2], [2], [2], [0], [5]])
    labels = np.array([0, 0, 0, 0, 2, 2, 2, 5])
    ones = np.ones(len(labels), np.float32)
    first, second, last = class_results(Predictions(top, ones, ones), labels)
    assert (first.label, first.images, first.right) == (0, 4, 1)
    assert (first.confused_with, first.confusions) == (1, 2)
    assert (second.label, second.images, second.right, second.confused_with) == (2, 3, 2, 0)
    assert (last.label, last.images, last.right) == (5, 1, 1)
    assert (last.confused_with, last.confusions) == (None, 0)

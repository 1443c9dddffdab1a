"""Figures from predictions: accuracies with their interval, loss, calibration, classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dali_rsb.evaluation.predictions import Predictions

Z_95 = 1.959963984540054  # the normal distribution holds 95 % within so many deviations
NUM_BINS = 15  # of the calibration error, as Guo et al. and all after them


@dataclass(frozen=True)
class Metrics:
    """Result over `images`; all but the loss in percent.

    Attributes:
        top1, top5: accuracies; top-5 of fewer than five classes is that of all of them.
        top1_interval: Wilson's 95 % interval of the first.
        mean_per_class: mean of the top-1 accuracies of the classes that have images; None with
            several right answers.
        loss: mean cross-entropy; None with several right answers.
        ece: expected calibration error.
    """

    images: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    mean_per_class: float | None
    loss: float | None
    ece: float


@dataclass(frozen=True)
class ClassResult:
    """Result of one class that has images.

    Attributes:
        label: of the class among the model's.
        images: how many there are.
        right: how many of them the model gives this class.
        confused_with: label of the class that most of the others get, the first of equals; None if
            all are right.
        confusions: how many get that one.
    """

    label: int
    images: int
    right: int
    confused_with: int | None
    confusions: int


def metrics(predictions: Predictions, labels: npt.NDArray[np.int64]) -> Metrics:
    """The figures with one right class for each image, int64 [N]."""
    hits = predictions.top == labels[:, None]
    counts = np.bincount(labels)
    right = np.bincount(labels[hits[:, 0]], minlength=len(counts))
    present = counts > 0
    return _metrics(
        hits,
        predictions.confidence,
        mean_per_class=100 * float((right[present] / counts[present]).mean()),
        loss=float(predictions.loss.astype(np.float64).mean()),
    )


def metrics_of_answers(predictions: Predictions, answers: Sequence[Collection[int]]) -> Metrics:
    """The figures with any number of right classes for each image, as ReaL's (Beyer et al. 2020).

    Args:
        answers: of each image; those without any are left out, but not all images may be.
    """
    rows = [row for row, classes in enumerate(answers) if classes]
    hits = np.array([[label in answers[row] for label in predictions.top[row]] for row in rows])
    return _metrics(hits, predictions.confidence[rows], None, None)


def _metrics(
    hits: npt.NDArray[np.bool_],
    confidence: npt.NDArray[np.float32],
    mean_per_class: float | None,
    loss: float | None,
) -> Metrics:
    count, right = len(hits), int(hits[:, 0].sum())
    low, high = wilson_interval(right, count)
    return Metrics(
        images=count,
        top1=100 * right / count,
        top1_interval=(100 * low, 100 * high),
        top5=100 * int(hits.any(axis=1).sum()) / count,
        mean_per_class=mean_per_class,
        loss=loss,
        ece=100 * calibration_error(confidence, hits[:, 0]),
    )


def wilson_interval(hits: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of which `hits` among `count` were seen."""
    share = hits / count
    shrunk = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrunk
    half = z / shrunk * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # There, the formula gives 0 and 1 but for rounding.
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == count else centre + half


def calibration_error(
    confidence: npt.NDArray[np.float32], is_right: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The gap between mean confidence and accuracy in bins of equal width, (low, high], weighted by
    the images in them.

    Args:
        confidence: [N], the probability of the chosen class.
        is_right: [N], whether it is the right one.
    """
    bins = np.ceil(confidence.astype(np.float64) * num_bins).astype(np.int64) - 1
    bins = bins.clip(0, num_bins - 1)
    gaps = np.bincount(bins, confidence.astype(np.float64) - is_right, num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def class_results(predictions: Predictions, labels: npt.NDArray[np.int64]) -> list[ClassResult]:
    """The results of the classes that have images, in their order."""
    results = []
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    for label, chosen in zip(
        present.tolist(), np.split(predictions.top[order, 0], starts[1:]), strict=True
    ):
        others, counts = np.unique(chosen[chosen != label], return_counts=True)
        most = int(counts.argmax()) if len(counts) else None
        results.append(
            ClassResult(
                label,
                len(chosen),
                int((chosen == label).sum()),
                None if most is None else int(others[most]),
                0 if most is None else int(counts[most]),
            )
        )
    return results

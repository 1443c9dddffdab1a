"""Compares an export with the eager model: no file stays whose logits are other ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dali_rsb.errors import UserError
from dali_rsb.weights.export.subject import Subject


@dataclass(frozen=True)
class Difference:
    """How far the logits of an export are from the eager model's.

    Attributes:
        largest: absolute difference.
        bound: on it; a format's bound times the largest logit, where that is above 1.
        num_images: that were compared.
    """

    largest: float
    bound: float
    num_images: int


def unusable(what: str, error: Exception) -> UserError:
    """An export that its own library cannot read or run.

    Args:
        what: "read" or "run".
    """
    reason = " ".join(str(error).split())[:120]
    return UserError(
        f"the export cannot be {what} ({type(error).__name__}: {reason}); nothing was written, try "
        "another --to"
    )


@torch.no_grad()
def compare(
    subject: Subject, reloaded: Callable[[Tensor], Tensor], bound: float, is_normalised: bool = True
) -> Difference:
    """Compare what was reloaded with the eager model, on the subject's images.

    The images go in as two batches of unlike sizes: a batch dimension that is fixed is an error.

    Args:
        reloaded: gives logits float32 [B, num_classes].
        bound: relative to the largest logit, or absolute where that is below 1.
        is_normalised: whether `reloaded` takes normalised images; else values in [0, 1].

    Raises:
        UserError: the eager model takes no such images, the reloaded one fails on them, or the
            difference is above the bound.
    """
    normalised = subject.normalise(subject.images)
    size = subject.preprocessing.size
    try:
        expected = subject.model(normalised)
    except (RuntimeError, AssertionError) as error:  # timm's fixed sizes are assertions
        raise UserError(
            f"{subject.weights.architecture} takes no images of {size} px; give --size"
        ) from error
    images = normalised if is_normalised else subject.images
    try:
        actual = torch.cat([reloaded(images[:1]), reloaded(images[1:])])
    except Exception as error:  # of whichever library runs it
        raise unusable("run", error) from error
    largest = float("inf")
    if actual.shape == expected.shape:
        largest = float((actual - expected).abs().max())
    scaled = bound * max(1.0, float(expected.abs().max()))
    if not largest <= scaled:  # NaN included
        raise UserError(
            f"the export's logits differ from the model's by {largest:.1e} on {len(images)} "
            f"images, more than {scaled:.1e}; nothing was written, try another --to"
        )
    return Difference(largest, scaled, len(images))

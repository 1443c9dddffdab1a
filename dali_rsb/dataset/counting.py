"""What was seen at indexing: entries used, and entries left out by reason, in one line."""

from __future__ import annotations

import collections
import logging
from collections.abc import Mapping

from dali_rsb.dataset.classes import first_difference
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.ordering import ClassOrder, ordered_names
from dali_rsb.dataset.store import Stamp

logger = logging.getLogger(__name__)

UNREADABLE, MISSING = "cannot be read", "missing"
# Reasons for which an entry that is meant to be an image is lost, and that have their own warning.
LOST = frozenset([UNREADABLE, MISSING])
_EXPECTED = {*LOST, "hidden", "a header line", ".cls", ".json", ".txt"}
_MAX_REASONS = 6


def count_left_out(
    by_listing: Mapping[str, int], unreadable: Mapping[str, Stamp]
) -> dict[str, int]:
    """Number of the entries left out by reason.

    Args:
        by_listing: those that are no images by their names.
        unreadable: the stamp of each image whose header cannot be read; empty if it is not there.
    """
    counts = collections.Counter(by_listing)
    counts[MISSING] += sum(not stamp for stamp in unreadable.values())
    counts[UNREADABLE] += sum(bool(stamp) for stamp in unreadable.values())
    return dict((+counts).most_common())


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """The reasons with their numbers, such as "3 .txt, 1 hidden"."""
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items()]
    rest = sum(list(left_out.values())[_MAX_REASONS:])
    return ", ".join(reasons[:_MAX_REASONS]) + (f", {rest:,} others" if rest else "")


def describe_indexing(index: DatasetIndex, seconds: float) -> tuple[int, str]:
    """The line about an index that was built, and its logging level.

    It is a warning where files were left out that may be meant to be images.
    """
    num_left_out = sum(index.left_out.values())
    line = (
        f"indexed {len(index)} images of {index.num_classes} classes in {index.origin} in "
        f"{seconds:.1f} s: {len(index) + num_left_out} entries seen, {num_left_out} left out"
    )
    if num_left_out:
        line += f" ({describe_left_out(index.left_out)})"
    is_expected = set(index.left_out) <= _EXPECTED
    return logging.INFO if is_expected else logging.WARNING, line


def warn_of_other_order(index: DatasetIndex, order: ClassOrder) -> None:
    """Say it where plain and natural order give classes other numbers."""
    ordered = ordered_names(index.classes, order)
    other: ClassOrder = "natural" if order == "plain" else "plain"
    difference = first_difference(ordered, ordered_names(index.classes, other))
    if difference is None or list(index.classes) != ordered:
        return
    label, ours, theirs = difference
    logger.warning(
        "class %d of %s is %s, in the %s order of %s; in %s order (%s) it is %s: "
        "class_order=%s reads it so",
        label,
        index.origin,
        ours,
        order,
        "ImageFolder" if order == "plain" else "timm",
        other,
        "timm's, and of dali_rsb before class_order" if other == "natural" else "ImageFolder's",
        theirs,
        other,
    )

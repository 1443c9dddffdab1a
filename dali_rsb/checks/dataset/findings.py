"""What is wrong with one or two scanned datasets: undecodable images, and equal bytes where there
should be none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dali_rsb.checks.dataset.scan import Scan


@dataclass(frozen=True, order=True)
class Place:
    """An image: the number of its dataset (0 or 1) and its row there."""

    dataset: int
    row: int


@dataclass(frozen=True)
class Duplicates:
    """Images of the same bytes, as groups of places.

    Attributes:
        across_classes: a group has more than one class: at least one label is wrong.
        across_sets: a group is in both datasets: the second does not measure what the first taught.
        within_class: copies in one class of one dataset, which do no harm but count twice.
    """

    across_classes: list[list[Place]]
    across_sets: list[list[Place]]
    within_class: list[list[Place]]


def find_duplicates(scans: Sequence[Scan]) -> Duplicates:
    """Group the images of all scans by their bytes; a class is known by its name."""
    groups: dict[bytes, list[Place]] = {}
    for number, scanned in enumerate(scans):
        for row, digest in enumerate(scanned.digests):
            if digest:
                groups.setdefault(digest, []).append(Place(number, row))
    found = Duplicates([], [], [])
    for places in groups.values():
        if len(places) < 2:
            continue
        across_sets = len({place.dataset for place in places}) > 1
        across_classes = len({class_of(scans, place) for place in places}) > 1
        if across_classes:
            found.across_classes.append(places)
        if across_sets:
            found.across_sets.append(places)
        if not across_classes and not across_sets:
            found.within_class.append(places)
    return found


def class_of(scans: Sequence[Scan], place: Place) -> str:
    """Name of an image's class."""
    index = scans[place.dataset].index
    return index.classes[int(index.labels[place.row])]


def to_exclude(scans: Sequence[Scan], duplicates: Duplicates) -> list[Place]:
    """The images without which the datasets are sound, in their order.

    That is what nothing decodes, or what is damaged; of equal bytes under several classes all, as
    nobody knows which label is right; of equal bytes in both sets those of the first, so that the
    second one measures on the same images as before.
    """
    places = {
        Place(number, row)
        for number, scanned in enumerate(scans)
        for row in [*scanned.undecodable, *scanned.damaged]
    }
    for group in duplicates.across_classes:
        places.update(group)
    for group in duplicates.across_sets:
        places.update(place for place in group if place.dataset == 0)
    return sorted(places)

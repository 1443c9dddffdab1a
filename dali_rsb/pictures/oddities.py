"""What is off in a training set, marked before a run: blank images, classes and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset import DatasetIndex
from dali_rsb.pictures.stages import stored_image
from dali_rsb.system.names import printable

# Levels that the compression of a blank image may leave.
_TOLERANCE = 2
# A class that has so many times the images of another is told of.
IMBALANCE = 20.0
_NAMED = 5


@dataclass(frozen=True)
class Oddity:
    """Something that is off.

    Attributes:
        kind: a short name, for programs.
        count: how many images or classes.
        of: of how many.
        text: a line.
        names: of some of them.
    """

    kind: str
    count: int
    of: int
    text: str
    names: tuple[str, ...] = field(default=())

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "kind": self.kind,
            "count": self.count,
            "of": self.of,
            "text": self.text,
            "names": list(self.names),
        }


def blankness(pixels: npt.NDArray[np.uint8]) -> str | None:
    """What is off with an image, uint8 [H, W, 3]: "black", "grey", "constant", or None.

    Grey is one level of grey all over, constant is another single colour.
    """
    flat = pixels.reshape(-1, 3)
    low, high = flat.min(axis=0).astype(int), flat.max(axis=0).astype(int)
    if (high <= _TOLERANCE).all():
        return "black"
    if (high - low > _TOLERANCE).any():
        return None
    return "grey" if high.max() - low.min() <= _TOLERANCE else "constant"


_OF_KIND = {
    "black": "all black",
    "grey": "one grey all over",
    "constant": "one colour all over",
}


def of_images(index: DatasetIndex, images: Sequence[int]) -> list[Oddity]:
    """Blank images, and those that Pillow cannot decode, among some of a dataset's."""
    found: dict[str, list[str]] = {}
    for image in images:
        try:
            kind = blankness(np.asarray(stored_image(index, image)))
        except Exception:  # Pillow's plugins raise nearly every type on damaged files
            kind = "undecodable"
        if kind is not None:
            found.setdefault(kind, []).append(index.name(image))
    words = {**_OF_KIND, "undecodable": "undecodable by Pillow"}
    return [
        _oddity(kind, found[kind], len(images), f"images are {words[kind]}")
        for kind in words
        if kind in found
    ]


def of_pictures(named: Sequence[tuple[str, npt.NDArray[np.uint8]]]) -> list[Oddity]:
    """Blank ones among augmented images, with what to call each."""
    found: dict[str, list[str]] = {}
    for name, pixels in named:
        if kind := blankness(pixels):
            found.setdefault(kind, []).append(name)
    return [
        _oddity(f"augmented {kind}", names, len(named), f"augmented images are {_OF_KIND[kind]}")
        for kind, names in found.items()
    ]


def of_classes(index: DatasetIndex, num_classes: int) -> list[Oddity]:
    """Classes without images, labels that the model has no output for, and imbalance.

    Args:
        num_classes: outputs of the model.
    """
    counts = np.bincount(index.labels, minlength=max(num_classes, len(index.classes)))
    named = len(index.classes)
    found = []
    empty = np.flatnonzero(counts[:named] == 0).tolist()
    if empty:
        names = [index.classes[label] for label in empty]
        found.append(_oddity("empty classes", names, named, "classes have no image"))
    if num_classes > named:
        text = f"outputs of the model (model.num_classes={num_classes}) belong to no class"
        found.append(_oddity("outputs without a class", [], num_classes, text, num_classes - named))
    outside = int(counts[num_classes:].sum())
    if outside:
        names = [index.classes[label] for label in range(num_classes, named) if counts[label]]
        text = f"labels are out of range, {num_classes} or more (model.num_classes={num_classes})"
        found.append(_oddity("labels out of range", names, len(index), text, outside))
    with_images = np.flatnonzero(counts[:named])
    if len(with_images) > 1:
        most = int(with_images[counts[with_images].argmax()])
        least = int(with_images[counts[with_images].argmin()])
        ratio = counts[most] / counts[least]
        if ratio >= IMBALANCE:
            rare = with_images[counts[most] >= IMBALANCE * counts[with_images]].tolist()
            text = (
                f"classes have {IMBALANCE:g} times fewer images than {index.classes[most]} with "
                f"{counts[most]:,}; the smallest, {index.classes[least]}, has {counts[least]:,}"
            )
            names = [index.classes[label] for label in rare]
            found.append(_oddity("imbalance", names, named, text))
    return found


def spread(num_images: int, count: int) -> list[int]:
    """Up to `count` images, spread evenly over a dataset."""
    count = min(num_images, count)
    chosen: list[int] = np.linspace(0, num_images - 1, count).round().astype(int).tolist()
    return chosen


def _oddity(
    kind: str, names: Sequence[str], of: int, text: str, count: int | None = None
) -> Oddity:
    count = len(names) if count is None else count
    shown = ", ".join(printable(name, 60) for name in names[:_NAMED])
    more = ", ..." if len(names) > _NAMED else ""
    line = f"{count:,} of {of:,} {text}{': ' if shown else ''}{shown}{more}"
    return Oddity(kind, count, of, line, tuple(names))

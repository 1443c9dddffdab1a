"""ImageNet's conventions: its classes are synsets, and numbers mean them in their sorted order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dali_rsb.errors import UserError
from dali_rsb.system.files import UnreadableFileError, read_json

NUM_CLASSES = 1000

_SYNSET = re.compile(r"n[0-9]{8}")
_REAL = "give real.json of ReaL: for each validation image the list of its class numbers"


def are_imagenets(classes: Sequence[str]) -> bool:
    """Whether classes are ImageNet-1k's: 1,000 synsets such as n01440764, in whatever order."""
    return len(set(classes)) == NUM_CLASSES and all(map(_SYNSET.fullmatch, classes))


def imagenet_classes() -> tuple[str, ...]:
    """The synsets in the order in which published weights have their outputs.

    Raises:
        UserError: timm, which knows them, is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise UserError(
            "the names of ImageNet's classes come with timm; run: pip install timm, or give "
            "--classes FILE"
        ) from error
    return tuple(ImageNetInfo().label_names())


def titles(classes: Sequence[str]) -> list[str]:
    """Class names for people: ImageNet's synsets with what they are, where timm can tell.

    "goldfish n01443537": what they are alone is no name, two synsets are a crane.
    """
    if not any(map(_SYNSET.fullmatch, classes)):
        return list(classes)
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return list(classes)
    known = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
    return [
        f"{known[name].partition(',')[0]} {name}" if name in known else name for name in classes
    ]


def labels_of_numbers(classes: Sequence[str]) -> list[int]:
    """Where among a model's classes those stand that the numbers 0 to 999 mean."""
    position = {name: label for label, name in enumerate(classes)}
    return [position[name] for name in sorted(classes)]


def read_real(path: Path) -> list[list[int]]:
    """ReaL's labels (Beyer et al. 2020, arXiv:2006.07159): entry i is of validation image i + 1.

    Raises:
        UserError: it is no such file.
    """
    entries = read_json(path, _REAL)
    good = isinstance(entries, list) and all(
        isinstance(entry, list)
        and all(type(label) is int and 0 <= label < NUM_CLASSES for label in entry)
        for entry in entries
    )
    if not good or not entries:
        raise UnreadableFileError(path, "holds something else", _REAL)
    return entries

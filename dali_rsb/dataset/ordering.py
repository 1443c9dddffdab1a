"""The two orders of classes and images: plain, as torchvision's ImageFolder, and natural, as timm.

They differ where names hold numbers without leading zeros ("10" stands before "2" in plain order)
or capitals ("Banana" before "apple"). A label is a position in the order of the classes, so who
trained by one order must not be evaluated by the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

from dali_rsb.dataset.natural_order import natural_key, natural_sorted

ClassOrder: TypeAlias = Literal["plain", "natural"]
ORDERS: tuple[ClassOrder, ...] = ("plain", "natural")


def ordered_names(names: Iterable[str], order: ClassOrder) -> list[str]:
    """Class names in an order."""
    return sorted(names) if order == "plain" else natural_sorted(names)


def path_order(paths: Sequence[str], order: ClassOrder) -> list[int]:
    """Positions of the paths in the order in which ImageFolder or timm's reader lists images.

    Args:
        paths: relative to one root, such as CLASS/IMAGE.jpg.
    """
    positions = sorted(range(len(paths)), key=paths.__getitem__)
    if order == "natural":
        positions.sort(key=lambda i: natural_key(paths[i]))
        return positions

    def key(i: int) -> tuple[str, str, str]:
        # ImageFolder: class by class, in each the folders by their paths, in each the names.
        folder, _, name = paths[i].rpartition("/")
        return folder.partition("/")[0], folder, name

    positions.sort(key=key)
    return positions


def below_common_folder(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them have in common, but for the innermost one.

    So a list of a folder's images, wherever the list lies, is ordered as the folder is.
    """
    folders = {path.rpartition("/")[0] for path in paths}
    parts = [PurePosixPath(folder).parts for folder in (min(folders), max(folders))]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False))
    shared = "/".join(part.strip("/") for part, _ in same)
    skip = len(shared) + 1 + paths[0].startswith("/") if shared else 0
    return [path[skip:] for path in paths]

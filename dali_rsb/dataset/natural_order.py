"""Natural sorting, as timm sorts files and classes: n2 before n10, upper case as lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> list[str | int]:
    """Sorting key under which n2 precedes n10 and upper case equals lower case, as timm sorts."""
    texts = _DIGITS.split(name.lower())
    parts: list[str | int] = [*texts]
    # Read as hexadecimal, decimal numbers keep their order, and Python's limit of 4,300 digits,
    # which holds for the decimal system alone, stops no name.
    parts[1::2] = [int(digits, 16) for digits in texts[1::2]]
    return parts


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort by `natural_key`, equal keys (A and a) by code point; timm leaves those to chance."""
    return sorted(sorted(names), key=natural_key)

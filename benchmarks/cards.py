"""GPUs and what they can do at most: memory bandwidth and 16-bit matrix products.

The figures are the data sheets' (dense, accumulated in float32), times what such cards were
measured to reach of them: an H100 copies at 3.0 of 3.35 TB/s and an H200 at 4.3 of 4.8; both
multiply matrices at 0.79 to 0.80 of 989 TFLOP/s, on random data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dali_rsb.errors import UserError

REACHED_BANDWIDTH = 0.895
REACHED_MATRIX_RATE = 0.80


@dataclass(frozen=True)
class Card:
    """What a card reaches: bytes/s of a copy, read and written, and FLOP/s of a matrix product."""

    name: str
    bytes_per_s: float
    flops_per_s: float
    source: str


def _from_data_sheet(name: str, gb_per_s: float, tflops: float) -> Card:
    return Card(
        name,
        REACHED_BANDWIDTH * gb_per_s * 1e9,
        REACHED_MATRIX_RATE * tflops * 1e12,
        f"data sheet: {gb_per_s:,g} GB/s, of which {REACHED_BANDWIDTH:g} are reached, "
        f"{tflops:g} TFLOP/s, of which {REACHED_MATRIX_RATE:g}",
    )


CARDS = tuple(
    _from_data_sheet(*figures)
    for figures in (
        ("V100", 900, 125),
        ("T4", 320, 65),
        ("A10", 600, 125),
        ("A30", 933, 165),
        ("A100", 2039, 312),
        ("A100 40GB", 1555, 312),
        ("L4", 300, 121),
        ("L40S", 864, 362),
        ("RTX 3090", 936, 71),
        ("RTX 4090", 1008, 165),
        ("RTX 5090", 1792, 209),
        ("H100", 3350, 989),
        ("H100 PCIe", 2000, 756),
        ("GH200", 4000, 989),
        ("H200", 4800, 989),
        ("B200", 8000, 2250),
    )
)


def matching_names(wanted: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that a card's name means: "H100", "nvidia h100 pcie", "3090".

    The one with the most words that are all in `wanted`; where none is, those that hold all of
    `wanted`'s words.
    """
    asked = _words(wanted)
    known = {name: _words(name) for name in names}
    inside = {name: words for name, words in known.items() if words <= asked}
    if inside:
        return [max(inside, key=lambda name: len(inside[name]))]
    return [name for name, words in known.items() if asked and asked <= words]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def card_named(name: str) -> Card:
    """The card that a name means, such as "V100" or "NVIDIA H100 80GB HBM3".

    Raises:
        UserError: it is none that is known here.
    """
    known = {card.name: card for card in CARDS}
    found = matching_names(name, known)
    if len(found) != 1:
        raise UserError(
            f"nothing is known about the card {name}; take one of {', '.join(known)}, or give "
            "--bandwidth and --tflops"
        )
    return known[found[0]]

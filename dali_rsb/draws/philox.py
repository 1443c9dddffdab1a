"""Counter-based random numbers: uniforms that depend on (seed, epoch, stream, position) alone.

Any process that asks for a position gets the same numbers, in any order, after any restart. That
is what makes the data path a pure function.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

WORDS_PER_BLOCK = 4  # one Philox4x64 block: four 64-bit words for each counter value


class Stream(IntEnum):
    """What the numbers are for; each stream has a counter space of its own. Values are fixed."""

    CROP = 1
    RANDAUGMENT = 2
    MIXING = 3
    VERTICAL_FLIP = 4
    ERASING = 5
    ERASING_NOISE = 6
    DECODER = 7


# Gives the uniforms [rows, width] of one purpose for some rows, wherever these stand.
Draw = Callable[[Stream, int], np.ndarray]


def uniforms(seed: int, epoch: int, stream: Stream, positions: range, width: int) -> np.ndarray:
    """Draw `width` uniforms in [0, 1) for each position.

    Args:
        seed: run seed, 0 <= seed < 2**64.
        epoch: epoch number, >= 0.
        stream: the purpose of the numbers.
        positions: positions in the epoch, ascending; a range with a step draws what lies between
            too and drops it, so steps should be small (the number of processes).
        width: numbers for one position.

    Returns:
        float64 [len(positions), width].
    """
    blocks = -(-width // WORDS_PER_BLOCK)
    bits = np.random.Philox(
        key=np.array([seed, epoch], dtype=np.uint64),
        counter=np.array([positions.start * blocks, stream, 0, 0], dtype=np.uint64),
    )
    covered = len(range(positions.start, positions.stop))
    drawn = np.random.Generator(bits).random((covered, blocks * WORDS_PER_BLOCK))
    return drawn[:: positions.step, :width]

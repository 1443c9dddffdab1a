"""One photograph under every operation of RandAugment, ours beside Pillow's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_rsb.checks.parity.operations import Operations
from dali_rsb.checks.parity.pillow import apply_operation
from dali_rsb.draws.operations import OPERATION_SETS, OPERATIONS, RECORDS
from dali_rsb.draws.randaugment import RandAugmentPolicy

# Where the sign matters, and where it does not.
SIGNED, UNSIGNED = (-10.0, -5.0, 5.0, 10.0), (2.5, 5.0, 7.5, 10.0)


@dataclass(frozen=True, eq=False)
class Operated:
    """A photograph after an operation.

    Attributes:
        operation: its name.
        magnitude: with its sign; None where it does not matter.
        ours, pillows: uint8 [H, W, 3].
    """

    operation: str
    magnitude: float | None
    ours: npt.NDArray[np.uint8]
    pillows: npt.NDArray[np.uint8]

    @property
    def difference(self) -> npt.NDArray[np.int64]:
        """In levels, [H, W, 3]."""
        return np.abs(self.ours.astype(np.int64) - self.pillows)

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "operation": self.operation,
            "magnitude": self.magnitude,
            "largest_difference": int(self.difference.max()),
            "mean_difference": round(float(self.difference.mean()), 5),
        }


def operate(
    photograph: Image.Image, policy: RandAugmentPolicy, fill: tuple[int, int, int]
) -> list[Operated]:
    """Every operation of a policy's set at several magnitudes.

    Args:
        photograph: RGB, square.
        fill: colour of what geometric operations bring in.
    """
    pipeline = Operations(photograph.width, None, fill)
    found = []
    for number in OPERATION_SETS[policy.operation_set]:
        record, name = RECORDS[number], OPERATIONS[number]
        magnitudes = SIGNED if record.has_direction else UNSIGNED
        for signed in magnitudes if record.has_magnitude else (10.0,):
            settings = (name, abs(signed), signed < 0, policy.increasing)
            (ours,) = pipeline.apply([photograph], *settings)
            pillows = np.asarray(apply_operation(photograph, *settings, fill))
            magnitude = signed if record.has_magnitude else None
            found.append(Operated(name, magnitude, ours.copy(), pillows))
    return found


def chart(operated: list[Operated]) -> npt.NDArray[np.uint8]:
    """All of them in one picture: a row for each operation, ours and Pillow's side by side.

    Returns:
        uint8 [rows * size, columns * 2 * size, 3]; white where an operation has fewer magnitudes.
    """
    names = list(dict.fromkeys(one.operation for one in operated))
    of_name = [[one for one in operated if one.operation == name] for name in names]
    size, columns = operated[0].ours.shape[0], max(map(len, of_name))
    picture = np.full((len(names) * size, columns * 2 * size, 3), 255, np.uint8)
    for row, ones in enumerate(of_name):
        for column, one in enumerate(ones):
            pair = np.concatenate([one.ours, one.pillows], axis=1)
            left = column * 2 * size
            picture[row * size : (row + 1) * size, left : left + 2 * size] = pair
    return picture

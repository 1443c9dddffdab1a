"""A row of a batch in words and numbers: where its image comes from and what it drew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dali_rsb.dataset import DatasetIndex
from dali_rsb.draws.drawn import Drawn
from dali_rsb.draws.mixing import MixDraws
from dali_rsb.draws.operations import OPERATIONS, RECORDS
from dali_rsb.draws.randaugment import RandAugmentDraws
from dali_rsb.draws.samples import BatchSpec


def describe_row(index: DatasetIndex, spec: BatchSpec, drawn: Drawn, row: int) -> dict[str, Any]:
    """A row as JSON takes it.

    Args:
        spec: of its batch, with the images that were used.
        drawn: what the batch drew.

    Returns:
        Position in the epoch; file, label, class and size in pixels of the image; window, mirroring
        and filter of the crop; RandAugment's operations that were applied, in their order;
        "mixing", None where the image was not mixed; and the boxes that were erased, each as top,
        bottom, left, right in pixels of the result.
    """
    image = int(spec.indices[row])
    windows, erasing = drawn.windows, drawn.erasing
    erased = [] if erasing is None else erasing.boxes[erasing.rows == row].tolist()
    return {
        **_identity(index, spec, row),
        "width": int(index.widths[image]),
        "height": int(index.heights[image]),
        "window": {
            name: int(getattr(windows, name)[row]) for name in ("top", "left", "height", "width")
        },
        "mirrored": bool(drawn.is_mirrored[row]),
        "filter": drawn.filters[row],
        "randaugment": [] if drawn.randaugment is None else _operations(drawn.randaugment, row),
        "mixing": None if drawn.mixing is None else _mixing(index, spec, drawn.mixing, row),
        "erased": erased,
    }


def operations_text(row: Mapping[str, Any]) -> str:
    """What RandAugment did to a row, in a line; empty if nothing."""
    return ", ".join(operation_text(step) for step in row["randaugment"])


def operation_text(step: Mapping[str, Any]) -> str:
    """One operation with its magnitude, negative where it took the other direction."""
    if step["magnitude"] is None:
        return str(step["operation"])
    sign = "-" if step["negative"] else ""
    return f"{step['operation']} {sign}{step['magnitude']:.2f}"


def mixing_text(row: Mapping[str, Any]) -> str:
    """How a row was mixed, in a line; empty if it was not."""
    mixing = row["mixing"]
    if mixing is None:
        return ""
    partner = mixing["partner"]
    return f"{mixing['kind']} {mixing['lam']:.3f} with {partner['class']} at {partner['position']}"


def _identity(index: DatasetIndex, spec: BatchSpec, row: int) -> dict[str, Any]:
    image = int(spec.indices[row])
    label = int(index.labels[image])
    return {
        "position": spec.positions[row],
        "file": index.name(image),
        "label": label,
        "class": index.classes[label],
    }


def _operations(draws: RandAugmentDraws, row: int) -> list[dict[str, Any]]:
    steps = []
    for layer in np.flatnonzero(draws.operation[row] >= 0).tolist():
        record = RECORDS[draws.operation[row, layer]]
        magnitude = float(draws.magnitude[row, layer])
        steps.append(
            {
                "layer": layer + 1,
                "operation": OPERATIONS[draws.operation[row, layer]],
                "magnitude": magnitude if record.has_magnitude else None,
                "negative": bool(draws.negate[row, layer]) if record.has_direction else None,
            }
        )
    return steps


def _mixing(
    index: DatasetIndex, spec: BatchSpec, mixing: MixDraws, row: int
) -> dict[str, Any] | None:
    box, pixel_lam = mixing.box[row].tolist(), float(mixing.pixel_lam[row])
    is_cutmix = box[1] > box[0] and box[3] > box[2]
    if pixel_lam == 1 and not is_cutmix:
        return None
    return {
        "kind": "cutmix" if is_cutmix else "mixup",
        "lam": float(mixing.lam[row]),
        "box": box if is_cutmix else None,
        "partner": _identity(index, spec, int(mixing.partner[row])),
    }

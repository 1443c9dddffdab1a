"""The distribution of the training crops: shares of the area, aspect ratios, magnification."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_rsb.draws.drawn import drawn
from dali_rsb.draws.samples import BatchSpec, TrainSamples

NUM_BINS = 20
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, eq=False)
class Distribution:
    """Values of some crops.

    Attributes:
        name: what they are.
        values: float64 [n].
        asked: the range that the configuration asks for, None where it asks for none.
    """

    name: str
    values: npt.NDArray[np.float64]
    asked: tuple[float, float] | None = None

    @property
    def quantiles(self) -> list[float]:
        """At 0, 5, 25, 50, 75, 95 and 100 %."""
        return [float(value) for value in np.quantile(self.values, _QUANTILES)]

    def histogram(self) -> tuple[list[int], list[float]]:
        """Counts, and the edges of their bins."""
        counts, edges = np.histogram(self.values, NUM_BINS)
        return counts.tolist(), edges.tolist()

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        counts, edges = self.histogram()
        return {
            "name": self.name,
            "asked": self.asked,
            "quantiles": dict(zip(map(str, _QUANTILES), self.quantiles, strict=True)),
            "counts": counts,
            "edges": edges,
        }


def crop_distributions(samples: TrainSamples, num_crops: int) -> list[Distribution]:
    """The first `num_crops` crops of a run, of as many epochs as that takes.

    The share of the area and the ratio of width to height are those of whole pixels: on small
    images they leave the range that is asked for by a little. "Magnification" is the side of the
    result over the root of the window's area: above 1, pixels are made up.
    """
    shares, ratios, magnifications = [], [], []
    index, transform, missing = samples.index, samples.transform, num_crops
    for epoch in itertools.count():
        order = samples.order(epoch)[:missing]
        spec = BatchSpec(order, len(order), epoch, range(len(order)))
        windows = drawn(samples, spec).windows
        area = (windows.height * windows.width).astype(np.float64)
        whole = index.heights[order].astype(np.int64) * index.widths[order]
        shares.append(area / whole)
        ratios.append(windows.width / windows.height)
        magnifications.append(transform.size_px / np.sqrt(area))
        missing -= len(order)
        if not missing:
            break
    return [
        Distribution("share of the image's area", np.concatenate(shares), transform.scale),
        Distribution("width / height", np.concatenate(ratios), transform.ratio),
        Distribution("magnification", np.concatenate(magnifications)),
    ]


def bars(counts: Sequence[int], edges: Sequence[float], width_px: int = 360) -> str:
    """A histogram as an SVG drawing, in the colour of the text around it."""
    height, base = 96, 110
    step, most = width_px / len(counts), max(*counts, 1)
    rows = [
        f'<rect x="{number * step + 1:.1f}" y="{base - height * count / most:.1f}" '
        f'width="{step - 2:.1f}" height="{height * count / most:.1f}"/>'
        for number, count in enumerate(counts)
    ]
    labels = [
        f'<text x="{place}" y="{base + 16}" text-anchor="{anchor}" font-size="12">{edge:.3g}</text>'
        for place, anchor, edge in (
            (1, "start", edges[0]),
            (width_px / 2, "middle", (edges[0] + edges[-1]) / 2),
            (width_px - 1, "end", edges[-1]),
        )
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width_px}" height="{base + 24}" '
        f'viewBox="0 0 {width_px} {base + 24}" fill="currentColor" font-family="sans-serif">'
        f"{''.join(rows)}{''.join(labels)}</svg>"
    )

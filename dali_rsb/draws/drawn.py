"""What the rows of a batch drew, for people: the numbers behind the inputs of a DALI pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.windows import Windows
from dali_rsb.draws.erasing import ErasingDraws
from dali_rsb.draws.mixing import MixDraws
from dali_rsb.draws.philox import Stream, uniforms
from dali_rsb.draws.randaugment import RandAugmentDraws
from dali_rsb.draws.samples import BatchSpec, TrainSamples
from pipelines.types import INTERPOLATIONS

_FILTERS = {code: name for name, code in INTERPOLATIONS.items()}


@dataclass(frozen=True, eq=False)
class Drawn:
    """The draws of a batch of B images.

    Attributes:
        windows: of RandomResizedCrop, in pixels of the stored images, [B].
        is_mirrored: bool [B], left to right.
        filters: of the resize, "bilinear" or "bicubic", [B].
        randaugment: None where the policy is none.
        mixing: None where nothing ever mixes.
        erasing: None where nothing ever is erased.
    """

    windows: Windows
    is_mirrored: npt.NDArray[np.bool_]
    filters: tuple[str, ...]
    randaugment: RandAugmentDraws | None
    mixing: MixDraws | None
    erasing: ErasingDraws | None


def drawn(samples: TrainSamples, spec: BatchSpec) -> Drawn:
    """The draws of a batch, whichever part of the images is decoded and whoever augments them."""

    def draw(stream: Stream, width: int) -> np.ndarray:
        return uniforms(samples.seed, spec.epoch, stream, spec.positions, width)

    index, policy = samples.index, samples.transform.randaugment
    # In this mode the inputs hold the windows in whole pixels of the stored images.
    inputs = replace(samples.transform, decode_mode="roi", randaugment=None).graph_inputs(
        draw, index.widths[spec.indices], index.heights[spec.indices]
    )
    start, size = inputs["anchor"].astype(np.int64), inputs["shape"].astype(np.int64)
    return Drawn(
        windows=Windows(start[:, 0], start[:, 1], size[:, 0], size[:, 1]),
        is_mirrored=inputs["start"][:, 1] > inputs["end"][:, 1],
        filters=tuple(_FILTERS[code] for code in inputs["interpolation"].tolist()),
        randaugment=None
        if policy is None
        else policy.draw(draw(Stream.RANDAUGMENT, policy.num_uniforms)),
        mixing=samples.mix_draws(spec),
        erasing=samples.erasing_draws(spec),
    )

"""Draws of mixup and CutMix: who is mixed with whom, with what weight, in which box.

Lambda and box are drawn once for each group of consecutive positions ("batch" mode), so they do
not depend on the number of processes. timm draws once per device batch, whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dali_rsb.constants import PAIR_BLOCK
from dali_rsb.draws.philox import Stream


@dataclass(frozen=True)
class MixDraws:
    """What one batch mixes. `pixel_lam` and `box` act on pixels, `lam` on targets.

    Outside its box a pixel is pixel_lam * own + (1 - pixel_lam) * partner; inside it is the
    partner's. Mixup has an empty box; CutMix has pixel_lam 1.
    """

    partner: np.ndarray  # int64 [B], row of the partner in this batch
    pixel_lam: np.ndarray  # float32 [B]
    box: np.ndarray  # int32 [B, 4]: top, bottom, left, right; bottom and right exclusive
    lam: np.ndarray  # float32 [B], weight of the own label

    @classmethod
    def none(cls, size: int) -> MixDraws:
        """Draws that leave a batch of `size` samples as it is."""
        return cls(
            partner=np.arange(size),
            pixel_lam=np.ones(size, np.float32),
            box=np.zeros((size, 4), np.int32),
            lam=np.ones(size, np.float32),
        )


@dataclass(frozen=True)
class MixPolicy:
    """Mixup and CutMix settings, with timm's meanings and names.

    Attributes:
        mixup: alpha of mixup's Beta(alpha, alpha); 0 turns mixup off.
        cutmix: alpha of CutMix's Beta; 0 turns CutMix off.
        prob: probability that a draw mixes at all.
        switch_prob: probability of CutMix where both are on.
        mode: who shares a draw: "batch" (a group), "pair" (two partners) or "elem" (nobody).
        group_size: samples that share a draw in "batch" mode; timm's is the device batch, and
            RSB's device batch was 512 (2048 on 4 GPUs).
        cutmix_minmax: range of the box's sides as shares of the image's, in place of a box whose
            area is drawn from CutMix's Beta.
        partners: "blocks" pairs inside blocks of PAIR_BLOCK samples; "ends" is timm's way, the
            first of a device batch with its last and so on, and one draw for the device batch in
            "batch" mode, whatever `group_size`.
    """

    mixup: float
    cutmix: float
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    group_size: int = 512
    cutmix_minmax: tuple[float, float] | None = None
    partners: Literal["blocks", "ends"] = "blocks"

    def draw(self, seed: int, epoch: int, positions: np.ndarray, size_px: int) -> MixDraws:
        """Draw the mixing of one device batch.

        Args:
            positions: int64 [B], positions in the epoch; B a multiple of PAIR_BLOCK if partners
                are found in blocks.
            size_px: side of the square images, in pixels.
        """
        rows = np.arange(len(positions))
        if self.partners == "ends":
            partner = rows[::-1].copy()
        else:
            partner = rows - rows % PAIR_BLOCK + (rows + PAIR_BLOCK // 2) % PAIR_BLOCK
        groups, row_group = np.unique(self._groups(positions), return_inverse=True)
        drawn = [self._draw_group(seed, epoch, int(group), size_px) for group in groups]
        pixel_lam, lam, box = (np.array(column) for column in zip(*drawn, strict=True))
        return MixDraws(
            partner=partner,
            pixel_lam=pixel_lam.astype(np.float32)[row_group],
            box=box.astype(np.int32)[row_group],
            lam=lam.astype(np.float32)[row_group],
        )

    def _groups(self, positions: np.ndarray) -> np.ndarray:
        if self.partners == "ends" and self.mode != "elem":
            rows = np.arange(len(positions))
            first = np.minimum(rows, rows[::-1]) if self.mode == "pair" else np.zeros_like(rows)
            return positions[first]
        if self.mode == "batch":
            return positions // self.group_size
        if self.mode == "pair":
            block, place = np.divmod(positions, PAIR_BLOCK)
            return block * PAIR_BLOCK + place % (PAIR_BLOCK // 2)
        return positions

    def _draw_group(
        self, seed: int, epoch: int, group: int, size_px: int
    ) -> tuple[float, float, tuple[int, int, int, int]]:
        """Pixel weight, target weight and box of one group, from a generator of its own.

        A Beta draw consumes an unknown count of numbers, so the group has its own counter word.
        """
        key = np.array([seed, epoch], dtype=np.uint64)
        counter = np.array([0, Stream.MIXING, group, 0], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        nowhere = (0, 0, 0, 0)
        if generator.random() >= self.prob:
            return 1.0, 1.0, nowhere
        both = self.mixup > 0 and self.cutmix > 0
        is_cutmix = generator.random() < self.switch_prob if both else self.cutmix > 0
        alpha = self.cutmix if is_cutmix else self.mixup
        lam = float(generator.beta(alpha, alpha))
        if not is_cutmix:
            return lam, lam, nowhere
        if self.cutmix_minmax is not None:
            box, lam = minmax_box(self.cutmix_minmax, size_px, generator)
        else:
            box, lam = cutmix_box(lam, size_px, *generator.integers(0, size_px, 2))
        return 1.0, lam, box


def cutmix_box(
    lam: float, size_px: int, centre_y: int, centre_x: int
) -> tuple[tuple[int, int, int, int], float]:
    """Box of CutMix around a centre, and lambda corrected to the box's true area (timm rand_bbox).

    The cut side int(size * sqrt(1 - lam)) is halved with floor, so an odd side loses a pixel, as it
    did when RSB was trained; newer timm (seen in 1.0.31) keeps that pixel.
    """
    half = int(size_px * np.sqrt(1.0 - lam)) // 2
    top, bottom = np.clip([centre_y - half, centre_y + half], 0, size_px)
    left, right = np.clip([centre_x - half, centre_x + half], 0, size_px)
    area = (bottom - top) * (right - left)
    return (int(top), int(bottom), int(left), int(right)), 1.0 - float(area) / (size_px * size_px)


def minmax_box(
    minmax: tuple[float, float], size_px: int, generator: np.random.Generator
) -> tuple[tuple[int, int, int, int], float]:
    """Box with sides between two shares of the image's, anywhere in it, and the lambda of its area.

    As timm's rand_bbox_minmax, but that the upper share may be reached.
    """
    low, high = (int(size_px * share) for share in minmax)
    height, width = generator.integers(low, high + 1, 2)
    top, left = generator.integers(0, [size_px - height + 1, size_px - width + 1])
    box = (int(top), int(top + height), int(left), int(left + width))
    return box, 1.0 - float(height * width) / (size_px * size_px)

"""How to pack a dataset, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_QUALITY = 90  # of images that --max-side makes smaller


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        shard_bytes: size of a shard in bytes, at most, unless a single image is larger.
        seed: seed of the order of the images in the shards.
        max_side: longest side in pixels that an image keeps; larger ones are made smaller.
        quality: JPEG quality, 1 to 100, to encode images with; None encodes only those that are
            made smaller.
        tiles: whether to cut JPEGs into tiles, which changes no pixel.
        raw: share of the images that are kept as pixels, 0 to 1; `quality` does not touch them.
    """

    shard_bytes: int = 10**9
    seed: int = 0
    max_side: int | None = None
    quality: int | None = None
    tiles: bool = False
    raw: float = 0.0

    @property
    def reencodes(self) -> bool:
        """Whether images may be changed."""
        return self.max_side is not None or self.quality is not None

    @property
    def computes(self) -> bool:
        """Whether images are more than read."""
        return self.reencodes or self.tiles or self.raw > 0

    @property
    def encoding(self) -> str:
        """What becomes of the images' pixels, in words."""
        if not self.reencodes:
            return "original pixels" if self.computes else "original bytes"
        quality = f"JPEG quality {self.quality or DEFAULT_QUALITY}"
        if self.max_side is None:
            return quality
        return f"longer side at most {self.max_side} px, {quality}"

    def __str__(self) -> str:
        tiles = ", tiles" if self.tiles else ""
        raw = f", {self.raw:g} of the images as pixels" if self.raw > 0 else ""
        return f"shards of {self.shard_bytes} bytes, seed {self.seed}, {self.encoding}{tiles}{raw}"

    def stored_sizes(
        self, widths: npt.NDArray[np.integer[Any]], heights: npt.NDArray[np.integer[Any]]
    ) -> npt.NDArray[np.int64]:
        """Widths and heights in pixels that `max_side` leaves images: [2, n]."""
        sizes = np.stack([widths, heights]).astype(np.int64)
        if self.max_side is None:
            return sizes
        scales = np.minimum(1.0, self.max_side / np.maximum(sizes.max(axis=0), 1))
        return np.maximum(1, np.rint(sizes * scales).astype(np.int64))

    def stored_size(self, width: int, height: int) -> tuple[int, int]:
        """`stored_sizes` of one image."""
        small_width, small_height = self.stored_sizes(np.array([width]), np.array([height]))
        return int(small_width[0]), int(small_height[0])


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        num_images, num_shards: all of them.
        num_reencoded: images that were encoded again, or stored as pixels of another size.
        num_undecodable: images that should have been encoded again, and are kept as they are since
            Pillow cannot decode them.
        bytes_before, bytes_after: of the images, in total.
        num_tiled: images that were cut into tiles.
        not_tiled: how many images should have been, and are kept as they are, by reason.
        num_raw, raw_bytes: images that are stored as pixels, and their share of `bytes_after`.
    """

    num_images: int
    num_shards: int
    num_reencoded: int
    num_undecodable: int
    bytes_before: int
    bytes_after: int
    num_tiled: int = 0
    not_tiled: dict[str, int] = field(default_factory=dict)
    num_raw: int = 0
    raw_bytes: int = 0

"""How to pack a dataset, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """

    shard_bytes: int = 10**9
    seed: int = 0
    max_side: int | None = None
    quality: int | None = None
    tiles: bool = False

    @property
    def reencodes(self) -> bool:
        """Whether images may be changed."""
        return self.max_side is not None or self.quality is not None

    @property
    def computes(self) -> bool:
        """Whether images are more than read."""
        return self.reencodes or self.tiles

    @property
    def encoding(self) -> str:
        """What becomes of the images' pixels, in words."""
        if not self.reencodes:
            return "original pixels" if self.tiles else "original bytes"
        quality = f"JPEG quality {self.quality or DEFAULT_QUALITY}"
        if self.max_side is None:
            return quality
        return f"longer side at most {self.max_side} px, {quality}"

    def __str__(self) -> str:
        tiles = ", tiles" if self.tiles else ""
        return f"shards of {self.shard_bytes} bytes, seed {self.seed}, {self.encoding}{tiles}"


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        num_images, num_shards: all of them.
        num_reencoded: images that were encoded again.
        num_undecodable: images that should have been encoded again, and are kept as they are since
            Pillow cannot decode them.
        bytes_before, bytes_after: of the images, in total.
        num_tiled: images that were cut into tiles.
        not_tiled: how many images should have been, and are kept as they are, by reason.
    """

    num_images: int
    num_shards: int
    num_reencoded: int
    num_undecodable: int
    bytes_before: int
    bytes_after: int
    num_tiled: int = 0
    not_tiled: dict[str, int] = field(default_factory=dict)

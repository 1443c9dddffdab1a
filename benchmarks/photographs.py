"""Twenty photographs that installed packages carry, and cuts of them with disjoint test images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dali_rsb.system.atomic import atomic_directory

# Of scikit-image; two are in scikit-learn.
NAMES = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass",
    "gravel", "hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket",
    "stereo_motorcycle", "text",
)  # fmt: skip
TILE_PX, LEAST_PX = 48, 36


def read_photographs() -> dict[str, Any]:
    """Twenty photographs by their names, as grey PIL images."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = {name: getattr(data, name)() for name in NAMES}
    arrays["stereo_motorcycle"] = arrays["stereo_motorcycle"][0]  # of the left camera
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(array).convert("L") for name, array in arrays.items()}


def write_cuts(root: Path, num_train: int, num_val: int, size_px: int, seed: int = 0) -> int:
    """Write square cuts as JPEG files; a class is a photograph, without its colours or contrast.

    A photograph is divided into tiles like a chessboard: training images are cut from the white
    ones, test images from the black ones, so that the two share no pixel.

    Args:
        root: new folder for `train/NAME/` and `val/NAME/`.
        num_train, num_val: cuts of each class.
        size_px: side of the images; cuts of `LEAST_PX` to `TILE_PX` are enlarged to it.

    Returns:
        The number of classes.
    """
    from PIL import ImageOps

    generator = np.random.default_rng(seed)
    photographs = read_photographs()
    root.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(root, durable=False) as directory:
        for name, photograph in photographs.items():
            for split, number, colour in (("train", num_train, 0), ("val", num_val, 1)):
                folder = directory / split / name
                folder.mkdir(parents=True)
                corners = list(tiles(photograph.width, photograph.height, colour))
                for cut in range(number):
                    box = box_in(corners[int(generator.integers(len(corners)))], generator)
                    image = photograph.crop(box).resize((size_px, size_px))
                    image = ImageOps.autocontrast(image).convert("RGB")
                    image.save(folder / f"{cut}.jpg", quality=90)
    return len(photographs)


def box_in(corner: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a square in a tile."""
    side = int(generator.integers(LEAST_PX, TILE_PX + 1))
    left, top = (start + int(generator.integers(TILE_PX - side + 1)) for start in corner)
    return left, top, left + side, top + side


def tiles(width: int, height: int, colour: int) -> Iterator[tuple[int, int]]:
    """Left and top of the whole tiles of one colour, 0 or 1."""
    for row in range(height // TILE_PX):
        for column in range(width // TILE_PX):
            if (row + column) % 2 == colour:
                yield column * TILE_PX, row * TILE_PX

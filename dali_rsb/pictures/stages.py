"""Pictures of a replayed row, stage by stage: from the stored image to what the model saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.image_header import open_with_pillow
from dali_rsb.pictures.replaying import ReplayedBatch, Replayer
from dali_rsb.pictures.rows import describe_row

Triple = tuple[float, float, float]

OVERVIEW_PX = 320  # longer side of the picture with the window
_OUTLINE = (255, 64, 0)


def stages(
    replayer: Replayer, replayed: ReplayedBatch, rows: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any], dict[str, Image.Image]]]:
    """Some rows of a batch.

    Yields:
        The row, its description (see `describe_row`), and its pictures by name, in their order:
        "source", the stored image; "window", a smaller one of it with the crop window outlined;
        "resized", cropped, resized and mirrored; "randaugment-1-NAME" and so on, after each
        operation that was applied; "mixed", normalised, mixed and erased, in levels again.
    """
    drawn, index = replayed.drawn, replayer.index
    num_layers = 0 if drawn.randaugment is None else drawn.randaugment.operation.shape[1]
    before = [replayer.before_layer(replayed, layer).numpy() for layer in range(num_layers)]
    before.append(replayed.batch.images.numpy())
    data = replayer.past.config.data
    mixed = as_levels(replayed.mixed.images, data.mean, data.std)
    for row in rows:
        described = describe_row(index, replayed.spec, drawn, row)
        source = stored_image(index, int(replayed.spec.indices[row]))
        pictures = {"source": source, "window": with_window(source, described["window"])}
        pictures["resized"] = Image.fromarray(before[0][row])
        for step in described["randaugment"]:
            name = f"randaugment-{step['layer']}-{step['operation']}"
            pictures[name] = Image.fromarray(before[step["layer"]][row])
        pictures["mixed"] = Image.fromarray(mixed[row])
        yield row, described, pictures


def stored_image(index: DatasetIndex, image: int) -> Image.Image:
    """A whole image as Pillow decodes it, which is what DALI's decoder of the CPU gives."""
    with index.open(image) as file:
        return open_with_pillow(file).convert("RGB")


def as_levels(images: Tensor, mean: Triple, std: Triple) -> np.ndarray:
    """Normalised images [B, 3, H, W] as levels, uint8 [B, H, W, 3]."""
    scale, shift = np.array(std, np.float32), np.array(mean, np.float32)
    pixels = images.float().permute(0, 2, 3, 1).numpy() * scale + shift
    levels: np.ndarray = np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)
    return levels


def with_window(image: Image.Image, window: Mapping[str, int]) -> Image.Image:
    """An image, at most `OVERVIEW_PX` long, with a window of it outlined."""
    scale = min(1.0, OVERVIEW_PX / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = window["left"] * scale, window["top"] * scale
    right, bottom = left + window["width"] * scale, top + window["height"] * scale
    box = (round(left), round(top), max(round(left), round(right) - 1))
    ImageDraw.Draw(small).rectangle(
        (*box, max(round(top), round(bottom) - 1)), outline=_OUTLINE, width=2
    )
    return small

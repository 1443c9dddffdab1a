"""What `dali-rsb preview` writes: a grid, a chart of operations, preview.json and preview.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.randaugment import fill_color
from dali_rsb.loader.pillow import eval_transform
from dali_rsb.pictures.crops import Distribution, bars, crop_distributions
from dali_rsb.pictures.folder import picture_folder, write_json
from dali_rsb.pictures.oddities import (
    Oddity,
    blankness,
    of_classes,
    of_images,
    of_pictures,
    spread,
)
from dali_rsb.pictures.operation_chart import Operated, chart, operate
from dali_rsb.pictures.page import (
    Block,
    Facts,
    Gallery,
    Mark,
    Page,
    Picture,
    Section,
    Svg,
    Table,
    Text,
)
from dali_rsb.pictures.past import Past
from dali_rsb.pictures.replaying import ReplayedBatch, Replayer
from dali_rsb.pictures.rows import describe_row, mixing_text, operations_text
from dali_rsb.pictures.stages import as_levels, stored_image
from dali_rsb.system.names import printable

JSON, PAGE, GRID, CHART = "preview.json", "preview.html", "grid.png", "operations.png"
GRID_COLUMNS = 8
NUM_CROPS = 10_000
_THUMBNAIL_PX = 96


@dataclass(frozen=True, eq=False)
class Preview:
    """What a preview found.

    Attributes:
        rows: of the grid, see `describe_row`.
        pictures: uint8 [n, size, size, 3], the grid's images, normalised, mixed and in levels
            again.
        operated: none where the configuration has no RandAugment.
        crops: distributions.
        oddities: what is off.
        looked_at: number of images that were decoded to look for blank ones.
    """

    rows: list[dict[str, Any]]
    pictures: npt.NDArray[np.uint8]
    operated: list[Operated]
    crops: list[Distribution]
    oddities: list[Oddity]
    looked_at: int

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "oddities": [oddity.figures() for oddity in self.oddities],
            "images_looked_at": self.looked_at,
            "grid": self.rows,
            "operations": [one.figures() for one in self.operated],
            "crops": [distribution.figures() for distribution in self.crops],
        }


def make_preview(past: Past, num_images: int, look_at: int, photograph: str | None) -> Preview:
    """Look at a run that has not begun; see `write_preview`.

    Raises:
        UserError: the images cannot be opened, or there is no such photograph.
    """
    replayer = Replayer(past)
    try:
        (chosen,) = replayer.rows_of([photograph]) if photograph is not None else (None,)
        replayed = next(iter(replayer.batches((0, 0), micro_batches=1)))
        count = min(num_images, len(replayed.asked))
        rows = _rows(replayer, replayed, count)
        data = past.config.data
        pictures = as_levels(replayed.mixed.images[:count], data.mean, data.std)
        if chosen is None:
            chosen = int(replayed.spec.indices[0])
        operated = _operated(replayer, chosen)
    finally:
        replayer.close()
    index = replayer.index
    named = [
        (f"{row['class']} at {row['position']}", picture)
        for row, picture in zip(rows, pictures, strict=True)
    ]
    images = spread(len(index), look_at)
    oddities = [
        *of_classes(index, past.config.model.num_classes),
        *of_images(index, images),
        *of_pictures(named),
    ]
    crops = crop_distributions(replayer.samples, NUM_CROPS)
    return Preview(rows, pictures, operated, crops, oddities, len(images))


def write_preview(past: Past, preview: Preview, target: Path) -> None:
    """Write a preview into a folder, whole or not at all.

    Raises:
        UserError: see `picture_folder`.
    """
    with picture_folder(target, JSON) as folder:
        Image.fromarray(grid(preview.pictures)).save(folder / GRID)
        if preview.operated:
            Image.fromarray(chart(preview.operated)).save(folder / CHART)
        write_json(folder / JSON, {"name": past.config.name, **preview.figures()})
        _page(past, preview).write(folder / PAGE)


def grid(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images [n, size, size, 3] as one, row by row, `GRID_COLUMNS` to a row; white is no image."""
    count, size = pictures.shape[:2]
    columns = min(GRID_COLUMNS, count)
    rows = -(-count // columns)
    whole = np.full((rows * columns, size, size, 3), 255, np.uint8)
    whole[:count] = pictures
    whole = whole.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    return whole.reshape(rows * size, columns * size, 3)


def _rows(replayer: Replayer, replayed: ReplayedBatch, count: int) -> list[dict[str, Any]]:
    spec, drawn = replayed.spec, replayed.drawn
    return [describe_row(replayer.index, spec, drawn, row) for row in range(count)]


def _operated(replayer: Replayer, image: int) -> list[Operated]:
    transform, mean = replayer.samples.transform, replayer.past.config.data.mean
    if transform.randaugment is None:
        return []
    geometry = EvalGeometry(transform.size_px, 1.0)
    photograph = eval_transform(stored_image(replayer.index, image), geometry, "bicubic")
    return operate(photograph, transform.randaugment, fill_color(mean))


def _page(past: Past, preview: Preview) -> Page:
    config = past.config
    facts = Facts(
        [
            ("image side", f"{config.augment.size} px"),
            ("global batch", f"{config.optimizer.batch_size:,}"),
            ("RandAugment", config.augment.randaugment or "off"),
            ("mixing", _mixing(past)),
            ("what is off", str(len(preview.oddities)), "see below" if preview.oddities else ""),
        ]
    )
    off: list[Block] = [Text(oddity.text, "bad") for oddity in preview.oddities]
    looked = (
        f"{preview.looked_at:,} stored images were decoded to look for blank ones; dali-rsb verify "
        "decodes all. Labels and classes are those of all training images."
    )
    sections = [
        Section("What is off", [facts, *(off or [Text("Nothing.", "good")]), Text(looked)]),
        Section("Augmented and mixed", _grid_blocks(preview)),
        Section("Operations", _operation_blocks(preview.operated)),
        Section("Crops", _crop_blocks(preview.crops)),
    ]
    lead = "The first images of the first epoch, as one process would train on them."
    return Page(f"Preview of {config.name}", lead, sections)


def _mixing(past: Past) -> str:
    config = past.config
    if not config.mixes:
        return "off"
    kinds = {"mixup": config.mixing.mixup, "CutMix": config.mixing.cutmix}
    return ", ".join(f"{name} {alpha:g}" for name, alpha in kinds.items() if alpha > 0)


def _grid_blocks(preview: Preview) -> list[Block]:
    pictures = []
    for row, pixels in zip(preview.rows, preview.pictures, strict=True):
        caption: list[str | Mark] = [row["class"]]
        caption += [line for line in (mixing_text(row), operations_text(row)) if line]
        if kind := blankness(pixels):
            caption.append(Mark(f"all {kind}"))
        name = printable(row["file"])
        width = min(224, max(_THUMBNAIL_PX, pixels.shape[1]))
        picture = Image.fromarray(pixels)
        pictures.append(Picture(picture, name, caption, width, quality=90, pixelated=True))
    return [Gallery(pictures)]


def _operation_blocks(operated: Sequence[Operated]) -> list[Block]:
    if not operated:
        return [Text("augment.randaugment is off.")]
    names = list(dict.fromkeys(one.operation for one in operated))
    rows: list[list[str | Mark | Picture]] = []
    for name in names:
        ones = [one for one in operated if one.operation == name]
        rows.append([name, *(_pair(one) for one in ones), *[""] * (4 - len(ones))])
    caption = "One photograph at four magnitudes: the DALI pipeline's pixels left, Pillow's right."
    return [Table(["operation", "", "", "", ""], rows, caption)]


def _pair(one: Operated) -> Picture:
    pair = Image.fromarray(np.concatenate([one.ours, one.pillows], axis=1))
    pair.thumbnail((2 * _THUMBNAIL_PX, _THUMBNAIL_PX))
    figures = one.figures()
    magnitude = "" if one.magnitude is None else f"{one.magnitude:g}: "
    caption = (
        f"{magnitude}largest difference {figures['largest_difference']}, mean "
        f"{figures['mean_difference']:.2f}"
    )
    return Picture(pair, f"{one.operation} {one.magnitude or ''}", [caption], quality=90)


def _crop_blocks(crops: Sequence[Distribution]) -> list[Block]:
    header = ["", "asked for", "least", "5 %", "25 %", "median", "75 %", "95 %", "most"]
    rows = [
        [
            one.name,
            "" if one.asked is None else f"{one.asked[0]:.3g} to {one.asked[1]:.3g}",
            *(f"{value:.3f}" for value in one.quantiles),
        ]
        for one in crops
    ]
    count = len(crops[0].values)
    table = Table(header, rows, f"The first {count:,} crops.", numbers=range(2, 9))
    drawings = [Svg(bars(*one.histogram()), f"histogram: {one.name}", [one.name]) for one in crops]
    return [table, *drawings]

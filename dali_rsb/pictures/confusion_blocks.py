"""The worst classes on a page: a table, a matrix of their confusions, and wrong answers."""

from __future__ import annotations

import numpy as np

from dali_rsb.pictures.class_errors import NUM_WORST, ClassErrors
from dali_rsb.pictures.page import Block, Gallery, Mark, Picture, Svg, Table, Text
from dali_rsb.pictures.plots import new_figure, to_svg

_MAX_LETTERS = 20  # of a class at the matrix
_CELL_PX = 27
_EXAMPLE_PX = 160
_COLOUR = (0.23, 0.51, 0.96)


def confusion_blocks(found: ClassErrors) -> list[Block]:
    """The section's blocks."""
    figures = found.metrics
    low, high = figures.top1_interval
    epoch = "" if found.subject.epoch is None else f" of epoch {found.subject.epoch:g}"
    blocks: list[Block] = [
        Text(
            f"The best weights ({found.kind}{epoch}) on {found.images}: top-1 {figures.top1:.2f} % "
            f"(95 %: {low:.2f} to {high:.2f}), top-5 {figures.top5:.2f} %, calibration error "
            f"{figures.ece:.1f} %."
        )
    ]
    if not found.worst:
        return [*blocks, Text("Every image is right: there are no worst classes.")]
    rows = []
    for result in found.worst:
        confused = "" if result.confused_with is None else found.titles[result.confused_with]
        share = f"{100 * result.right / result.images:.1f}"
        rows.append([found.titles[result.label], f"{result.images:,}", share, confused])
        rows[-1].append(f"{result.confusions:,}")
    blocks.append(
        Table(
            ["class", "images", "right, %", "most often taken for", "times"],
            rows,
            f"{_which(len(rows))} of {len(found.titles):,} classes",
            numbers=(1, 2, 4),
        )
    )
    blocks.append(_matrix(found))
    blocks.append(Text("Wrong answers of these classes, the surest first:"))
    blocks.append(Gallery([_example(found, number) for number in range(len(found.examples))]))
    return blocks


def _which(number: int) -> str:
    return f"The worst {number}" if number == NUM_WORST else f"With wrong answers: {number}"


def _example(found: ClassErrors, number: int) -> Picture:
    example = found.examples[number]
    label, predicted = found.titles[example.label], found.titles[example.predicted]
    return Picture(
        example.image,
        f"{label}, taken for {predicted}",
        [label, Mark(f"taken for {predicted}, {100 * example.probability:.0f} %"), example.name],
        _EXAMPLE_PX,
        90,
        pixelated=example.image.width < _EXAMPLE_PX / 2,
    )


def _matrix(found: ClassErrors) -> Svg:
    """Rows: classes of the images; columns: what they were taken for."""
    counts = found.confusion
    names = [_cut(found.titles[result.label]) for result in found.worst]
    columns = [*names, "another"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], names
    shares = counts / np.maximum(1, found.confusion.sum(1, keepdims=True))
    colours = np.empty((*counts.shape, 4))
    colours[..., :3], colours[..., 3] = _COLOUR, 0.85 * shares
    width, height = _CELL_PX * len(columns) + 200, _CELL_PX * len(names) + 160
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.imshow(colours, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    for row, column in np.argwhere(counts):
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=9)
    return to_svg(
        figure,
        "confusion of the worst classes",
        ["Images of the class on the left that were taken for the class below."],
        min_width_px=min(width, 640),
    )


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…"

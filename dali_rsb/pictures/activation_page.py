"""Class activation maps side by side: one row an image, one column a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dali_rsb.errors import UserError
from dali_rsb.pictures.activation_maps import Maps, Method, enlarged, with_heat
from dali_rsb.pictures.page import Mark, Page, Picture, Section, Table, Text
from dali_rsb.pictures.plots import new_figure, to_png
from dali_rsb.run.records import PictureTable
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.names import printable

_WIDTH_PX = 224
_MAX_LETTERS = 36  # of a line that is as wide as a picture
_EMPTY = "nothing here speaks for this class"


@dataclass(frozen=True, eq=False)
class Column:
    """One network.

    Attributes:
        name: short, for the head of its column.
        facts: what it is: source, architecture, weights, layer, preparation of its images.
        titles: the names of its classes, for people.
        images: uint8 [B, H, W, 3] each, as it sees them.
        maps: of these images.
    """

    name: str
    facts: dict[str, str]
    titles: Sequence[str]
    images: np.ndarray
    maps: Maps


@dataclass(frozen=True)
class Row:
    """One image: the name of its file and, where it is known, of its class as titles have it."""

    name: str
    title: str | None


def write(
    folder: Path, rows: Sequence[Row], columns: Sequence[Column], method: Method, wanted: str
) -> list[Path]:
    """Write page, picture and figures; returns their paths.

    Args:
        folder: made if it does not exist; files of these names are replaced.
        wanted: see `page`.

    Raises:
        UserError: they cannot be written.
    """
    paths = [folder / f"gradcam.{suffix}" for suffix in ("html", "png", "json")]
    contents = [grid(rows, columns), results(rows, columns).encode()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths[1:], contents, strict=True):
            with atomic_file(path) as file:
                file.write(content)
    except OSError as error:
        raise UserError(
            f"cannot write into {printable(folder, 150)} ({error.strerror}): name another folder "
            "by --output"
        ) from error
    page(rows, columns, method, wanted).write(paths[0])
    return paths


def page(rows: Sequence[Row], columns: Sequence[Column], method: Method, wanted: str) -> Page:
    """The page.

    Args:
        wanted: whose maps these are, in words, such as "the likeliest class".
    """
    lead = (
        f"Where {len(columns)} network{'s' * (len(columns) > 1)} found {wanted}: {method} maps of "
        f"{len(rows)} image{'s' * (len(rows) > 1)}, bright where most speaks for the class."
    )
    header = ["", *(key for key in columns[0].facts)]
    facts = [[column.name, *column.facts.values()] for column in columns]
    table = [
        [_original(row, columns[0], place), *(_cell(row, one, place) for one in columns)]
        for place, row in enumerate(rows)
    ]
    return Page(
        "Class activation maps",
        lead,
        [
            Section(
                "Maps",
                [
                    Table(["image", *(column.name for column in columns)], table),
                    Text(
                        "Each network's images are cut and resized as its own evaluation does. "
                        "Percentages are softmax probabilities. A map has the resolution of the "
                        "layer and is scaled to its own least and largest value: it says where, "
                        "not how much, and maps of two networks cannot be compared in strength."
                    ),
                ],
            ),
            Section("Networks", [Table(header, facts)]),
        ],
    )


def _original(row: Row, column: Column, place: int) -> Picture:
    image = enlarged(Image.fromarray(column.images[place]))
    lines = [row.name] if row.title is None else [row.title, row.name]
    return Picture(image, row.title or row.name, lines, _WIDTH_PX, 90)


def _cell(row: Row, column: Column, place: int) -> Picture:
    lines = [Mark(text, tone) for text, tone in _lines(row, column, place)]
    image = with_heat(Image.fromarray(column.images[place]), column.maps.heat[place])
    alt = f"map of {column.name} on {row.name}"
    return Picture(image, alt, lines, _WIDTH_PX, 90)


def _lines(row: Row, column: Column, place: int) -> list[tuple[str, Any]]:
    """What stands below a map: prediction, the map's class if it is another, and emptiness."""
    maps = column.maps
    predicted, target = int(maps.predicted[place]), int(maps.targets[place])
    chances, title = maps.probabilities[place], column.titles[predicted]
    tone = "plain" if row.title is None else "good" if title == row.title else "bad"
    lines = [(f"{title}, {100 * chances[predicted]:.1f} %", tone)]
    if target != predicted:
        lines.append((f"map of {column.titles[target]}, {100 * chances[target]:.1f} %", "plain"))
    if not maps.heat[place].any():
        lines.append((_EMPTY, "bad"))
    return lines


def results(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The figures as JSON: for each image and network the prediction and the map's class."""
    found = [
        {
            **_figures(row, column, place),
            "map": np.round(column.maps.heat[place].astype(float), 4).tolist(),
        }
        for place, row in enumerate(rows)
        for column in columns
    ]
    networks = [{"name": column.name, **column.facts} for column in columns]
    return json.dumps({"networks": networks, "maps": found}, indent=1) + "\n"


def table(rows: Sequence[Row], columns: Sequence[Column], files: Sequence[Path]) -> PictureTable:
    """The same for tracking services: a row for each image and network, with both pictures.

    Args:
        files: what `write` has written.
    """
    cells = [
        {
            **_figures(row, column, place),
            "picture": _original(row, column, place).image,
            "map": _cell(row, column, place).image,
        }
        for place, row in enumerate(rows)
        for column in columns
    ]
    lines = [tuple(cell.values()) for cell in cells]
    return PictureTable("gradcam", tuple(cells[0]), lines, tuple(files))


def _figures(row: Row, column: Column, place: int) -> dict[str, Any]:
    maps = column.maps
    return {
        "image": row.name,
        "label": row.title,
        "network": column.name,
        "predicted": column.titles[maps.predicted[place]],
        "probability": float(maps.probabilities[place].max()),
        "map_of": column.titles[maps.targets[place]],
        "map_probability": float(maps.probabilities[place, maps.targets[place]]),
    }


def grid(rows: Sequence[Row], columns: Sequence[Column]) -> bytes:
    """The maps as one picture, a PNG file."""
    width, height = _WIDTH_PX + 12, _WIDTH_PX + 46
    figure = new_figure(width * (len(columns) + 1), height * len(rows) + 24)
    axes = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for place, row in enumerate(rows):
        pictures = [_original(row, columns[0], place), *(_cell(row, c, place) for c in columns)]
        for number, picture in enumerate(pictures):
            part = axes[place, number]
            part.imshow(picture.image)
            part.axis("off")
            lines = [line if isinstance(line, str) else line.text for line in picture.caption]
            part.annotate(
                "\n".join(line[:_MAX_LETTERS] for line in lines),
                (0.5, 0),
                (0, -5),  # points below the picture
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=10,
                ha="center",
                va="top",
            )
            if place == 0:
                name = columns[number - 1].name if number else ""
                part.text(
                    0.5,
                    1.03,
                    name[:_MAX_LETTERS],
                    fontsize=11,
                    ha="center",
                    weight="bold",
                    transform=part.transAxes,
                )
    return to_png(figure)

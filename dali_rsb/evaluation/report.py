"""What an evaluation says: a table of 80 columns, a JSON file, and a CSV file of the classes."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dali_rsb.errors import UserError
from dali_rsb.evaluation.metrics import ClassResult, Metrics
from dali_rsb.evaluation.sets import EvaluationSet
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.names import printable

COLUMNS = 80

# Whom a model chooses among and who says what is right: all of its classes, those alone that have
# images, or all of them with ReaL's labels.
Labelling = Literal["all", "present", "real"]


@dataclass(frozen=True)
class Subject:
    """Weights that are evaluated, numbered as in the table.

    Attributes:
        number: from 1, in the order of the command line.
        source: as the user named them.
        file: the checkpoint that was read; None where the source is no run.
        architecture: name of the model; None where nobody says it.
        epoch: of the checkpoint, if it says so.
        kinds: "model" and "EMA", or one of them.
        classes: names of the outputs.
        remark: what the user should know of them, such as where the class names come from.
    """

    number: int
    source: str
    file: str | None
    architecture: str | None
    epoch: float | None
    kinds: tuple[str, ...]
    classes: tuple[str, ...]
    remark: str | None = None

    @property
    def name(self) -> str:
        """What messages call the weights."""
        return printable(self.file or self.source, 60)

    @property
    def line(self) -> str:
        """The subject in a line before the table."""
        epoch = [] if self.epoch is None else [f"epoch {self.epoch:g}"]
        facts = [self.architecture or "no name", *epoch, " and ".join(self.kinds)]
        facts += [_count(len(self.classes), "class", "classes")]
        facts += [] if self.remark is None else [self.remark]
        return f"{self.number} {self.file or self.source}: {', '.join(facts)}"


@dataclass(frozen=True)
class Way:
    """How images reach a model.

    Attributes:
        size_px, resize_px: side of the centre crop, and shorter edge before it.
        interpolation: filter of the resize.
        decoder: "DALI" or "Pillow".
        precision: type of the forward pass, such as "float32".
        flip: whether logits are averaged with those of the mirror image.
    """

    size_px: int
    resize_px: int
    interpolation: str
    decoder: str
    precision: str
    flip: bool


@dataclass(frozen=True)
class Result:
    """What came out by one labelling.

    Attributes:
        labelling: see `Labelling`.
        num_classes: how many classes the model chooses among.
        metrics: the figures.
        classes: the same class by class; None for ReaL's labels.
    """

    labelling: Labelling
    num_classes: int
    metrics: Metrics
    classes: Sequence[ClassResult] | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        weights: number of the subject.
        kind: which of its weights, "model" or "EMA".
        set: name of the set of images.
        same_as_dali: of Pillow's rows, for how many images DALI's pixels give the same class.
    """

    weights: int
    kind: str
    set: str
    way: Way
    result: Result
    same_as_dali: int | None = None

    @property
    def section(self) -> str:
        """What the row's part of the table is headed with."""
        labelling = {
            "all": "all classes",
            "present": f"among its {_count(self.result.num_classes, 'class', 'classes')} alone",
            "real": "ReaL",
        }[self.result.labelling]
        return f"{self.set}, {labelling}: {_count(self.result.metrics.images, 'image', 'images')}"

    @property
    def columns(self) -> str:
        """The row's line."""
        way, figures = self.way, self.result.metrics
        low, high = figures.top1_interval
        name = f"{self.weights} {self.kind}" + (", Pillow" if way.decoder == "Pillow" else "")
        per_class = "-" if figures.mean_per_class is None else f"{figures.mean_per_class:.3f}"
        loss = "-" if figures.loss is None else f"{figures.loss:.4f}"
        return (
            f"{name:<17}{f'{way.size_px}/{way.resize_px}':>9}{figures.top1:9.3f}"
            f"{f'{low:.2f}-{high:.2f}':>14}{figures.top5:9.3f}{per_class:>9}{loss:>8}"
            f"{figures.ece:5.1f}"
        )

    @property
    def agreement(self) -> str:
        """How far Pillow's row agrees with DALI's, in a line."""
        return (
            f"{self.weights} {self.kind}, {self.way.size_px}/{self.way.resize_px}: the same class "
            f"by DALI's and Pillow's pixels for {self.same_as_dali:,} of "
            f"{self.result.metrics.images:,}"
        )


HEADER = (
    f"{'':17}{'crop/edge':>9}{'top-1 %':>9}{'95 %':>14}{'top-5 %':>9}{'class %':>9}{'loss':>8}"
    f"{'ECE':>5}"
)


def introduction(subjects: Sequence[Subject], sets: Sequence[EvaluationSet]) -> str:
    """Who is evaluated on what, to be printed before it is."""
    lines = [subject.line for subject in subjects]
    lines += [f"on {one.name}: {_count(len(one.index), 'image', 'images')}" for one in sets]
    return "\n".join(line for text in lines for line in _wrapped(text))


def table(rows: Sequence[Row]) -> str:
    """The rows by set and labelling."""
    lines = _wrapped(_ways(rows))
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    for section, its_rows in sections.items():
        # Stable: the decoders of one model stay in their order, side by side.
        its_rows.sort(key=lambda row: (row.way.size_px, row.weights, row.kind == "EMA"))
        lines += ["", *_wrapped(section), HEADER, *(row.columns for row in its_rows)]
        lines += [row.agreement for row in its_rows if row.same_as_dali is not None]
    return "\n".join(lines)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _ways(rows: Sequence[Row]) -> str:
    """How the images reach the models, each way once."""
    ways = [row.way for row in rows]
    crops = dict.fromkeys(f"{way.size_px}/{way.resize_px} {way.interpolation}" for way in ways)
    decoders = dict.fromkeys(way.decoder for way in ways)
    precisions = dict.fromkeys(way.precision for way in ways)
    flip = ", logits averaged with those of the mirror image" if ways[0].flip else ""
    return (
        f"images: centre crop/shorter edge {', '.join(crops)}; decoded by "
        f"{' and '.join(decoders)}; {', '.join(precisions)}{flip}"
    )


def check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before hours are spent on what should be in it.

    Raises:
        UserError: its folder does not exist, or it is a folder.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise UserError(f"{option} {path} {what}: give a file in an existing folder")


def write_json(path: Path, subjects: Sequence[Subject], rows: Sequence[Row]) -> None:
    """Write the rows with all digits, and what was evaluated; raises as `_write`."""
    results = []
    for row in rows:
        values = asdict(row)
        way, result = values.pop("way"), values.pop("result")
        figures = result.pop("metrics")
        del result["classes"]
        results.append(values | way | result | figures)
    weights = []
    for subject in subjects:
        values = asdict(subject)
        values["num_classes"] = len(values.pop("classes"))
        weights.append(values)
    text = json.dumps({"weights": weights, "results": results}, indent=2) + "\n"
    _write("--json", path, text)


def write_classes(path: Path, subjects: Sequence[Subject], rows: Sequence[Row]) -> None:
    """Write a line for each class of each row; raises as `_write`."""
    names = {subject.number: subject.classes for subject in subjects}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("weights", "kind", "set", "labelling", "size_px", "resize_px", "decoder", "class"),
            *("images", "right", "top1_percent", "commonest_confusion", "confusions"),
        ]
    )
    for row in rows:
        classes = names[row.weights]
        start = [row.weights, row.kind, row.set, row.result.labelling]
        start += [row.way.size_px, row.way.resize_px, row.way.decoder]
        for found in row.result.classes or ():
            confused = "" if found.confused_with is None else classes[found.confused_with]
            share = round(100 * found.right / found.images, 4)
            figures = [found.images, found.right, share, confused, found.confusions]
            writer.writerow([*start, classes[found.label], *figures])
    _write("--per-class", path, text.getvalue())


def _write(option: str, path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_file(path.absolute()) as file:
            file.write(text.encode("utf-8", "surrogateescape"))  # a folder's name may be any bytes
    except OSError as error:
        raise UserError(
            f"cannot write {option} {path} ({error.strerror}): give a file in a writable folder"
        ) from error

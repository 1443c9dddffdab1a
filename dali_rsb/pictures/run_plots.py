"""Curves of runs, and where their time went, as drawings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dali_rsb.pictures.page import Svg
from dali_rsb.pictures.plots import COLOURS, new_figure, to_svg
from dali_rsb.pictures.run_history import Epoch, Interval, RunHistory
from dali_rsb.pictures.time_spent import PARTS, TimeSpent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_PX, _HEIGHT_PX = 440, 280
_FEW = 12  # points of a curve that are shown as dots too
_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """What curves are drawn against.

    Attributes:
        name: of the axis, for the reader's choice.
        unit: below it.
        place: where it has some updates of a run that ended after some seconds (None: unknown).
    """

    name: str
    unit: str
    place: Callable[[RunHistory, int, float | None], float]


def axes_of(runs: Sequence[RunHistory]) -> list[Axis]:
    """Epochs, images and time, this in a unit that suits the longest run."""
    ends = [one.end_s for run in runs for one in run.intervals]
    ends += [one.end_s for run in runs for one in run.epochs if one.end_s is not None]
    longest_s = max(ends, default=0.0)
    unit, seconds = ("hours", 3600.0) if longest_s >= 2 * 3600 else ("minutes", 60.0)
    if longest_s >= 3 * 86400:
        unit, seconds = "days", 86400.0
    return [
        Axis("epochs", "epochs", lambda run, updates, _: run.in_epochs(updates)),
        Axis("images", "images seen", lambda run, updates, _: run.in_images(updates)),
        Axis(
            "time",
            f"{unit} of training and evaluating",
            lambda _run, _updates, end_s: math.nan if end_s is None else end_s / seconds,
        ),
    ]


def curves(runs: Sequence[RunHistory], axis: Axis) -> list[Svg]:
    """Accuracies and losses; those of which there is no point are left out."""
    judged, trained, losses, val_losses = [], [], [], []
    for run, colour in zip(runs, _colours(runs), strict=True):
        has_ema = any(one.row.ema_top1 is not None for one in run.epochs)
        name = f"{run.name}, EMA" if has_ema else run.name
        judged.append(_Line(_by_epochs(run, axis, lambda one: one.top1), name, colour))
        if has_ema:
            points = _by_epochs(run, axis, lambda one: one.row.val_top1)
            trained.append(_Line(points, f"{run.name}, trained", colour, is_second=True))
        points = _by_intervals(run, axis, lambda one: one.loss)
        points = points or _by_epochs(run, axis, lambda one: one.row.train_loss)
        losses.append(_Line(points, run.name, colour))
        points = _by_epochs(run, axis, lambda one: one.row.val_loss)
        val_losses.append(_Line(points, run.name, colour))
    drawings = [
        _drawn("Validation top-1, %", [*judged, *trained], axis),
        _drawn("Training loss", losses, axis),
        _drawn("Validation cross-entropy of the trained weights", val_losses, axis),
        _of_reports(runs, axis, "Learning rate", lambda one: one.lr),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def speeds(runs: Sequence[RunHistory], axis: Axis) -> list[Svg]:
    """Images per second and the share of waiting; none where there is no report."""
    drawings = [
        _of_reports(runs, axis, "Images per second, in training", lambda one: one.img_per_s),
        _of_reports(
            runs, axis, "Waiting for data, % of the time", lambda one: one.data_wait_percent
        ),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def time_bars(spent: Sequence[tuple[str, TimeSpent]]) -> Svg:
    """A bar for each run, all of its time being 100 %."""
    figure = new_figure(880, 80 + 30 * len(spent))
    axes = figure.subplots()
    for place, (_, one) in enumerate(spent):
        left = 0.0
        for part, colour in zip(PARTS, COLOURS, strict=False):
            share = 100 * getattr(one, part) / one.total_s
            label = PARTS[part] if place == 0 else None
            axes.barh(place, share, 0.6, left, color=colour, label=label)
            left += share
    axes.set_yticks(range(len(spent)), [name for name, _ in spent])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time")
    axes.legend(
        ncols=len(PARTS), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=10
    )
    return to_svg(figure, "where the time of each run went", min_width_px=560)


@dataclass(frozen=True)
class _Line:
    points: _Points
    label: str
    colour: str
    is_second: bool = False  # thin and dashed: beside the main thing


def _colours(runs: Sequence[RunHistory]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(runs))]


def _by_epochs(run: RunHistory, axis: Axis, value: Callable[[Epoch], float | None]) -> _Points:
    return _finite((axis.place(run, one.row.updates, one.end_s), value(one)) for one in run.epochs)


def _by_intervals(run: RunHistory, axis: Axis, value: Callable[[Interval], float]) -> _Points:
    return _finite((axis.place(run, one.end, one.end_s), value(one)) for one in run.intervals)


def _finite(points: Iterable[tuple[float, float | None]]) -> _Points:
    return [(x, y) for x, y in points if y is not None and math.isfinite(x) and math.isfinite(y)]


def _of_reports(
    runs: Sequence[RunHistory], axis: Axis, title: str, value: Callable[[Interval], float]
) -> Svg | None:
    lines = [
        _Line(_by_intervals(run, axis, value), run.name, colour)
        for run, colour in zip(runs, _colours(runs), strict=True)
    ]
    return _drawn(title, lines, axis, from_zero=True)


def _drawn(title: str, lines: Sequence[_Line], axis: Axis, from_zero: bool = False) -> Svg | None:
    """The curves as a drawing; None if there is no point at all."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    figure = new_figure(_WIDTH_PX, _HEIGHT_PX)
    axes: Axes = figure.subplots()
    for line in lines:
        axes.plot(
            *zip(*line.points, strict=True),
            color=line.colour,
            label=line.label,
            linewidth=1.2 if line.is_second else 2,
            linestyle="--" if line.is_second else "-",
            marker="o" if len(line.points) <= _FEW else None,
            markersize=4,
        )
    _lay_out(axes, title, axis, max(x for line in lines for x, _ in line.points))
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    return to_svg(figure, f"{title} against {axis.name}")


def _lay_out(axes: Axes, title: str, axis: Axis, last: float) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(visible=True, color="#808080", alpha=0.25, linewidth=0.8)
    axes.set_xlim(0, last * 1.02 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis.name != "time" and last >= 1))
    if axis.name == "images":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(axis.unit, fontsize=10)

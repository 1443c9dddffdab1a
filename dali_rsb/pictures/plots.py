"""Drawings by Matplotlib, as parts of a page or as files; nothing here shows a window."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dali_rsb.errors import UserError
from dali_rsb.pictures.page import Svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour for each run; all can be told from white and from black ground.
COLOURS = ("#3b82f6", "#e8590c", "#2b9a66", "#ab4aba", "#b8860b", "#e5484d", "#12a594", "#8d8d8d")
# Stands for the page's own colour of text, dark or light, until the drawing is part of a page.
_INK = "#102030"
_DPI = 72  # a point of Matplotlib is a pixel of the page


def check_installed() -> None:
    """Find out before the work begins.

    Raises:
        UserError: Matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            "plots are drawn by Matplotlib, which is not installed; run: pip install matplotlib"
        ) from error


def new_figure(width_px: float, height_px: float) -> Figure:
    """An empty figure that lays itself out."""
    from matplotlib.figure import Figure

    size = (width_px / _DPI, height_px / _DPI)
    return Figure(figsize=size, dpi=_DPI, layout="constrained")


def to_svg(figure: Figure, alt: str, caption: Sequence[str] = (), min_width_px: int = 0) -> Svg:
    """A figure as a drawing in the page's colours and with letters of the page's font.

    Args:
        alt, caption, min_width_px: as of an `Svg`.
    """
    import matplotlib as mpl

    for axes in figure.axes:
        _take_ink(axes)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dali_rsb"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    source = file.getvalue().replace(_INK, "currentColor")
    source = re.sub(r'(width|height)="([0-9.]+)pt"', r'\1="\2"', source, count=2)
    return Svg(source, alt, caption, min_width_px)


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file on white ground."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * _DPI, facecolor="white")
    return file.getvalue()


def _take_ink(axes: object) -> None:
    """Draw text, ticks and frame of a figure's part in the page's colour, its grid faintly."""
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    assert isinstance(axes, Axes)
    axes.tick_params(colors=_INK, labelsize=10, length=3)
    for text in axes.findobj(Text):
        assert isinstance(text, Text)
        if text.get_color() == "black":
            text.set_color(_INK)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))

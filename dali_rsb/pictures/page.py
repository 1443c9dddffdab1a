"""HTML pages that are one file each: no network, no script, pictures inside.

A page is sections of blocks. All texts are escaped, and the page's policy forbids the browser to
load or run anything. It is readable on a phone and in dark mode; wide tables scroll by themselves.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from dali_rsb import __version__
from dali_rsb.errors import UserError, one_line
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.names import printable

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` "bad" makes it a warning in a box."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Code:
    """Lines as a terminal shows them, such as a command."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Mark:
    """A cell of a table or a line of a caption that stands out."""

    kind: ClassVar[str] = "mark"
    text: str
    tone: Tone = "bad"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image with its caption.

    Attributes:
        image: of any mode that PNG knows, or RGB where `quality` is given.
        alt: what is to be seen, for those who do not see it.
        caption: lines below it.
        width_px: width on the page; None for the image's own. Never wider than the page.
        quality: of JPEG, 1 to 95; None for PNG, which keeps every pixel.
        pixelated: enlarge small images with sharp pixels.
    """

    kind: ClassVar[str] = "picture"
    image: Image.Image
    alt: str
    caption: Sequence[str | Mark] = ()
    width_px: int | None = None
    quality: int | None = None
    pixelated: bool = False

    @property
    def uri(self) -> str:
        """The encoded image as a data URI."""
        buffer = io.BytesIO()
        if self.quality is None:
            self.image.save(buffer, "PNG", optimize=True)
        else:
            self.image.save(buffer, "JPEG", quality=self.quality)
        kind = "png" if self.quality is None else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Svg:
    """A drawing of our own making, such as Matplotlib's, as part of the page.

    Attributes:
        source: the SVG file; it is trusted, not escaped.
        alt, caption: as of a `Picture`.
        min_width_px: on a narrower page it scrolls sideways instead of becoming too small to read.
    """

    kind: ClassVar[str] = "svg"
    source: str
    alt: str
    caption: Sequence[str | Mark] = ()
    min_width_px: int = 0

    @property
    def markup(self) -> Markup:
        """The element alone, its identifiers unlike those of other drawings of the page."""
        element = self.source[self.source.index("<svg") :]
        prefix = f"d{zlib.crc32(element.encode()):08x}-"
        for before in (r'\bid="', r"url\(#", r'href="#'):
            element = re.sub(before, lambda found: found[0] + prefix, element)
        return Markup(element)


@dataclass(frozen=True)
class Gallery:
    """Pictures or drawings side by side, as many as fit into a line."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture | Svg]


Cell = str | Mark | Picture


@dataclass(frozen=True)
class Table:
    """A table, which scrolls sideways where it is wider than the page.

    Attributes:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
        caption: what the table shows.
        numbers: the columns, from 0, that hold numbers: aligned to the right.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    numbers: Collection[int] = ()


@dataclass(frozen=True)
class Facts:
    """Few figures in large letters, each with its name and perhaps a remark."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str] | tuple[str, str, str]]


@dataclass(frozen=True)
class Tabs:
    """Several views of one thing, of which the reader chooses one; on paper all are printed.

    Attributes:
        name: of the choice, one of its own on the page, a word.
        views: names of the views and what they show, at most 6.
    """

    kind: ClassVar[str] = "tabs"
    name: str
    views: Sequence[tuple[str, Sequence[Block]]]


Block = Text | Code | Picture | Svg | Gallery | Table | Facts | Tabs


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A page; `html` writes it out.

    Attributes:
        title: of the window and the first heading.
        lead: what the page shows, in a sentence.
        sections: with more than two of them, links to all stand at the top.
    """

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The whole page; file names of any bytes become printable."""
        return _template().render(page=self, version=__version__)

    def write(self, path: Path) -> None:
        """Write the page whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        text = self.html().encode("utf-8", "backslashreplace")
        try:
            with atomic_file(path.absolute()) as file:
                file.write(text)
        except OSError as error:
            raise UserError(
                f"cannot write {printable(path, 130)} ({error.strerror}): name a file in a folder "
                "that exists and is writable by --output"
            ) from error


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dali_rsb", "pictures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )
    return environment.get_template("page.html")

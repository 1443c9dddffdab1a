"""File names for messages: a name may hold any bytes, a line of a log may not."""

from __future__ import annotations

import os
from pathlib import PurePath


def short_path(path: str | os.PathLike[str]) -> str:
    """The last two parts of a path: what is published need not tell how a disk is laid out."""
    return "/".join(PurePath(path).parts[-2:]).lstrip("/")


def printable(name: str | os.PathLike[str]) -> str:
    r"""A name that any terminal, log and UTF-8 file takes, in one line.

    Bytes that are not UTF-8 become `\xe9`, line breaks and other control characters `\n` or `\x1b`;
    other names stay as they are.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def with_end(name: str | os.PathLike[str], limit: int) -> str:
    """A name for a message that has room for `limit` characters: of a long path, its end."""
    text = printable(name)
    return text if len(text) <= limit else "..." + text[3 - limit :]

"""File names for messages: a name may hold any bytes and be long, a line of a log may not."""

from __future__ import annotations

import os
from pathlib import PurePath

from dali_rsb.errors import one_line


def short_path(path: str | os.PathLike[str]) -> str:
    """The last two parts of a path: what is published need not tell how a disk is laid out."""
    return "/".join(PurePath(path).parts[-2:]).lstrip("/")


def printable(name: str | os.PathLike[str], limit: int | None = None) -> str:
    """A name that any terminal, log and UTF-8 file takes, in one line; see `errors.one_line`.

    Args:
        limit: characters, at least 4; of a longer name the end is shown, which tells files apart.
    """
    text = one_line(os.fspath(name))
    return text if limit is None or len(text) <= limit else "..." + text[3 - limit :]

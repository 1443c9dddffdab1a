"""Where this user's programs keep what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder for indices, tunings, converted images and compiled code, which may be deleted.

    It is `$XDG_CACHE_HOME/dali_rsb`, else `~/.cache/dali_rsb`. A relative XDG_CACHE_HOME counts as
    none, as the XDG Base Directory Specification asks for.

    Raises:
        RuntimeError: this user has no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path("~/.cache").expanduser()
    return base / "dali_rsb"

"""Messages on the terminal, for the commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from dali_rsb.errors import one_line


class OneLineFormatter(logging.Formatter):
    """Makes each message one line that can be printed, whatever the names of files in it hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return one_line(super().formatMessage(record))


@contextmanager
def console_messages(is_first: bool = True) -> Iterator[None]:
    """Send the package's messages to stderr: all of rank 0's, only warnings of the others."""
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if is_first else logging.WARNING)
    console.setFormatter(OneLineFormatter("%(message)s"))
    package = logging.getLogger("dali_rsb")
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(console)
    try:
        yield
    finally:
        package.removeHandler(console)
        package.setLevel(level)

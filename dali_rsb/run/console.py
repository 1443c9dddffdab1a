"""Messages on the terminal, for the commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class EarlyMessages(logging.Handler):
    """Keeps what is said before there is a run folder, such as which images are left out."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def hand_over(self, handler: logging.Handler) -> None:
        """Give all of them to another handler, which takes what comes from now on by itself."""
        logging.getLogger("dali_rsb").removeHandler(self)
        for record in self._records:
            handler.handle(record)
        self._records.clear()


@contextmanager
def console_messages(is_first: bool = True) -> Iterator[None]:
    """Send the package's messages to stderr: all of rank 0's, only warnings of the others."""
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if is_first else logging.WARNING)
    console.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("dali_rsb")
    level = package.level
    package.setLevel(logging.INFO)
    early = EarlyMessages()
    package.addHandler(console)
    package.addHandler(early)
    try:
        yield
    finally:
        package.removeHandler(console)
        package.removeHandler(early)
        package.setLevel(level)

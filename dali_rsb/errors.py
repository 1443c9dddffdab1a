"""The one exception for mistakes a user can mend, and how a command reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the configuration, the data or the machine, with its mend in the message.

    The message is one line that names the key or file and says what to do. Commands print it
    without a traceback and exit with code 2 (see `run_command`); library callers catch it like
    any exception.
    """


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; print a `UserError` as one line on stderr and exit with code 2.

    Under torchrun every process meets the same mistake; only rank 0 prints it.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

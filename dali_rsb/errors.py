"""The one exception for mistakes a user can fix, and how a command reports it."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable

# The launcher ends a process within this time, if rank 0 has ended for the same mistake.
OTHER_RANKS_WAIT_S = 15.0


class UserError(Exception):
    """A mistake in the configuration, the data or the machine, with its fix in the message.

    The message is one line that names the key or file and says what to do. Commands print it
    without a traceback and exit with code 2 (see `run_command`); library callers catch it like
    any exception.
    """


def suggestion(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """ ", did you mean X?" with the choice that is spelt most like `name`, or nothing."""
    nearest = difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)
    return f", did you mean {nearest[0]!r}?" if nearest else ""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; print a `UserError` as one line on stderr and exit with code 2.

    Where several processes have not met yet, all may make the same mistake. Rank 0 prints it at
    once, and the launcher ends the others before they do; a mistake of another alone is printed.
    """
    try:
        main()
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(OTHER_RANKS_WAIT_S)
        print(f"error: rank {rank}: {error}" if rank else f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""The one exception for mistakes a user can fix, and how a command reports it."""

from __future__ import annotations

import difflib
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterable

# The launcher ends a process within this time, if rank 0 has ended for the same mistake.
OTHER_RANKS_WAIT_S = 15.0
_MAX_LINE = 300  # characters of a message
_MAX_PATH, _MAX_WORD = 150, 90  # of a path in it; and of longer ones
# What a file system or its rights refuse, which is no fault of the program, and what to do.
_FIXES = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path whose links end",
    errno.EACCES: "change its rights or give another path",
    errno.EPERM: "change its rights or give another path",
    errno.EROFS: "give a path that can be written",
    errno.ENOSPC: "make room or give another path",
    errno.EDQUOT: "make room or give another path",
    errno.EISDIR: "give the path of a file",
    errno.ENOTDIR: "give a path below a folder",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files",
}


class UserError(Exception):
    """A mistake in the configuration, the data or the machine, with its fix in the message.

    The message is one line that names the key or file and says what to do; what no terminal
    prints, as in some names of files, is escaped (see `one_line`). Commands print it without a
    traceback and exit with code 2 (see `run_command`); library callers catch it like any exception.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MissingPackageError(UserError, ImportError):
    """A package is not installed; the message says how to install it."""


def one_line(text: str) -> str:
    r"""A text as one line that any terminal, log and UTF-8 file takes.

    Bytes of a file name that are not UTF-8 become `\xe9`, line breaks and other control characters
    `\n` or `\x1b`; everything else stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python's names of files hold such a byte
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def suggestion(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """ ", did you mean X?" with the choice that is spelt most like `name`, or nothing."""
    nearest = difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)
    return f", did you mean {nearest[0]!r}?" if nearest else ""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; print a `UserError` as one line on stderr and exit with code 2.

    So does what a file system refuses, where no one has said it better: see `_refused`.

    Where several processes have not met yet, all may make the same mistake. Rank 0 prints it at
    once, and the launcher ends the others before they do; a mistake of another alone is printed.
    What the terminal's encoding cannot hold is printed as an escape, on stdout as on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (UserError, OSError) as error:
        mistake = error if isinstance(error, UserError) else _refused(error)
        if mistake is None:
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(OTHER_RANKS_WAIT_S)
        line = shortened(str(mistake))
        print(f"error: rank {rank}: {line}" if rank else f"error: {line}", file=sys.stderr)
        sys.exit(2)


def shortened(line: str) -> str:
    """A line without words that nobody reads: a message may quote what a user gave, of any length.

    Of a long word the end is kept, which tells paths apart; of a line that is still long, both
    ends: the fix stands at the end. A line of two paths of usual length is left as it is, for they
    will be copied.
    """
    if len(line) <= _MAX_LINE:
        return line
    words = [w if len(w) <= _MAX_PATH else f"...{w[-_MAX_WORD:]}" for w in line.split(" ")]
    short = " ".join(words)
    if len(short) <= (2 * _MAX_LINE if short == line else _MAX_LINE):
        return short
    return f"{short[: _MAX_LINE // 2]} ... {short[-_MAX_LINE // 2 + 5 :]}"


def _refused(error: OSError) -> UserError | None:
    """The line for what a file system refuses, such as a name of 300 characters; None for others.

    Anything may throw it that looks at a path, long before the path is used.
    """
    fix = _FIXES.get(error.errno or 0)
    if fix is None or not isinstance(error.filename, (str, bytes, os.PathLike)):
        return None
    path = one_line(os.fsdecode(error.filename))
    if len(path) > _MAX_PATH:
        path = f"...{path[-_MAX_PATH:]}"
    return UserError(f"{path} cannot be used ({error.strerror}): {fix}")

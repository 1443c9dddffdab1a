"""Reads a file that a user or an earlier run has left: its content, or one line that says why not.

Whatever lies there (nothing, a directory, a pipe, another encoding, numbers of 6,000 digits, lists
nested 100,000 deep) ends in an `UnreadableFileError`. It is a `UserError`, for files that the user
names; for files that the program stores and can do without, its `reason` goes into a warning.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dali_rsb.errors import UserError
from dali_rsb.system.names import printable

Content = TypeVar("Content")

# Characters of a message's parts: with a fix of a line's length it stays below 300.
_MAX_PATH, _MAX_REASON = 130, 80
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class UnreadableFileError(UserError):
    """A file that cannot be read, in one line: "PATH REASON: FIX".

    Attributes:
        path: the file.
        reason: why, such as "is a directory" or "is not UTF-8 (byte 0x80 in line 3)".
        fix: what the user can do.
    """

    def __init__(self, path: Path, reason: str, fix: str) -> None:
        super().__init__(f"{printable(path, _MAX_PATH)} {reason}: {fix}")
        self.path, self.reason, self.fix = path, reason, fix

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.fix)


class MissingFileError(UnreadableFileError):
    """There is no such file."""


def read_bytes(path: Path, fix: str) -> bytes:
    """The content of a regular file.

    Args:
        fix: what the user can do if it cannot be read, for the message.

    Raises:
        MissingFileError: there is no such file.
        UnreadableFileError: it is no regular file, unreadable or larger than the memory.
    """
    try:
        # O_NONBLOCK: opening a named pipe would wait for whoever writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                kind = "directory" if stat.S_ISDIR(mode) else "pipe or device"
                raise UnreadableFileError(path, f"is a {kind}, no file", fix)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(path, "does not exist", fix) from error
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        raise UnreadableFileError(path, reason, fix) from error
    except ValueError as error:
        raise UnreadableFileError(path, f"is no path ({error})", fix) from error
    except MemoryError as error:
        raise UnreadableFileError(path, "does not fit into memory", fix) from error


def read_text(path: Path, fix: str, errors: str = "strict") -> str:
    """The text of a UTF-8 file, without a byte order mark; line ends stay as they are.

    Args:
        fix: see `read_bytes`.
        errors: what to do with bytes that are not UTF-8; "surrogateescape" lets them pass, for
            paths, which may be of any bytes.

    Raises:
        UnreadableFileError: see `read_bytes`; or it is not UTF-8, or holds NUL bytes.
    """
    data = read_bytes(path, fix)
    nul = data.find(b"\0")
    if nul >= 0:
        if data.startswith(_UTF16_MARKS):
            raise UnreadableFileError(path, "is UTF-16, not UTF-8", fix)
        line = data.count(b"\n", 0, nul) + 1
        raise UnreadableFileError(path, f"is no text, line {line} holds a NUL byte", fix)
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        wrong = f"byte 0x{error.object[error.start]:02x} in line {line}"
        raise UnreadableFileError(path, f"is not UTF-8 ({wrong})", fix) from error


def read_parsed(
    path: Path,
    parse: Callable[[str], Content],
    kind: str,
    fix: str,
    errors: tuple[type[Exception], ...] = (),
) -> Content:
    """What a parser makes of a text file.

    Args:
        parse: gets the text.
        kind: what the file should be, for the message, such as "YAML".
        fix: see `read_bytes`.
        errors: that `parse` raises beside `ValueError`, as `yaml.YAMLError`.

    Raises:
        UnreadableFileError: see `read_text`; or the parser refuses the text.
    """
    text = read_text(path, fix)
    # ValueError: among others, Python makes no number of more than 4,300 digits.
    refused: tuple[type[Exception], ...] = (ValueError, *errors)
    try:
        return parse(text)
    except RecursionError as error:
        reason = f"is no {kind} that can be read, it nests too deep"
        raise UnreadableFileError(path, reason, fix) from error
    except refused as error:
        raise UnreadableFileError(path, f"is no {kind} ({_one_line(error)})", fix) from error


def read_json(path: Path, fix: str) -> Any:
    """The content of a JSON file; raises as `read_parsed`."""
    return read_parsed(path, json.loads, "JSON", fix)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "int_max_str_digits" in text:  # CPython's advice to raise the limit is of no use here
        text = "a number of thousands of digits"
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."

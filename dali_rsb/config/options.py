"""The command line of the commands that take options alone: a mistake is one line."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from pathlib import Path
from typing import NoReturn

from dali_rsb.errors import UserError, suggestion


def path(text: str) -> Path:
    """A path as a user writes it: a shell leaves the `~` of `--output=~/maps` to the program."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 -- Path.expanduser raises for ~nobody


def add_output(
    parser: argparse.ArgumentParser, kind: str, help: str, default: str | None = None
) -> None:
    """Give a command the option --output.

    Args:
        kind: FILE, FOLDER or PATH, for `--help`.
        help: what is written there.
        default: where, if nobody says; None where the command decides.
    """
    parser.add_argument(
        "--output",
        type=path,
        default=default,
        metavar=kind,
        help=help if default is None else f"{help}; default: {default}",
    )


class HelpText(argparse.HelpFormatter):
    """Fills the paragraphs of a description to the terminal; indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [
            part if "\n  " in f"\n{part}" else textwrap.fill(part, width, break_on_hyphens=False)
            for part in text.strip("\n").split("\n\n")
        ]
        return textwrap.indent("\n\n".join(parts), indent)


class OptionsParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose mistakes are `UserError`s.

    Args:
        command: name of the command, as in `dali-rsb COMMAND`.
        description: for `--help`.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            prog=f"dali-rsb {command}",
            description=description,
            formatter_class=HelpText,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            own = [name for action in self._actions for name in action.option_strings]
            nearest = suggestion(unknown[1].partition("=")[0], own, cutoff=0.7)
            message = f"unknown argument {unknown[1]!r:.100}{nearest}"
        raise UserError(f"{message[:200]}; see {self.prog} --help")

"""The command line of the commands that take options alone: a mistake is one line."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from dali_rsb.errors import UserError, suggestion


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
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            own = [name for action in self._actions for name in action.option_strings]
            nearest = suggestion(unknown[1].partition("=")[0], own, cutoff=0.7)
            message = f"unknown argument {unknown[1]!r:.100}{nearest}"
        raise UserError(f"{message[:200]}; see {self.prog} --help")

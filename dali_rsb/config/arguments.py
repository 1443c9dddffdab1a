"""The command line of the commands that take `section.key=value`, most of them behind a CONFIG."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from dali_rsb.config.mistakes import suggest
from dali_rsb.config.options import HelpText
from dali_rsb.config.reading import load_config
from dali_rsb.config.recipes import find_config
from dali_rsb.config.sections import Config, all_keys, sections
from dali_rsb.config.yaml_text import short
from dali_rsb.errors import UserError, suggestion

_OVERRIDE = re.compile(r"[A-Za-z_]+\.[A-Za-z_]+=")


def is_override(word: str) -> bool:
    """Whether a word of a command line is a `section.key=value`."""
    return _OVERRIDE.match(word) is not None


class ConfigParser(argparse.ArgumentParser):
    """Reads CONFIG, or another subject, and overrides beside the options of a command.

    A mistake is a `UserError`, in one line. Options may stand anywhere; the value of an option
    that takes one or none is never an override (`--resume optimizer.lr=1e-3` resumes with it).

    Args:
        command: name of the command, as in `dali-rsb COMMAND`.
        description: for `--help`.
        subject: what the first argument is called; its value is the option of that name in small.
        help: of the subject.
        instead: what to write here instead of other programs' options.
    """

    def __init__(
        self,
        command: str,
        description: str | None,
        subject: str = "CONFIG",
        help: str = "a recipe such as a3, a YAML file, or a run folder",
        instead: Mapping[str, str] | None = None,
    ) -> None:
        self._instead = instead or {}
        super().__init__(
            prog=f"dali-rsb {command}",
            description=description,
            formatter_class=HelpText,
            allow_abbrev=False,
        )
        self.add_argument(subject.lower(), metavar=subject, help=help)
        self.add_argument(
            "overrides",
            nargs="*",
            metavar="section.key=value",
            help="keys to set; `dali-rsb help` lists them",
        )

    def add_resume(self) -> None:
        """Give the command the option --resume."""
        self.add_argument(
            "--resume",
            nargs="?",
            const="last",
            metavar="PATH",
            help="go on from a checkpoint or run folder; without PATH from this config's newest "
            "run; 'auto': go on if there is something to go on from, else start",
        )

    def read(self, arguments: Sequence[str] | None = None) -> tuple[Config, argparse.Namespace]:
        """The configuration with its overrides, and the values of the options.

        Raises:
            UserError: the command line or the configuration is wrong.
        """
        options = self.parse(arguments)
        return load_config(find_config(options.config), options.overrides), options

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of the subject, the overrides and the options.

        Raises:
            UserError: the command line is wrong.
        """
        options = self.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
        for place, word in enumerate(options.overrides):
            if word in all_keys():
                value = "".join(options.overrides[place + 1 : place + 2]) or "VALUE"
                raise UserError(f"{word} has no value: write {word}={value}")
        return options

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Keep overrides from being taken for the value of an option that may stand alone."""
        if args is not None:
            args = list(args)
            optional = {
                name
                for action in self._actions
                if action.nargs == "?"
                for name in action.option_strings
            }
            for place in [place for place, word in enumerate(args) if word in optional]:
                while args[place + 1 :] and is_override(args[place + 1]):
                    args.insert(place, args.pop(place + 1))
                    place += 1
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to write it, in one line."""
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        if unknown is None:
            # argparse names the overrides too, of which there may be none.
            message = message.replace(", section.key=value", "")
            raise UserError(f"{message}; see {self.prog} --help")
        raise UserError(self._explain(unknown[1].split()))

    def _explain(self, words: list[str]) -> str:
        option, equals, value = words[0].partition("=")
        value = value if equals else (words[1] if len(words) > 1 else "VALUE")
        if option in self._instead:
            return f"unknown option {option}: write {self._instead[option]}"
        own = [name for action in self._actions for name in action.option_strings]
        if nearest := suggestion(option, own, cutoff=0.8):
            return f"unknown option {short(option)[1:-1]}{nearest}"
        meant = suggest(option.lstrip("-"))
        key = meant.removeprefix("; did you mean ").removesuffix("?")
        if not key or key in sections():
            return f"unknown option {short(option)[1:-1]}; see {self.prog} --help"
        return f"unknown option {short(option)[1:-1]}: write {key}={short(value)[1:-1]}"

"""YAML as people write it: text into plain values without surprises, or one line that says why not.

YAML 1.1, which PyYAML reads, takes `yes` for a truth, `12:30` for 750, `010` for 8 and `2026-01-01`
for a date, and the last of two equal keys wins. Here scalars are those of YAML 1.2's core schema
(with 1e-4 as a number), and equal keys are a mistake.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from dali_rsb.errors import UserError

MAX_CHARACTERS = 1_000_000  # far more than a configuration has
_MAX_DEPTH = 50  # a configuration has three levels
_MAX_NODES = 10_000  # after merging anchors, which may double each other without end


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML's own way

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Give up early on what is nested: PyYAML takes seconds to reach Python's own limit."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse equal keys, of which PyYAML takes the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"the key {short(key.value)} stands twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge `<<` as PyYAML does, but not without end."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_NODES:
            problem = "anchors are merged without end"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
        r"|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML text into plain values: dictionaries, lists, text, numbers, truths, None.

    Args:
        where: what the text was read from, for the message.

    Raises:
        UserError: it is not YAML, holds equal keys, or is too large or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has {len(text):,} characters; a configuration has a few hundred")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        reason = "it is nested too deeply"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        reason = f"{line}{error.problem or error.context}"
    except (AttributeError, LookupError):  # what PyYAML throws at `!!timestamp x` and `!!int ''`
        reason = "a value does not fit its tag, such as !!int"
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        # Python refuses numbers of over 4,300 digits, PyYAML keys that are lists, in their words.
        reason = str(error)
    raise UserError(f"{where} is not YAML: {short_line(reason)}")


def short(value: Any, limit: int = 60) -> str:
    """A value for a message: at most `limit` characters, whatever it holds."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, (list, tuple)):
        # Anchors may nest a list in itself, and ten lists may stand for ten million values.
        text = f"[{', '.join(short(item, 12) for item in value[:3] if _is_plain(item))}"
        text += "]" if len(value) <= 3 and all(map(_is_plain, value)) else ", ...]"
        return text
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def short_line(text: str, limit: int = 200) -> str:
    """Some text as one line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict))

"""Reads a configuration: a YAML file, then `section.key=value` overrides, into the typed tree."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dali_rsb.config.mistakes import describe, suggest
from dali_rsb.config.sections import Config, sections
from dali_rsb.config.yaml_text import MAX_CHARACTERS, parse_yaml, short, short_line
from dali_rsb.errors import UserError

_MAX_PROBLEMS = 2  # named in one message


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, then apply `section.key=value` overrides in order.

    Raises:
        UserError: the file cannot be read, or a key, type or combination is wrong.
    """
    tree = parse_yaml(_read(path), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections such as `data:` and `model:`")
    return override_config({"name": path.stem, **tree}, overrides)


def override_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Build the typed tree from plain dictionaries (left as they are) and overrides.

    Raises:
        UserError: a key, type or combination is wrong.
    """
    tree = _two_levels(tree)
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = [describe(problem) for problem in error.errors(include_url=False)]
        more = len(problems) - _MAX_PROBLEMS
        rest = [f"and {more} more"] if more > 0 else []
        raise UserError(short_line("; ".join([*problems[:_MAX_PROBLEMS], *rest]), 300)) from error


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other values of some keys; what was not set stays so.

    Args:
        values: plain values by section.key.

    Raises:
        UserError: a value or combination is wrong.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return override_config(tree)


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # a FIFO would be waited for, a device never ends
            reason = "it is no file" if path.exists() else "No such file or directory"
            raise UserError(f"cannot read {path}: {reason}; give a file in configs/")
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; give a configuration")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        reason = getattr(error, "strerror", None) or reason
        raise UserError(
            f"cannot read {short_line(str(path))}: {reason}; give a file in configs/"
        ) from error


def _two_levels(tree: dict[Any, Any]) -> dict[str, Any]:
    """A copy in which nothing is deeper than a list of scalars in a section.

    Anchors of YAML can nest a value in itself or stand for ten million values; no key takes any.
    """
    copied: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(section, str):
            raise UserError(f"{short(section)} is no section{suggest('')}")
        if not isinstance(values, dict):
            copied[section] = _flat(section, values)
            continue
        copied[section] = {}
        for key, value in values.items():
            if not isinstance(key, str):
                raise UserError(f"{section}.{short(key)} is no key: keys are words")
            copied[section][key] = _flat(f"{section}.{key}", value)
    return copied


def _flat(key: str, value: Any) -> Any:
    items = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, (list, tuple, dict, set)) for item in items):
        raise UserError(
            f"{short(key)[1:-1]}: must be a value or a list of values, got a nested one"
        )
    return copy.copy(value)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot:
        if key == "name" and equals:
            tree["name"] = value
            return
        raise UserError(
            f"{short(override)}: write overrides as section.key=value{suggest(key.lstrip('-'))}"
        )
    if section in sections() and tree.get(section) is None:
        tree[section] = {}
    values = tree.setdefault(section, {})
    if not isinstance(values, dict):
        raise UserError(f"{section} must be a section with keys, not {short(values)}")
    values[name] = _flat(key, parse_yaml(value, f"the value of {short(key)[1:-1]}"))

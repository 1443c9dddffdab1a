"""What a configuration can be asked: its keys and their meaning, a JSON schema, differences."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from dali_rsb.config.sections import Config, Section, sections

WIDTH = 80


def explain(name: str | None = None) -> str:
    """The keys of a section, or of all, with type, default and meaning, in lines of 80 columns.

    Args:
        name: a section, or None for all.
    """
    chosen = sections() if name is None else {name: sections()[name]}
    parts = [_explain_section(name, section) for name, section in chosen.items()]
    if name is None:
        parts.insert(0, _explain_key("name", "name", Config.model_fields["name"]))
    return "\n\n".join(parts)


def explain_key(key: str) -> str:
    """One key, given as section.key."""
    section, _, name = key.partition(".")
    return _explain_key(key, name, sections()[section].model_fields[name])


def _explain_section(name: str, section: type[Section]) -> str:
    lines = [textwrap.fill(f"{name}: {(section.__doc__ or '').splitlines()[0]}", WIDTH)]
    for key, field in section.model_fields.items():
        lines.append(_explain_key(f"{name}.{key}", key, field))
    return "\n".join(lines)


def _explain_key(label: str, key: str, field: FieldInfo) -> str:
    kind = _kind(TypeAdapter(field.rebuild_annotation()).json_schema())
    default = "" if field.is_required() else f", default {_as_yaml(field.default)}"
    meaning = textwrap.fill(
        str(field.description), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
    head = textwrap.fill(
        f"{label}  ({kind}{default})", WIDTH, initial_indent="  ", subsequent_indent=" " * 4
    )
    return f"{head}\n{meaning}"


def _as_yaml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(f'{item:.4g}' for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema["type"] == "array" and "maxItems" not in schema:
        return f"list of {_kind(schema['items'])}"
    kind = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "array": f"list of {schema.get('minItems')} numbers",
        "string": "path" if schema.get("format") == "path" else "text",
    }[schema["type"]]
    bounds = []
    for word, sign in (
        ("minimum", ">="),
        ("exclusiveMinimum", ">"),
        ("maximum", "<="),
        ("exclusiveMaximum", "<"),
    ):
        if word in schema and abs(schema[word]) < 10**6:
            bounds.append(f"{sign} {schema[word]:g}")
    return " ".join([kind, " and ".join(bounds)]) if bounds else kind


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors; `name` is the file's if left out."""
    schema = Config.model_json_schema()
    schema.pop("required", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "dali_rsb configuration"
    return schema


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, with both values; `name` included."""
    trees = [config.model_dump(mode="json") for config in (first, second)]
    flat: list[dict[str, Any]] = []
    for tree in trees:
        values = {"name": tree.pop("name")}
        for section, keys in tree.items():
            values |= {f"{section}.{key}": value for key, value in keys.items()}
        flat.append(values)
    return {key: (flat[0][key], flat[1][key]) for key in flat[0] if flat[0][key] != flat[1][key]}

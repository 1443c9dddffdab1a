"""All values of all recipes and the limits of all keys, as recorded: none changes by mistake.

A default that changes is a change of every recipe; a limit, of what a run may be asked for.

Where it is meant to change: `python tests/test_config_defaults.py` records the values again, and
the difference is there to be looked at.
"""

import os
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from dali_rsb.config import load_config, override_config
from dali_rsb.config.sections import sections

RECORD = Path(__file__).with_name("recipe_values.yaml")
LIMITS = Path(__file__).with_name("key_limits.yaml")
# In a JSON schema, as pydantic makes it of a field.
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
LENGTHS = {"minItems": "items >=", "maxItems": "items <=", "minLength": "letters >="}
LENGTHS["maxLength"] = "letters <="
CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = ["defaults", *sorted(path.stem for path in CONFIGS.glob("*.yaml"))]


def _values(name):
    """The defaults, or of a recipe what is not its default, by section and key."""
    defaults = _flat(override_config({"name": "x"}))
    if name == "defaults":
        return defaults
    values = _flat(load_config(CONFIGS / f"{name}.yaml"))
    changed = {key: value for key, value in values.items() if defaults[key] != value}
    if "data.digits" in changed:  # wherever the checkout lies
        changed["data.digits"] = os.path.relpath(changed["data.digits"], CONFIGS.parent)
    return changed


def _flat(config):
    tree = config.model_dump(mode="json", exclude={"name"})
    return {f"{name}.{key}": value for name, keys in tree.items() for key, value in keys.items()}


def _limits():
    """Of each key that has any, the limits of its value and of the items of it."""
    keys = {
        f"{name}.{key}": _limits_in(TypeAdapter(field.rebuild_annotation()).json_schema())
        for name, section in sections().items()
        for key, field in section.model_fields.items()
    }
    return {key: ", ".join(sorted(limits)) for key, limits in keys.items() if limits}


def _limits_in(schema):
    words = BOUNDS | LENGTHS
    found = [f"{words[name]} {value}" for name, value in schema.items() if name in words]
    inner = [*schema.get("anyOf", ()), *schema.get("prefixItems", ()), schema.get("items")]
    for part in inner:
        found += _limits_in(part) if isinstance(part, dict) else []
    return found


def test_limits_are_those_recorded():
    assert _limits() == yaml.safe_load(LIMITS.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_recorded(name):
    assert _values(name) == yaml.safe_load(RECORD.read_text())[name]


if __name__ == "__main__":
    values = {name: _values(name) for name in NAMES}
    RECORD.write_text(yaml.safe_dump(values, sort_keys=True))
    LIMITS.write_text(yaml.safe_dump(_limits(), sort_keys=True))

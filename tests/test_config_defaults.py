"""All values of all recipes, as recorded: a default that changes is a change of every recipe.

Where it is meant to change: `python tests/test_config_defaults.py` records the values again, and
the difference is there to be looked at.
"""

import os
from pathlib import Path

import pytest
import yaml

from dali_rsb.config import load_config, override_config

RECORD = Path(__file__).with_name("recipe_values.yaml")
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


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_recorded(name):
    assert _values(name) == yaml.safe_load(RECORD.read_text())[name]


if __name__ == "__main__":
    values = {name: _values(name) for name in NAMES}
    RECORD.write_text(yaml.safe_dump(values, sort_keys=True))

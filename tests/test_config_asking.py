"""A configuration can be asked: `dali-rsb help`, `dali-rsb diff`, the JSON schema, recipe names."""

from functools import cache

import jsonschema
import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from dali_rsb import diff, help
from dali_rsb.config import load_config, override_config
from dali_rsb.config.asking import differences, json_schema
from dali_rsb.config.recipes import find_config, recipes
from dali_rsb.config.sections import all_keys, sections
from dali_rsb.config.yaml_text import parse_yaml
from dali_rsb.errors import UserError, run_command

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def _run(command, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["dali-rsb", *map(str, arguments)])
    try:
        run_command(command.main)
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    return code, capsys.readouterr()


def test_help_names_every_key_with_its_meaning(monkeypatch, capsys):
    code, printed = _run(help, monkeypatch, capsys)
    assert code == 0
    assert max(map(len, printed.out.splitlines())) <= 80
    words = " ".join(printed.out.split())
    for name, section in sections().items():
        for key, field in section.model_fields.items():
            assert f" {name}.{key} (" in words
            assert " ".join(field.description.split()) in words
    assert words.endswith(f"recipes: {', '.join(recipes())}")


def test_help_explains_a_section_and_a_key(monkeypatch, capsys):
    _, section = _run(help, monkeypatch, capsys, "optimizer")
    assert "optimizer.lr" in section.out
    assert "augment.size" not in section.out
    _, key = _run(help, monkeypatch, capsys, "optimizer.lr")
    assert key.out.split() == [
        "optimizer.lr",
        "(number",
        ">",
        "0,",
        "default",
        "0.005)",
        "peak",
        "learning",
        "rate",
    ]


@pytest.mark.parametrize(
    ("topic", "meant"), [("learning_rate", "optimizer.lr"), ("optimiser", "optimizer")]
)
def test_help_on_something_else_is_one_line(monkeypatch, capsys, topic, meant):
    code, printed = _run(help, monkeypatch, capsys, topic)
    assert code == 2
    assert f"did you mean {meant}" in printed.err
    assert printed.err.count("\n") == 1


def _changed(key, value):
    section, name = key.split(".")
    return {"name": "x", section: {name: value}}


CHANGES = {
    "optimizer.lr": 0.25,
    "augment.scale": [0.5, 1.0],
    "run.dir": "/there",
    "data.train": "/images",
    "loss.name": "ce",
    "run.compile": True,
    "model.num_classes": 7,
    "ema.decay": 0.5,
}


@given(st.sets(st.sampled_from(sorted(CHANGES))))
def test_differences_are_exactly_the_keys_that_differ(keys):
    tree = {"name": "x"}
    for key in keys:
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = CHANGES[key]
    found = differences(override_config({"name": "x"}), override_config(tree))
    assert set(found) == keys
    for key, (_, second) in found.items():
        assert second == CHANGES[key]


def test_diff_of_recipes_files_and_run_folders(monkeypatch, capsys, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = load_config(recipes()["a3"], ["optimizer.lr=1e-3"])
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    code, printed = _run(diff, monkeypatch, capsys, "a3", run)
    assert code == 1
    assert printed.out.split() == ["optimizer.lr", "0.008", "->", "0.001"]
    code, printed = _run(diff, monkeypatch, capsys, ROOT / "configs" / "a3.yaml", "a3")
    assert (code, printed.out) == (0, "no key differs\n")
    code, printed = _run(diff, monkeypatch, capsys, "a3", "a33")
    assert code == 2
    assert "a33" in printed.err


def test_recipes_are_found_by_name_and_as_the_readme_writes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(recipes()) == {path.stem for path in CONFIGS}
    for name, path in recipes().items():
        assert find_config(name) == find_config(f"configs/{name}.yaml") == path
    (tmp_path / "a3").write_text("")  # a file of one's own comes first
    assert find_config("a3").absolute() == tmp_path / "a3"
    with pytest.raises(UserError, match=r"no such file or recipe, did you mean 'quickstart'\?"):
        find_config("quikstart")


@cache
def _schema():
    """The schema as an editor uses it: made once."""
    return jsonschema.validators.validator_for(json_schema())(json_schema())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_recipe(path):
    # As an editor reads it: 1e-4 is a number in YAML 1.2.
    _schema().validate(parse_yaml(path.read_text(), "recipe"))


def test_the_schema_is_one():
    jsonschema.validators.validator_for(json_schema()).check_schema(json_schema())


# Any text may name these, as far as a schema goes.
ANY_TEXT = ("augment.randaugment", "model.name", "model.weights", "data.label_key")


def _takes_any_text(key):
    section, name = key.split(".")
    return key in ANY_TEXT or "Path" in str(sections()[section].model_fields[name].annotation)


@pytest.mark.parametrize("key", all_keys())
def test_the_schema_refuses_what_a_configuration_refuses(key):
    for wrong in ({"a": 1}, [[1]], "no such value \0", -1e30):
        if isinstance(wrong, str) and _takes_any_text(key):
            continue
        tree = _changed(key, wrong)
        with pytest.raises(UserError):
            override_config(tree)
        with pytest.raises(jsonschema.ValidationError):
            _schema().validate(tree)
    with pytest.raises(jsonschema.ValidationError):
        _schema().validate({"name": "x", key.split(".")[0]: {"no_such_key": 1}})

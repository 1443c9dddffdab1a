"""Hostile and mistaken configurations: one line of at most 300 characters, and no wrong number."""

import math
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from dali_rsb.config import Config, load_config, override_config
from dali_rsb.config.mistakes import SYNONYMS
from dali_rsb.config.sections import all_keys, sections
from dali_rsb.config.yaml_text import short, short_line
from dali_rsb.errors import UserError

A3 = ROOT / "configs" / "a3.yaml"


def _refusal(path, overrides=()):
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 300
    assert message.isprintable()
    return message


def _anchors(number, width, line):
    return "\n".join(line(i, ", ".join([f"*a{i - 1}"] * width)) for i in range(1, number))


HOSTILE = {
    "truth values that are words": "run: {compile: yes}",
    "sexagesimal": "schedule: {epochs: 1:30}",
    "leading zero": "schedule: {epochs: 010}",
    "underscore": "schedule: {epochs: 1_0}",
    "date": "optimizer: {lr: 2026-01-01}",
    "equal keys": "optimizer:\n  lr: 1\n  eps: 1.0e-6\n  lr: 2",
    "equal sections": "optimizer: {lr: 1}\nrun: {seed: 1}\noptimizer: {eps: 1.0e-6}",
    "6,000 digits": f"optimizer: {{lr: {'9' * 6000}}}",
    "100,000 hexadecimal digits": f"run: {{seed: 0x{'f' * 100_000}}}",
    "nested lists": "data: " + "[" * 3000,
    "nested mappings": "\n".join(f"{' ' * i}a:" for i in range(1000)),
    "list in itself": "augment: {scale: &s [*s, 1.0]}",
    "mapping in itself": "data: &d {train: *d}",
    "billion laughs": "a0: &a0 [x, x]\n" + _anchors(30, 9, lambda i, a: f"a{i}: &a{i} [{a}]"),
    "merging without end": "a0: &a0 {k: 1}\n"
    + _anchors(30, 9, lambda i, a: f"a{i}: &a{i} {{<<: [{a}]}}"),
    "python object": "data: !!python/object/apply:os.system [true]",
    "value that does not fit its tag": "run: {seed: !!int ''}",
    "no time": "run: {seed: !!timestamp x}",
    "no truth": "run: {warm_up: !!bool x}",
    "list as a key": "? [1, 2]\n: 3",
    "null as a key": "null: {lr: 1}",
    "number as a section": "3: {lr: 1}",
    "number as a key": "optimizer: {3: 1}",
    "two documents": "data: {}\n---\nrun: {}",
    "tab": "data:\n\ttrain: a",
    "NUL": 'data: {train: "a\\0b"}',
    "path out": "name: ../../x",
    "hidden name": "name: .x",
    "empty name": "name: ''",
    "long name": f"name: {'n' * 300}",
    "line break in a name": 'name: "a\\nb"',
    "long key": f"optimizer: {{{'k' * 5000}: 1}}",
    "long value": f"optimizer: {{name: {'v' * 5000}}}",
    "no such home": "data: {train: ~nobody-here/images}",
    "many mistakes": "optimizer: {" + ", ".join(f"k{i}: {i}" for i in range(200)) + "}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    _refusal(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "content", [b"name: caf\xe9", "data: {}".encode("utf-16"), bytes(range(256)), b"", b"- a", b"3"]
)
def test_what_is_no_text_is_one_line(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    assert "c.yaml" in _refusal(tmp_path / "c.yaml")


def test_files_that_are_none_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    assert "fifo.yaml" in _refusal(tmp_path / "fifo.yaml")
    assert "/dev/zero" in _refusal(Path("/dev/zero"))
    assert str(tmp_path) in _refusal(tmp_path)
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100_000_000)
    assert "100,000,000 bytes" in _refusal(tmp_path / "large.yaml")


def test_anchors_serve_where_they_are_meant(tmp_path):
    text = "data: &d {threads: 2}\nevaluation: {}\nrun: {seed: 3}\n"
    (tmp_path / "c.yaml").write_text(text + "augment: {scale: &s [0.5, 1.0], ratio: *s}\n")
    config = load_config(tmp_path / "c.yaml")
    assert config.augment.ratio == (0.5, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", all_keys())
def test_nothing_is_accepted_that_is_no_number(key, value):
    section, name = key.split(".")
    for wrong in (value, [value, 1.0], [1.0, value], [0.5, value, 0.5]):
        with pytest.raises(UserError, match=re.escape(key)):
            override_config({"name": "x", section: {name: wrong}})


def _accepted_floats(value):
    if isinstance(value, dict):
        return [x for v in value.values() for x in _accepted_floats(v)]
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in _accepted_floats(v)]
    return [value] if isinstance(value, float) else []


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20)
)
values = plain | st.lists(plain, max_size=4) | st.dictionaries(st.text(max_size=3), plain)


@given(
    st.dictionaries(
        st.sampled_from(all_keys()) | st.text(max_size=8), values, min_size=1, max_size=4
    )
)
def test_any_tree_is_a_configuration_or_one_line(mutations):
    tree = {"name": "x"}
    for key, value in mutations.items():
        section, _, name = key.partition(".")
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section][name] = value
    try:
        config = override_config(tree)
    except UserError as error:
        config, message = None, str(error)
    if config is None:
        assert "\n" not in message
        assert len(message) <= 300
        return
    stored = config.model_dump(mode="json")
    assert all(map(math.isfinite, _accepted_floats(stored)))
    assert override_config(yaml.safe_load(yaml.safe_dump(stored))) == config


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.std=[0.2, 0, 0.2]", "data.std"),
        ("data.std=[0.2, -0.1, 0.2]", "data.std"),
        ("schedule.min_lr=1", "schedule.min_lr"),
        ("schedule.warmup_lr=1", "schedule.warmup_lr"),
        ("augment.scale=[0.08, 1.5]", "augment.scale"),
        ("augment.ratio=[0, 1]", "augment.ratio"),
        ("evaluation.size=1000000000000", "evaluation.size"),
        ("augment.size=100000", "augment.size"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas"),
        ("optimizer.momentum=1.0", "optimizer.momentum"),
        ("run.seed=-1", "run.seed"),
        ("run.seed=9223372036854775808", "run.seed"),
        ("model.drop_path=1.0", "model.drop_path"),
        ("evaluation.crop_ratio=0.0001", "evaluation.crop_ratio"),
        ("augment.randaugment=rand-n100000", "n100000"),
    ],
)
def test_numbers_out_of_range_are_named(override, key):
    assert key in _refusal(A3, [override])


@pytest.mark.parametrize("name", SYNONYMS)
def test_names_of_other_trainers_lead_to_ours(name):
    assert SYNONYMS[name] in all_keys()
    assert f"did you mean {SYNONYMS[name]}?" in _refusal(A3, [f"optimizer.{name}=1"])
    # The fix that the message names is a key.
    assert f"did you mean {SYNONYMS[name]}?" in _refusal(A3, [f"--{name}=1".replace("_", "-")])


def test_every_key_says_what_it_means():
    for name, section in sections().items():
        assert section.__doc__
        for key, field in section.model_fields.items():
            assert field.description, f"{name}.{key}"
    assert Config.model_fields["name"].description


def test_paths_are_absolute_and_home_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    keys = [
        f"{name}.{key}"
        for name, section in sections().items()
        for key, field in section.model_fields.items()
        if "Path" in str(field.annotation) and key != "digits"
    ]
    assert len(keys) >= 5
    config = load_config(A3, [*(f"{key}=~/x y" for key in keys)])
    for key in keys:
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == tmp_path / "x y"
    relative = load_config(A3, [f"{key}=there" for key in keys])
    assert relative.data.train == tmp_path / "there"


def test_images_of_ones_own_in_place_of_the_digits():
    quickstart = ROOT / "configs" / "quickstart.yaml"
    own = ["data.train=photos", "data.val_fraction=0.2"]
    assert "set data.digits=null" in _refusal(quickstart, own)
    config = load_config(quickstart, [*own, "data.digits=null"])
    assert (config.data.train.name, config.data.digits) == ("photos", None)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "a\nb"])
def test_a_run_has_a_name_that_stays_in_its_folder(name):
    with pytest.raises(UserError, match="printable name without slashes"):
        override_config({"name": name})


def test_what_is_quoted_fits_its_limit():
    assert short("x" * 30, 20) == "'" + "x" * 16 + "..."
    assert short("x" * 18, 20) == repr("x" * 18)
    assert short_line("one\n  line " * 30, 50) == ("one line " * 30)[:47] + "..."
    assert short([1, 2, 3]) == "[1, 2, 3]"
    assert short([1, 2, 3, 4]) == "[1, 2, 3, ...]"
    assert short([1, [2]]) == "[1, ...]"
    assert short({"a": 1}) == "a mapping of 1 keys"
    assert short(2**200) == "a number of 201 bits"

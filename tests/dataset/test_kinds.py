"""Kinds of datasets, and what is said of their classes and of what they leave out."""

import json
import logging
from types import SimpleNamespace

import pytest

from dali_rsb import UserError, open_index
from dali_rsb.dataset.counting import describe_left_out, warn_of_other_order
from dali_rsb.dataset.kinds import FOLDER, LIST, SHARDS, kind_of_stored
from dali_rsb.dataset.packing.note import read_pack
from dali_rsb.system.files import UnreadableFileError


@pytest.mark.parametrize(
    ("meta", "kind"),
    [
        ({"shards": ["a.tar"], "listed_under": None}, SHARDS),
        ({"shards": None, "listed_under": None}, FOLDER),
        ({"shards": None, "listed_under": "/images"}, LIST),
        ({"kind": SHARDS.name}, SHARDS),
    ],
)
def test_kinds_of_indices_of_all_ages(meta, kind):
    assert kind_of_stored(meta) is kind


def test_a_kind_of_a_later_version_is_told():
    with pytest.raises(ValueError, match="'lmdb' is not known"):
        kind_of_stored({"kind": "lmdb"})


def test_classes_that_another_order_numbers_otherwise_are_told(caplog):
    index = SimpleNamespace(classes=("1", "10", "2"), origin="here")
    with caplog.at_level(logging.WARNING):
        warn_of_other_order(index, "plain")
    (message,) = caplog.messages
    assert message.startswith(
        "class 1 of here is 10, in the plain order of ImageFolder; in natural"
    )
    assert message.endswith("it is 2: class_order=natural reads it so")
    caplog.clear()
    warn_of_other_order(SimpleNamespace(classes=("a", "b"), origin="here"), "plain")
    warn_of_other_order(SimpleNamespace(classes=("2", "1"), origin="here"), "plain")
    assert not caplog.messages


def test_reasons_beyond_the_first_are_counted_together():
    counts = dict(zip("abcdefghijkl", range(12, 0, -1), strict=True))
    shown = describe_left_out(counts).split(", ")
    number, _ = shown[-1].split(" others")
    assert sum(int(part.split()[0]) for part in shown[:-1]) + int(number) == 78


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone does not exist: give a folder"):
        open_index(tmp_path / "gone", progress=False)


def test_a_damaged_note_of_a_pack_is_named_with_the_fix(tmp_path):
    note = tmp_path / "dali_rsb_index" / "meta.json"
    note.parent.mkdir()
    for content, reason in (
        ({}, "is not the note of a pack ('pack')"),
        ({"pack": {"version": 99}}, "is of version 99, not 1"),
    ):
        note.write_text(json.dumps(content))
        with pytest.raises(UnreadableFileError) as caught:
            read_pack(tmp_path, "pack again")
        message = str(caught.value)
        assert message.index(str(note)) < message.index(reason) < message.index("pack again")

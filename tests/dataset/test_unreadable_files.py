"""Lists, class names, labels and stored indices that cannot be read: one line, or built again."""

import io
import json
import logging
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from dali_rsb import UserError, open_index
from dali_rsb.dataset import storage
from dali_rsb.dataset.image_list import image_list, without
from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.dataset.packing import PackOptions, pack, verify

pytestmark = pytest.mark.timeout(60)  # to open a pipe is to wait for a writer

DIGITS = "7" * 6000  # Python's int() takes 4,300


def jpeg(width=20):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    return tmp_path / "folder"


def message_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 300
    return message


UNREADABLE = {
    "a pipe": (os.mkfifo, "is a pipe or device, no file"),
    "UTF-16": (lambda path: path.write_text("1.jpg\t0\n", "utf-16"), "is UTF-16, not UTF-8"),
    "NUL": (lambda path: path.write_bytes(b"1.jpg\t0\n\0"), "is no text, line 2 holds a NUL byte"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_lists_that_cannot_be_read(folder, kind):
    make, reason = UNREADABLE[kind]
    path = folder / "a" / "list.txt"
    make(path)
    assert f"list.txt {reason}: a list of images has PATH" in message_of(open_index, path)
    path.unlink()
    make(path)
    images = image_list(folder / "a" / "..", None)
    assert f"list.txt {reason}: give exclude a text file" in message_of(without, images, path)


def test_numbers_of_thousands_of_digits_in_a_list(folder):
    path = folder / "a" / "list.txt"
    path.write_text(f"1.jpg\t{DIGITS}\n")
    assert "is no class number: count classes from 0" in message_of(open_index, path)
    path.write_text(f"1.jpg\tx{DIGITS}\n2.jpg\tx9\n{DIGITS}.jpg\tx9\n")
    index = open_index(path)
    assert index.classes == (f"x{DIGITS}", "x9")
    assert index.labels.tolist() == [0, 1]


def test_natural_order_of_numbers_of_any_length():
    numbers = ["0", "9", "10", "99", "100", "1" + 4000 * "0", 6000 * "9", "1" + 6000 * "0"]
    names = [f"n{number}" for number in numbers]
    assert natural_sorted(reversed(names)) == names


def write_shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.parent


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (DIGITS.encode(), "1.cls in .*0.tar holds no label, but more than a line"),
        (b"7\n8\n", "1.cls in .*0.tar holds no label, but more than a line"),
        (DIGITS[:900].encode(), "label 777.* is no class number: count classes from 0"),
        (b"", "1.cls in .*0.tar holds no label, but nothing"),
    ],
)
def test_labels_in_shards(tmp_path, label, message):
    root = write_shard(tmp_path / "s" / "0.tar", {"1.jpg": jpeg(), "1.cls": label})
    with pytest.raises(UserError, match=message):
        open_index(root)


def test_a_shard_whose_headers_hold_nonsense(tmp_path):
    """A chain of 5,000 headers that announce a long name."""
    root = write_shard(tmp_path / "s" / "0.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
    announcement = tarfile.TarInfo("././@LongLink")
    announcement.type = tarfile.GNUTYPE_LONGNAME
    (root / "0.tar").write_bytes(announcement.tobuf() * 5000)
    assert "0.tar cannot be read as an uncompressed tar" in message_of(open_index, root)


def test_class_names_that_are_not_utf8(tmp_path):
    root = write_shard(tmp_path / "s" / "0.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
    (root / "classes.txt").write_bytes(b"dog\nk\xe4fer\n")
    message = message_of(open_index, root)
    assert "classes.txt is not UTF-8 (byte 0xe4 in line 2): give it the name of class" in message
    (root / "classes.txt").write_text("dog\nkäfer\n", "utf-8")  # the fix
    assert open_index(root).classes == ("dog", "käfer")


DAMAGED_META = {
    "deep": "[" * 100_000,
    "digits": f'{{"format_version": {DIGITS}}}',
    "not UTF-8": b"{\xff}",
    "another type": "[]",
    "no fields": '{"format_version": 3}',
    "another kind": None,
    "a pipe": os.mkfifo,
}


def damage(path, change):
    if change is None:
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "kind": "carrier pigeons"}))
        return
    path.unlink()
    if callable(change):
        change(path)
    else:
        path.write_bytes(change if isinstance(change, bytes) else change.encode())


@pytest.mark.parametrize("name", DAMAGED_META)
def test_a_damaged_index_is_built_again_and_says_why(folder, caplog, name):
    caplog.set_level(logging.INFO)
    open_index(folder)
    damage(storage.place_beside(folder) / "meta.json", DAMAGED_META[name])
    assert len(open_index(folder)) == 3
    assert "built again: " in caplog.text
    caplog.clear()
    assert len(open_index(folder)) == 3
    assert "built again: " not in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: np.save(path, np.zeros(3))])
def test_an_array_of_an_index_that_is_another_thing(folder, caplog, make):
    caplog.set_level(logging.INFO)
    open_index(folder)
    path = storage.place_beside(folder) / "labels.npy"
    path.unlink()
    make(path)
    assert open_index(folder).labels.tolist() == [0, 0, 1]
    assert "labels.npy is no" in caplog.text


@pytest.mark.parametrize("name", [name for name in DAMAGED_META if name != "a pipe"])
def test_a_damaged_pack_is_one_line_with_a_fix(folder, tmp_path, name):
    target = tmp_path / "packed"
    index = open_index(folder)
    pack(index, target, PackOptions())
    damage(target / "dali_rsb_index" / "meta.json", DAMAGED_META[name])
    assert "restore it or pack again" in message_of(open_index, target)
    if name == "another kind":
        return
    assert "holds no finished pack (meta.json is " in message_of(verify, target)
    assert message_of(pack, index, target, PackOptions()).endswith("): remove it")


def test_indices_of_earlier_versions_are_used(folder, tmp_path, caplog):
    """They name no kind of dataset, but have all fields."""
    pack(open_index(folder), tmp_path / "packed", PackOptions())
    (tmp_path / "list.txt").write_text("folder/b/3.jpg\t0\nfolder/a/1.jpg\t1\n")
    others = write_shard(tmp_path / "others" / "0.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
    roots = (folder, tmp_path / "packed", tmp_path / "list.txt", others)
    expected = [open_index(root).labels.tolist() for root in roots]
    for root in roots:
        place = storage.place_beside(root)
        if root.name == "packed":
            place = root / "dali_rsb_index"
        meta = json.loads((place / "meta.json").read_text())
        del meta["kind"]
        meta = {"shards": None, "listed_under": None, **meta}
        (place / "meta.json").write_text(json.dumps(meta))
    caplog.set_level(logging.INFO)
    assert [open_index(root).labels.tolist() for root in roots] == expected
    assert "indexed" not in caplog.text


def test_a_dataset_of_another_kind_under_the_same_path_is_indexed_again(folder, tmp_path, caplog):
    root = tmp_path / "data"
    folder.rename(root)
    assert len(open_index(root)) == 3
    root.rename(folder)
    write_shard(root / "0.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
    caplog.set_level(logging.INFO)
    assert len(open_index(root)) == 1
    assert "was a dataset of kind folder, and is of kind shards" in caplog.text


def test_class_folders_whose_names_are_not_utf8_are_packed(folder, tmp_path):
    (folder / "b").rename(folder / os.fsdecode(b"\xff"))
    index = open_index(folder)
    pack(index, tmp_path / "packed", PackOptions())
    assert open_index(tmp_path / "packed").classes == index.classes == ("a", "\udcff")

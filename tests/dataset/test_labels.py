"""Labels go by the names of classes; every fix that a refusal names is followed, and works."""

import argparse
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dali_rsb import DaliLoader
from dali_rsb.config import override_config
from dali_rsb.dataset import Reading, open_index
from dali_rsb.dataset.classes import (
    check_same_order,
    first_difference,
    join_classes,
    read_class_names,
)
from dali_rsb.dataset.packing import PackOptions, pack
from dali_rsb.dataset.reading import add_reading_arguments, reading_of_arguments
from dali_rsb.dataset.shard_choice import expand_braces
from dali_rsb.errors import UserError
from dali_rsb.run.processes import processes
from dali_rsb.training.datasets import open_datasets, open_validation


def jpeg(color=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), color, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()


def tree(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(JPEG)
    return root


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def datasets(num_classes, **data):
    tree = {"name": "x", "data": {k: str(v) if "/" in str(v) else v for k, v in data.items()}}
    config = override_config(tree)
    with processes("cpu") as alone:
        return open_datasets(config.data, num_classes, alone)


def labels_by_class(index):
    names = [index.name(i).rsplit("/", 2)[1] for i in range(len(index))]
    return dict(zip(names, index.labels.tolist(), strict=True))


# Orders and joins


def test_a_join_is_by_name_and_a_difference_is_named():
    joined = join_classes(["dog", "wolf", "cat"], ["cat", "dog", "fox"])
    assert joined.positions.tolist() == [1, -1, 0]
    assert (joined.unknown, joined.missing) == (("wolf",), ("fox",))
    assert first_difference(["a", "b"], ["a", "c"]) == (1, "b", "c")
    assert first_difference(["a"], ["a", "c"]) == (1, "missing", "c")
    assert first_difference(["a"], ["a"]) is None


def test_one_setting_gives_the_order_of_image_folder_or_timm(tmp_path, caplog):
    root = tree(tmp_path / "data", {str(i): 1 for i in range(12)} | {"Banana": 1, "apple": 1})
    plain = DaliLoader(root, 1, device="cpu", num_threads=1).dataset
    assert plain.classes == tuple(sorted(map(str, [*range(12), "Banana", "apple"])))
    assert "class 2 of" in caplog.text
    assert "class_order=natural" in caplog.text
    natural = DaliLoader(root, 1, device="cpu", num_threads=1, class_order="natural").dataset
    assert natural.classes == (*map(str, range(12)), "apple", "Banana")
    assert DaliLoader(root, 1, device="cpu", num_threads=1).dataset.classes == plain.classes
    for images in (plain, natural):
        labels = labels_by_class(images.index)
        assert labels == {name: label for label, name in enumerate(images.classes)}
    with pytest.raises(UserError, match="give plain or natural"):
        DaliLoader(root, 1, device="cpu", class_order="alphabetic")


def test_a_pack_keeps_the_order_of_what_was_packed(tmp_path):
    root = tree(tmp_path / "data", {"2": 1, "10": 1})
    natural = open_index(root, reading=Reading(class_order="natural"))
    pack(natural, tmp_path / "pack", PackOptions())
    assert open_index(tmp_path / "pack").classes == ("2", "10")
    train = datasets(2, train=tmp_path / "pack", val=tree(tmp_path / "val", {"2": 1, "10": 1}))
    assert labels_by_class(train.val) == {"2": 0, "10": 1}


def test_validation_is_joined_by_name(tmp_path, caplog):
    train = tree(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    val = tree(tmp_path / "val", {"a": 1, "b": 0, "c": 1})
    lists = tmp_path / "val.txt"
    lists.write_text("val/c/0.jpg\tc\nval/a/0.jpg\ta\n")
    for source in (val, lists):
        caplog.clear()
        opened = datasets(3, train=train, val=source)
        assert opened.val.classes == ("a", "b", "c")
        assert labels_by_class(opened.val) == {"a": 0, "c": 2}
        assert "1 of 3 classes have no image" in caplog.text
        assert caplog.text.rstrip().endswith(": b")
    (val / "b").rmdir()
    assert labels_by_class(datasets(3, train=train, val=val).val) == {"a": 0, "c": 2}
    tree(val, {"wolf": 1})
    with pytest.raises(UserError, match=r"class wolf of .*val is not among the classes of .*train"):
        datasets(3, train=train, val=val)
    (val / "wolf").rename(val / "b")  # as advised
    assert labels_by_class(datasets(3, train=train, val=val).val) == {"a": 0, "b": 1, "c": 2}


def test_class_numbers_are_no_positions_among_names(tmp_path):
    train = tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "val", {"x": 2})
    (tmp_path / "val.txt").write_text("val/x/0.jpg\t0\nval/x/1.jpg\t1\n")
    with pytest.raises(
        UserError, match=r"class 0 of .*val.txt is not among the classes of .*train"
    ):
        datasets(2, train=train, val=tmp_path / "val.txt")
    opened = datasets(2, train=train, val=tmp_path / "val.txt", classes=["a", "b"])
    assert opened.val.labels.tolist() == [0, 1]
    assert opened.val.classes == ("a", "b")


def test_empty_classes_are_legal_where_they_are_declared(tmp_path):
    root = tree(tmp_path / "data", {"a": 1, "b": 0, "c": 1})
    with pytest.raises(UserError, match=r"1 class folders without images .*: b; .*data\.classes"):
        open_index(root)
    names = tmp_path / "names.txt"
    names.write_text("c\nb\na\n")
    for classes in (["c", "b", "a"], names):
        index = DaliLoader(root, 1, device="cpu", num_threads=1, classes=classes).dataset.index
        assert index.classes == ("c", "b", "a")
        assert labels_by_class(index) == {"c": 0, "a": 2}
    with pytest.raises(UserError, match=r"class c of .*data is not among the classes that are"):
        open_index(root, reading=Reading.of(classes=["a", "b"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "no name for class 1"), ("", "no class names"), ("a\nb\na\n", "class a 2 times")],
)
def test_class_names_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_names(tmp_path / "names.txt")


def test_a_folder_that_looks_like_no_class_is_refused_until_declared(tmp_path):
    root = tree(tmp_path / "val", {"images": 3})
    with pytest.raises(UserError, match="looks like no class"):
        open_index(root)
    assert open_index(root, reading=Reading.of(classes=["images"])).classes == ("images",)
    (tmp_path / "val.txt").write_text("val/images/0.jpg\tn1\nval/images/1.jpg\tn0\n")
    assert open_index(tmp_path / "val.txt").labels.tolist() == [1, 0]


# Checkpoints


@pytest.mark.parametrize(
    ("trained", "fix"),
    [(("2", "10"), {"class_order": "natural"}), (("10", "2", "z"), None), (("2", "10"), "classes")],
)
def test_a_checkpoint_decides_the_order(tmp_path, trained, fix):
    root = tree(tmp_path / "data", {"2": 1, "10": 1})
    index = open_index(root)
    difference = rf"class {2 if fix is None else 0} is .* in .*last.pt but .* in .*data"
    with pytest.raises(UserError, match=difference) as caught:
        check_same_order(trained, index, tmp_path / "last.pt", "plain")
    if fix is None:
        assert "start again from model.weights" in str(caught.value)
        return
    assert "set data.class_order=natural" in str(caught.value)
    order = Reading(class_order="natural")
    reading = order if fix != "classes" else Reading.of(classes=trained)
    check_same_order(trained, open_index(root, reading=reading), tmp_path / "last.pt", "natural")


def test_a_checkpoints_validation_is_by_name(tmp_path):
    config = override_config({"name": "x", "data": {"val": str(tmp_path / "sub")}})
    tree(tmp_path / "sub", {"dog": 1, "fox": 1})
    classes = ("cat", "dog", "fox")
    index = open_validation(config.data, classes, "the classes of best.pt")
    assert labels_by_class(index) == {"dog": 1, "fox": 2}
    tree(tmp_path / "sub", {"wolf": 1})
    with pytest.raises(UserError, match=r"class wolf of .* is not among the classes of best\.pt"):
        open_validation(config.data, classes, "the classes of best.pt")


@pytest.mark.parametrize("leaf", ["images", "x", "n00"])
@pytest.mark.parametrize("count", [2, 11])
def test_one_class_below_several_folders_is_refused_whatever_the_level(tmp_path, leaf, count):
    root = tree(tmp_path / "train", {f"n{i}/{leaf}": 1 for i in range(count)})
    for level in (None, "leaf"):
        with pytest.raises(UserError) as caught:
            open_index(root, reading=Reading(class_level=level))
        advice = re.search(rf"class_level .*to (\w+) for {count} classes", str(caught.value))
        index = open_index(root, reading=Reading(class_level=advice[1]))
        assert index.classes == tuple(sorted(f"n{i}" for i in range(count)))
        found = {index.path(i).parts[-3]: index.labels[i] for i in range(count)}
        assert found == {name: label for label, name in enumerate(index.classes)}
    assert "or declare it with" in str(caught.value)
    declared = Reading.of(class_level="leaf", classes=[leaf])
    assert open_index(root, reading=declared).classes == (leaf,)


def test_a_command_reads_as_its_options_say(tmp_path):
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    parser = argparse.ArgumentParser()
    add_reading_arguments(parser)
    words = f"--class-order natural --class-level leaf --classes {tmp_path}/names.txt --label-key y"
    given = reading_of_arguments(parser.parse_args(words.split()))
    assert given == Reading("natural", "leaf", ("dog", "cat"), "y")
    assert reading_of_arguments(parser.parse_args([])) == Reading()


# Overlap


@pytest.mark.parametrize(
    "case",
    ["same", "link", "parent", "child", "linked class", "lists", "linked file", "hard link"],
)
def test_sets_that_share_files_are_refused(tmp_path, case):
    train = tree(tmp_path / "train", {"a": 2, "b": 2})
    val = tmp_path / "val"
    if case == "same":
        val = train
    elif case == "link":
        val.symlink_to(train)
    elif case in ("parent", "child"):
        inner = tree(train / "c" / "inner", {"a": 1, "b": 1})
        train, val = (train, inner) if case == "parent" else (inner, train)
    elif case == "linked class":
        tree(val, {"a": 1})
        (val / "b").symlink_to(train / "b")
    elif case in ("linked file", "hard link"):
        tree(val, {"a": 1, "b": 1})
        link = Path.symlink_to if case == "linked file" else Path.hardlink_to
        link(val / "b" / "other name.jpg", train / "a" / "0.jpg")
    else:
        train, val = tmp_path / "train.txt", tmp_path / "val.txt"
        train.write_text("train/a/0.jpg\ta\ntrain/b/0.jpg\tb\n")
        val.write_text("train/b/0.jpg\tb\ntrain/a/1.jpg\ta\n")
    with pytest.raises(
        UserError, match=r"(same folder|holds|share|links)[ ,].*data\.allow_overlap=true"
    ):
        datasets(2, train=train, val=val)
    if case in ("same", "lists", "linked class", "linked file", "hard link"):
        assert datasets(2, train=train, val=val, allow_overlap=True).train.num_classes == 2


def test_sets_apart_are_not_refused(tmp_path):
    train = tree(tmp_path / "train", {"a": 2, "b": 2})
    assert len(datasets(2, train=train, val=tree(tmp_path / "val", {"a": 2, "b": 2})).val) == 4
    # Copies that keep their time are files of their own, of equal bytes: those are for `verify`.
    shutil.copytree(train, tmp_path / "copy")
    assert len(datasets(2, train=train, val=tmp_path / "copy").val) == 4


def test_excluded_images_are_left_out(tmp_path):
    train = tree(tmp_path / "train", {"a": 2, "b": 2})
    val = tree(tmp_path / "val", {"a": 2, "b": 2})
    names = tmp_path / "exclude.txt"
    names.write_text(f"{train}/a/1.jpg\n{val}/b/0.jpg\n")
    opened = datasets(2, train=train, val=val, exclude=names)
    assert [str(p.path(i))[-7:] for p in (opened.train,) for i in range(3)] == [
        *("a/0.jpg", "b/0.jpg", "b/1.jpg"),
    ]
    assert len(opened.val) == 3


# Counts


def test_what_is_left_out_is_counted_by_reason(tmp_path, caplog):
    root = tree(tmp_path / "data", {"a": 2, "b": 1})
    for name in ("x.jfif", "x.jpe", "without_extension", ".hidden.txt", "notes.txt"):
        (root / "a" / name).write_bytes(JPEG)
    (root / "b" / "bad.jpg").write_bytes(b"<html>")
    (root / "b" / "gone.jpg").symlink_to("nowhere")
    caplog.set_level("INFO")
    index = open_index(root)
    (line,) = [r for r in caplog.records if r.message.startswith("indexed")]
    assert len(index) == 5
    assert "5 images of 2 classes" in line.message
    assert "10 entries seen, 5 left out (" in line.message
    for reason in ("1 no extension", "1 hidden", "1 .txt", "1 cannot be read", "1 missing"):
        assert reason in line.message
    assert open_index(root).left_out == index.left_out


@pytest.mark.parametrize("head", ["path\tlabel", "filename\tclass", "image_id\tcategory"])
@pytest.mark.parametrize("labels", [("0", "1"), ("cat", "dog")])
def test_a_header_line_becomes_no_class(tmp_path, head, labels):
    tree(tmp_path / "x", {"c": 2})
    path = tmp_path / "list.txt"
    path.write_text(f"{head}\nx/c/0.jpg\t{labels[0]}\nx/c/1.jpg\t{labels[1]}\n")
    index = open_index(path)
    assert index.classes == labels
    assert index.labels.tolist() == [0, 1]
    assert index.left_out == {"a header line": 1}


# Tars


def test_names_with_dots_are_paired(tmp_path, caplog):
    keys = {"cat": b"0", "img_0.5x": b"1", "v1.2": b"2", "d.e/a.b.c": b"3"}
    suffixes = ("jpg", "cls")
    members = [(f"{k}.{e}", JPEG if e == "jpg" else c) for k, c in keys.items() for e in suffixes]
    shard(tmp_path / "s" / "0.tar", [*members, ("cat.seg.png", JPEG)])
    caplog.set_level("INFO")
    index = open_index(tmp_path / "s")
    assert dict(zip(map(index.store.name, range(4)), index.labels.tolist(), strict=True)) == {
        f"0.tar:{key}.jpg": int(label) for key, label in keys.items()
    }
    assert "3 images in" in caplog.text
    assert "webdataset ends a key at the first" in caplog.text
    assert index.left_out == {"further images of a sample": 1}


def test_padded_labels_are_numbers_and_floats_are_none(tmp_path):
    labels = {"a": "0000", "b": "0002", "c": "0005"}
    for factor, folder in (("", "ok"), (".0", "float")):
        members = [(f"{k}.jpg", JPEG) for k in labels]
        members += [(f"{k}.cls", f"{text}{factor}".encode()) for k, text in labels.items()]
        shard(tmp_path / folder / "0.tar", members)
    assert open_index(tmp_path / "ok").labels.tolist() == [0, 2, 5]
    with pytest.raises(UserError, match="write whole numbers"):
        open_index(tmp_path / "float")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", JPEG), ("a.cls", b"0")] * 2, "a.jpg stands twice"),
        ([("a.jpg", JPEG), ("a.png", JPEG), ("a.cls", b"0")], "two images of one sample"),
        ([("a.jpg", JPEG), ("a.JPG", JPEG), ("a.cls", b"0")], "two images of one sample"),
        ([("a.jpg", JPEG), ("a.cls", b"0"), ("a.cls", b"1")], "a.cls stands twice"),
        ([("a.jpg", JPEG), ("a.cls", b" \n")], "holds no label, but nothing"),
    ],
)
def test_ambiguous_samples_are_refused(tmp_path, members, message):
    shard(tmp_path / "s" / "0.tar", members)
    with pytest.raises(UserError, match=message):
        open_index(tmp_path / "s")


def test_labels_in_json(tmp_path):
    values = [{"label": 3, "text": "dog"}, {"label": 0, "text": "cat"}]
    members = [(f"{i}.jpg", JPEG) for i in range(2)]
    shard(
        tmp_path / "s" / "0.tar",
        members + [(f"{i}.json", json.dumps(value).encode()) for i, value in enumerate(values)],
    )
    with pytest.raises(UserError, match=r"set data\.label_key or label_key=label or text"):
        open_index(tmp_path / "s")
    assert open_index(tmp_path / "s", reading=Reading(label_key="label")).labels.tolist() == [3, 0]
    assert open_index(tmp_path / "s", reading=Reading(label_key="text")).classes == ("cat", "dog")
    with pytest.raises(UserError, match=r"has no 'no': set data\.label_key"):
        open_index(tmp_path / "s", reading=Reading(label_key="no"))


@pytest.mark.parametrize("label_key", [None, "label"])
def test_the_name_of_a_class_has_up_to_1000_characters(tmp_path, label_key):
    names = {"longest": 1000 * "x", "longer": 1001 * "x"}
    for folder, name in names.items():
        label = ("1.json", json.dumps({"label": name})) if label_key else ("1.cls", name)
        shard(tmp_path / folder / "0.tar", [("1.jpg", JPEG), (label[0], label[1].encode())])
    reading = Reading(label_key=label_key)
    assert open_index(tmp_path / "longest", reading=reading).classes == (names["longest"],)
    with pytest.raises(UserError, match=r"a \.cls file holds a|write whole numbers"):
        open_index(tmp_path / "longer", reading=reading)


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tar"])
def test_compressed_shards_are_refused_with_the_command_that_unpacks_them(tmp_path, name):
    plain = shard(tmp_path / "plain.tar", [("a.jpg", JPEG), ("a.cls", b"0")])
    (tmp_path / "s").mkdir()
    subprocess.run(f"gzip -c {plain} > {tmp_path}/s/{name}", shell=True, check=True)
    with pytest.raises(UserError, match="unpack it: ") as caught:
        open_index(tmp_path / "s")
    subprocess.run(str(caught.value).partition("unpack it: ")[2], shell=True, check=True)
    assert len(open_index(tmp_path / "s")) == 1


def test_a_tar_of_one_class_becomes_a_folder(tmp_path):
    shard(tmp_path / "s" / "n01.tar", [("n01_1.JPEG", JPEG), ("n01_2.JPEG", JPEG)])
    with pytest.raises(UserError, match="become a folder: ") as caught:
        open_index(tmp_path / "s")
    subprocess.run(str(caught.value).partition("a folder: ")[2], shell=True, check=True)
    assert open_index(tmp_path / "s").classes == ("n01",)


def test_shards_of_two_sets_in_one_folder_are_told_apart(tmp_path):
    root = tmp_path / "shards"
    for name, first, count in (("im1k-train", 0, 3), ("im1k-val", 9, 2)):
        for i in range(count):
            members = [(f"{first + i}.jpg", JPEG), (f"{first + i}.cls", str(i % 2).encode())]
            shard(root / f"{name}-{i:03d}.tar", members)
    with pytest.raises(UserError, match=r"shards of 2 sets") as caught:
        open_index(root)
    advised = str(caught.value).partition("by its pattern, ")[2].partition(",")[0]
    for pattern, count in (
        (advised, 3),
        (root / "im1k-train-{000..002}.tar", 3),
        (root / "im1k-{train,val}-000.tar", 2),
        (root / "im1k-val-*.tar", 2),
        (root / "im1k-val-001.tar", 1),
        (root / "**.tar", 5),
    ):
        for _ in range(2):  # built, loaded
            index = open_index(pattern)
            assert len(index) == count
        assert str(index.origin) == str(pattern)
    with pytest.raises(UserError, match=r"train-003\.tar does not exist, but .* names it"):
        open_index(root / "im1k-train-{000..003}.tar")
    both = datasets(2, train=root / "im1k-train-*.tar", val=root / "im1k-val-*.tar")
    assert (len(both.train), len(both.val)) == (3, 2)
    with pytest.raises(UserError, match="share 1 shard"):
        datasets(2, train=root / "im1k-train-*.tar", val=root / "im1k-train-00[1].tar")


def test_braces():
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
    assert expand_braces("{x}") == ["{x}"]
    for pattern in ("{0..99999999}", "{0..9999}{0..9999}"):
        with pytest.raises(UserError, match="stands for over 1,000,000 shards"):
            expand_braces(pattern)

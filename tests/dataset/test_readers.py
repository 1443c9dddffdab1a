"""Random trees and shards are read as torchvision, timm and webdataset read them, or refused."""

import collections
import io
import itertools
import os
import re
import tarfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dali_rsb.dataset import Reading, folder, open_index
from dali_rsb.dataset.image_names import is_image_name
from dali_rsb.errors import UserError

# To look longer: DALI_RSB_EXAMPLES=2000 pytest tests/dataset/test_readers.py
EXAMPLES = int(os.environ.get("DALI_RSB_EXAMPLES", "40"))
SLOW_SETUP = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()
PIECES = ["a", "A", "B", "b", "10", "2", "02", "é", "\udcff", " ", "-", "x.y", "_", "images", "\n"]
WORDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=2).map("".join)
ANY_BYTES = st.binary(min_size=1, max_size=12).map(
    lambda name: os.fsdecode(name.translate(None, b"/\0") or b"x")
)
NAMES = st.one_of(WORDS, WORDS, ANY_BYTES).filter(lambda name: name.strip(".") != "")
CLASSES = st.one_of(NAMES, NAMES, NAMES.map(lambda name: f".{name}"))
FOLDERS = st.lists(CLASSES, min_size=1, max_size=3).map("/".join)
ENDINGS = st.sampled_from([".jpg", ".JPG", ".png", ".jpeg", ".txt", ""])
FILES = st.builds("".join, st.tuples(st.sampled_from(["", "", "."]), NAMES, ENDINGS))
ARE_READABLE = st.sampled_from([True, True, True, False])
TREES = st.dictionaries(
    FOLDERS, st.dictionaries(FILES, ARE_READABLE, max_size=4), min_size=1, max_size=5
)
LINKS = st.lists(st.tuples(CLASSES, FOLDERS), max_size=2)
FILE_LINKS = st.lists(st.tuples(FOLDERS, FILES, st.integers(0, 9)), max_size=2)


def write_tree(root, tree, links=(), file_links=()):
    """The tree, with links to folders and files; what stands in another's way is left out."""
    root.mkdir(parents=True)
    written = []
    for path, files in tree.items():
        try:
            (root / path).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):  # a file of this name
            continue
        for name, readable in files.items():
            if not os.path.lexists(root / path / name):
                (root / path / name).write_bytes(JPEG if readable else b"<html>")
                written.append(root / path / name)
    for name, target in links:
        if not os.path.lexists(root / name) and (root / target).is_dir():
            (root / name).symlink_to(root / target)
    for path, name, number in file_links:
        link = root / path / name
        if link.parent.is_dir() and not os.path.lexists(link):
            link.symlink_to(written[number] if number < len(written) else "nowhere")


def read(root, reading):
    """Paths, labels, classes and what is left out, and None; or None and the refusal."""
    try:
        index = open_index(root, root.parent / "cache", 1, progress=False, reading=reading)
    except UserError as error:
        return None, str(error)
    paths = [index.name(i) for i in range(len(index))]
    pairs = list(zip(paths, index.labels.tolist(), strict=True))
    return (pairs, index.classes, index.left_out), None


def is_hidden(root, path):
    """Whether an image lies in a hidden folder."""
    return any(part.startswith(".") for part in Path(path).relative_to(root).parent.parts)


def is_readable(path):
    try:
        return Path(path).read_bytes() == JPEG
    except OSError:
        return False


def key(name):
    """A member's name without its last suffix."""
    return name.rpartition(".")[0]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Gives a new path for each example, in a tree that no one else writes into."""
    monkeypatch.setattr(folder, "_MTIME_TICK_S", 0)
    monkeypatch.setattr(folder, "_NUM_THREADS", 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    count = iter(range(10**6))
    return lambda: tmp_path / str(next(count)) / "data"


def reasons_of(root, samples, classes):
    """Why a tree that ImageFolder reads may be refused, as patterns of our line."""
    reasons = []
    if any(is_image_name(path.name) for path in root.iterdir()):
        reasons.append("images lie directly in")
    if any(is_hidden(root, path) for path, _ in samples):
        reasons.append(r"the hidden folder .* holds images")
    if not any(is_readable(path) for path, _ in samples):
        reasons.append(r"image files in .* can be read")
    if list(classes) == ["images"]:
        reasons.append("looks like no class")
    visible = {classes[label] for path, label in samples if not is_hidden(root, path)}
    if set(classes) - visible:  # of hidden images alone
        reasons.append("without images|no images|no class folders")
    return reasons


@SLOW_SETUP
@given(TREES, LINKS, FILE_LINKS)
def test_trees_are_read_as_by_image_folder(fresh, tree, links, file_links):
    torchvisions = pytest.importorskip("torchvision.datasets.folder")
    root = fresh()
    write_tree(root, tree, links, file_links)
    ours, refusal = read(root, Reading(class_level="top"))
    try:
        theirs = torchvisions.ImageFolder(root)
    except FileNotFoundError:
        # A class without images: refused by both, but that a hidden folder without is no class.
        hidden = any(path.name.startswith(".") for path in root.iterdir())
        assert refusal is not None or hidden
        return
    samples = theirs.samples
    if refusal is not None:
        reasons = reasons_of(root, samples, theirs.classes)
        assert any(re.search(reason, refusal) for reason in reasons), (refusal, reasons)
        return
    readable = [pair for pair in samples if is_readable(pair[0])]
    assert ours[1] == tuple(theirs.classes)
    assert ours[0] == readable
    lost = ours[2].get("cannot be read", 0) + ours[2].get("missing", 0)
    assert lost == len(samples) - len(readable)


@SLOW_SETUP
@given(TREES, LINKS, FILE_LINKS)
def test_trees_are_read_as_by_timm(fresh, tree, links, file_links):
    reader = pytest.importorskip("timm.data.readers.reader_image_folder")
    root = fresh()
    write_tree(root, tree, links, file_links)
    ours, refusal = read(root, Reading(class_order="natural", class_level="leaf"))
    theirs, class_to_idx = reader.find_images_and_targets(str(root))
    name_of = {label: name for name, label in class_to_idx.items()}
    in_folders = [(path, label) for path, label in theirs if Path(path).parent != root]
    if refusal is not None:
        names = {name_of[label] for _, label in in_folders}
        reasons = [
            "without images|no class folders|no images|looks like no class|images lie directly in"
        ]
        if any(is_hidden(root, path) for path, _ in in_folders):
            reasons.append(r"the hidden folder .* holds images")
        if not any(is_readable(path) for path, _ in in_folders):
            reasons.append(r"image files in .* can be read")
        if len(names) == 1:
            reasons.append("lie in folders named")
        assert any(re.search(reason, refusal) for reason in reasons), refusal
        return
    # Whatever the order: the class of each image.
    expected = {path: name_of[label] for path, label in in_folders if is_readable(path)}
    assert {path: ours[1][label] for path, label in ours[0]} == expected
    names = {name_of[label] for _, label in theirs}
    if len({name.lower() for name in names}) < len(names) or names != set(ours[1]):
        return  # timm leaves the order of a and A to chance
    assert dict(zip(ours[1], range(len(ours[1])), strict=True)) == class_to_idx
    order = [path for path, _ in in_folders if is_readable(path)]
    if len({path.lower() for path in order}) == len(order):
        assert [path for path, _ in ours[0]] == order


@SLOW_SETUP
@given(TREES, FILE_LINKS)
def test_every_entry_is_used_or_counted(fresh, tree, file_links):
    root = fresh()
    write_tree(root, tree, (), file_links)
    ours, refusal = read(root, Reading(class_level="top"))
    if refusal is not None:
        return
    entries = 0
    for _, folders, files in os.walk(root):
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        entries += len(files) + len(hidden)
    assert len(ours[0]) + sum(ours[2].values()) == entries
    images = collections.Counter(path for path, _ in ours[0])
    assert max(images.values()) == 1


def test_nested_trees_without_a_level_are_refused_by_a_line_that_works(fresh):
    root = fresh()
    write_tree(root, {f"n{i}/images": {"1.jpg": True, "2.jpg": True} for i in range(3)})
    ours, refusal = read(root, Reading())
    assert ours is None
    level = re.search(r"class_level .* to (\w+) for 3 classes \(n0, n1", refusal)[1]
    ours, _ = read(root, Reading(class_level=level))
    assert ours[1] == ("n0", "n1", "n2")
    assert [label for _, label in ours[0]] == [0, 0, 1, 1, 2, 2]


# Shards

KEYS = st.lists(st.sampled_from(["a", "b", "v1", "é", "0"]), min_size=1, max_size=2).map("".join)
DOTTED = st.tuples(KEYS, KEYS).map(".".join)
PATHS = st.one_of(KEYS, DOTTED, st.tuples(KEYS, st.one_of(KEYS, DOTTED)).map("/".join))
SUFFIXES = st.lists(
    st.sampled_from(["jpg", "png", "cls", "txt", "seg.png"]), min_size=1, max_size=3, unique=True
)


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def content(suffix, label):
    return str(label).encode() if suffix == "cls" else JPEG


@SLOW_SETUP
@given(st.lists(st.tuples(PATHS, SUFFIXES, st.integers(0, 12)), min_size=1, max_size=5))
def test_shards_are_read_as_by_webdataset(fresh, samples):
    webdataset = pytest.importorskip("webdataset")
    root = fresh()
    members = [
        (f"{stem}.{suffix}", content(suffix, label))
        for stem, suffixes, label in samples
        for suffix in suffixes
    ]
    write_shard(root / "s-0.tar", members)
    ours, refusal = read(root, Reading())
    names = [name for name, _ in members]
    if refusal is not None:
        images = [name for name in names if name.endswith((".jpg", ".png"))]
        stems = {key(name) for name in names if name.endswith(".cls")}
        is_sound = (
            len(set(names)) == len(names) and images and all(key(name) in stems for name in images)
        )
        assert not is_sound or "two images" in refusal, refusal
        return
    if any("." in key(Path(name).name) for name in names):
        return  # webdataset has other keys for these: see test_names_with_dots_are_paired
    groups = [name for name, _ in itertools.groupby(map(key, names))]
    if len(set(groups)) < len(groups) or len(set(names)) < len(names):
        return  # it makes two samples of a key that comes again, and refuses any name that does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = list(webdataset.WebDataset(str(root / "s-0.tar"), shardshuffle=False))
    expected = {
        (sample["__key__"], int(sample["cls"]))
        for sample in theirs
        if "cls" in sample and ("jpg" in sample or "png" in sample)
    }
    found = {(key(path.partition(".tar:")[2]), label) for path, label in ours[0]}
    assert found == expected

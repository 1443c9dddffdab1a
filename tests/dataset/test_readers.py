"""Random trees and shards are read as torchvision, timm and webdataset read them, or refused."""

import io
import os
import re
import tarfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dali_rsb.dataset import Reading, open_index
from dali_rsb.errors import UserError

SLOW_SETUP = settings(max_examples=25, suppress_health_check=list(HealthCheck))


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()
PIECES = ["a", "B", "b", "10", "2", "é", "\udcff", " ", "-", "x.y", "_", "images"]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=2).map("".join)
CLASSES = st.one_of(NAMES, NAMES.map(lambda name: f".{name}"))
FOLDERS = st.one_of(CLASSES, st.tuples(CLASSES, NAMES).map("/".join))
FILES = st.builds(
    "".join,
    st.tuples(st.sampled_from(["", "."]), NAMES, st.sampled_from([".jpg", ".JPG", ".png", ".txt"])),
)
TREES = st.dictionaries(FOLDERS, st.lists(FILES, max_size=4, unique=True), min_size=1, max_size=5)
LINKS = st.lists(st.tuples(NAMES, FOLDERS), max_size=2)


def write_tree(root, tree, links):
    """The tree, with links to folders; entries that stand in each other's way are left out."""
    root.mkdir()
    for folder, files in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in files:
            if not (root / folder / name).is_dir():
                (root / folder / name).write_bytes(JPEG)
    for name, target in links:
        if not os.path.lexists(root / name) and (root / target).is_dir():
            (root / name).symlink_to(root / target)


def read(root, reading):
    """Paths, labels and classes of ours, and None; or None and the refusal."""
    try:
        index = open_index(root, root.parent / "cache", progress=False, reading=reading)
    except UserError as error:
        return None, str(error)
    paths = [index.name(i) for i in range(len(index))]
    return (list(zip(paths, index.labels.tolist(), strict=True)), index.classes), None


def is_visible(root, path):
    return not any(part.startswith(".") for part in Path(path).relative_to(root).parts)


def key(name):
    """A member's name without its last suffix."""
    return name.rpartition(".")[0]


@pytest.fixture
def fresh(tmp_path):
    """Makes a new folder for each example."""
    count = iter(range(10**6))
    return lambda: tmp_path / str(next(count)) / "data"


@SLOW_SETUP
@given(TREES, LINKS)
def test_trees_are_read_as_by_image_folder(fresh, tree, links):
    folder = pytest.importorskip("torchvision.datasets.folder")
    root = fresh()
    root.parent.mkdir()
    write_tree(root, tree, links)
    ours, refusal = read(root, Reading(class_level="top"))
    try:
        theirs = folder.ImageFolder(root)
    except FileNotFoundError:
        # A class without images: refused by both, but that a hidden folder without is no class.
        assert refusal is not None or all(is_visible(root, path) for path, _ in ours[0])
        return
    if refusal is not None:
        hidden = [name for name in theirs.classes if name.startswith(".")]
        lost = {path.split("/")[-2] for path, _ in theirs.samples if not is_visible(root, path)}
        single = set(theirs.classes) <= {"images"}
        assert hidden or single or "without images" in refusal or lost, refusal
        return
    assert ours[1] == tuple(theirs.classes)
    assert ours[0] == [pair for pair in theirs.samples if is_visible(root, pair[0])]


@SLOW_SETUP
@given(TREES, LINKS)
def test_trees_are_read_as_by_timm(fresh, tree, links):
    reader = pytest.importorskip("timm.data.readers.reader_image_folder")
    root = fresh()
    root.parent.mkdir()
    write_tree(root, tree, links)
    ours, refusal = read(root, Reading(class_order="natural", class_level="leaf"))
    theirs, class_to_idx = reader.find_images_and_targets(str(root))
    hidden = [path for path, _ in theirs if not is_visible(root, path)]
    names = {Path(path).parent.name for path, _ in theirs}
    if refusal is not None:
        reasons = "without images|no images|hidden|looks like no class|no class folders"
        assert re.search(reasons, refusal), refusal
        return
    if hidden or len({name.lower() for name in names}) < len(names):
        return  # it takes hidden ones for classes, and leaves the order of a and A to chance
    same_to_timm = [(path.lower(), label) for path, label in theirs]
    assert sorted((path.lower(), label) for path, label in ours[0]) == sorted(same_to_timm)
    assert dict(zip(ours[1], range(len(ours[1])), strict=True)) == class_to_idx


def test_nested_trees_without_a_level_are_refused_by_a_line_that_works(fresh):
    root = fresh()
    root.parent.mkdir()
    write_tree(root, {f"n{i}/images": ["1.jpg", "2.jpg"] for i in range(3)}, [])
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

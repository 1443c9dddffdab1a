"""The dataset index: timm's order, header reading, the stored index and when it is built again."""

import concurrent.futures
import dataclasses
import io
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from dali_rsb.dataset import (
    DatasetIndex,
    ImageFormat,
    Reading,
    folder,
    image_header,
    index_samples,
    storage,
)
from dali_rsb.dataset import open_index as open_any_index
from dali_rsb.dataset.file_store import FileStore
from dali_rsb.dataset.folder import FolderStore
from dali_rsb.dataset.image_header import read_header, read_header_of_bytes
from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.dataset.store import Keys
from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_directory

TIMM = Reading(class_order="natural", class_level="leaf")
ARRAYS = ("labels", "widths", "heights", "formats")


def encode(width=20, height=10, kind="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind, **options)
    return file.getvalue()


JPEG_BYTES = encode()


def open_index(root, *args, reading=TIMM, **kwargs):
    """Folders that are nested, in timm's order, unless a test asks for another reading."""
    return open_any_index(root, *args, reading=reading, **kwargs)


def place_beside(root):
    return storage.place_beside(root, TIMM)


def write_tree(root, names, data=JPEG_BYTES):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def small(tmp_path):
    return write_tree(tmp_path / "data", ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/deep/1.jpg"])


@pytest.fixture
def num_builds(caplog):
    caplog.set_level(logging.INFO)
    return lambda: sum("indexed" in record.message for record in caplog.records)


def relative_paths(found):
    return [str(found.path(i).relative_to(found.root)) for i in range(len(found))]


def arrays(index):
    keys = index.store.keys
    return [*(getattr(index, name) for name in ARRAYS), keys.data, keys.offsets]


def assert_equal(found, expected):
    assert found.classes == expected.classes
    for ours, theirs in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Order and classes


def test_order_and_labels_equal_timm(tmp_path):
    timm_data = pytest.importorskip("timm.data")
    names = [
        *(f"n{number}/x_{image}.JPEG" for number in (1, 2, 10, 100) for image in (9, 10, 1, 100)),
        *("A/Z2.jpg", "A/a10.jpg", "A/z1.png", "b/B.jpeg", "b/a.jpg", "a1b2/1.jpg", "a1b10/01.png"),
        *("B 1/x.jpg", "b1/x y.jpg", "b02/x.jpg", "deep/n3/img/1.jpg", "deep/n3/2.jpg"),
        *("zz/n2/other.jpg", "Ünï/é.jpg", "007/1.jpg", "9/00.jpg", "n-1/1.jpg", "n_1/1.jpg"),
    ]
    root = write_tree(tmp_path / "data", names)
    (root / "A" / "notes.txt").write_text("no image")
    (root / "A" / "jpg").write_text("no image")
    dataset = timm_data.create_dataset("", root=str(root))

    found = open_index(root)

    assert relative_paths(found) == dataset.filenames()
    assert [name.encode() for name in dataset.filenames(absolute=True)] == [
        array.tobytes() for array in found.image_arrays(np.arange(len(found)))
    ]
    assert found.labels.tolist() == [target for _, target in dataset.reader.samples]
    assert {name: label for label, name in enumerate(found.classes)} == (
        dataset.reader.class_to_idx
    )


@given(st.lists(st.text("aAbB019é-_ .", min_size=1, max_size=8), unique=True))
def test_natural_sort_equals_timm(names):
    natural_key = pytest.importorskip("timm.utils.misc").natural_key
    assert natural_sorted(names) == sorted(sorted(names), key=natural_key)


def test_same_class_name_in_two_folders_is_one_class_with_a_warning(tmp_path, caplog):
    root = write_tree(tmp_path / "data", ["train/cat/1.jpg", "val/cat/2.jpg", "val/dog/3.jpg"])
    found = open_index(root)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert "train/cat and val/cat" in caplog.text


def test_hidden_files_are_images_like_others_and_extensions_ignore_case(tmp_path):
    names = ["a/1.JPG", "a/2.Tif", "a/.3.jpg", ".cache/4.npy", "a/.git/5.npy", "a/6.npy", ".7.jpg"]
    root = write_tree(tmp_path / "data", names)
    assert open_index(root).left_out == {"hidden": 3, ".npy": 1}
    assert relative_paths(open_index(root)) == [
        "a/1.JPG",
        "a/2.Tif",
        "a/.3.jpg",
    ]


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path):
    elsewhere = write_tree(tmp_path / "elsewhere", ["1.jpg"])
    root = write_tree(tmp_path / "data", ["a/1.jpg"])
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "2.jpg").symlink_to(elsewhere / "1.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "itself").symlink_to("itself")
    assert relative_paths(open_index(root)) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]


def test_names_that_are_not_utf8(tmp_path):
    root = write_tree(tmp_path / "data", ["a/1.jpg"])
    name = os.fsencode(root) + b"/a/\xff\xfe.jpg"
    Path(os.fsdecode(name)).write_bytes(JPEG_BYTES)
    for _ in range(2):  # built, then loaded
        found = open_index(root)
        assert found.image_arrays(np.array([1]))[0].tobytes() == name
        assert found.path(1).read_bytes() == JPEG_BYTES


@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1), max_size=5
    )
)
@settings(max_examples=50, deadline=None)
def test_paths_come_back(names):
    encoded = [name.encode() for name in names]
    found = DatasetIndex(
        classes=("a",),
        labels=np.zeros(len(names), np.int64),
        widths=np.ones(len(names), np.int32),
        heights=np.ones(len(names), np.int32),
        formats=np.zeros(len(names), np.uint8),
        store=FileStore(Path("/some/root"), Keys.of(names)),
    )
    assert len(found) == len(found.store) == len(names)
    assert found.store.keys.all() == encoded
    for i, name in enumerate(names):
        assert found.path(i) == Path("/some/root") / name
        assert found.image_arrays(np.array([i]))[0].tobytes() == b"/some/root/" + encoded[i]


def test_dali_reads_the_paths(small):
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def

    (small / "b" / "1.jpg").write_bytes(encode(33, 44))
    found = open_index(small)

    @pipeline_def(batch_size=2, num_threads=1, device_id=None)
    def read():
        return fn.io.file.read(fn.external_source(name="path", ndim=1))

    pipeline = read()
    pipeline.build()
    pipeline.feed_input("path", found.image_arrays(np.array([2, 0])))
    (files,) = pipeline.run()
    assert [np.asarray(files.at(i)).tobytes() for i in range(2)] == [encode(33, 44), JPEG_BYTES]


# Image headers


FILES = {
    "baseline.jpg": (encode(31, 17), ImageFormat.JPEG),
    "grey.jpg": (encode(31, 17, mode="L"), ImageFormat.JPEG),
    "cmyk.jpg": (encode(31, 17, mode="CMYK"), ImageFormat.OTHER),
    "progressive.jpg": (encode(31, 17, progressive=True), ImageFormat.JPEG),
    "restart.jpg": (encode(31, 17, restart_marker_blocks=1), ImageFormat.JPEG),
    "profile.jpg": (encode(31, 17, icc_profile=b"\xff\xc0" * 50_000), ImageFormat.JPEG),
    "comment.jpg": (encode(31, 17, comment=b"\xff\xc2\0\x0b\x08\0\1\0\1"), ImageFormat.JPEG),
    "1.png": (encode(31, 17, "PNG"), ImageFormat.PNG),
    "1.webp": (encode(31, 17, "WEBP"), ImageFormat.WEBP),
    "1.bmp": (encode(31, 17, "BMP"), ImageFormat.BMP),
    "1.tif": (encode(31, 17, "TIFF"), ImageFormat.TIFF),
    "rotated.tif": (encode(17, 31, "TIFF", tiffinfo={274: 6}), ImageFormat.OTHER),
    "1.gif": (encode(31, 17, "GIF"), ImageFormat.GIF),
    "1.ppm": (encode(31, 17, "PPM"), ImageFormat.PNM),
    "1.pgm": (encode(31, 17, "PPM", "L"), ImageFormat.PNM),
    "other.jpg": (encode(31, 17, "TGA"), ImageFormat.OTHER),
    "png_named.jpg": (encode(31, 17, "PNG"), ImageFormat.PNG),
    "jpeg_named.png": (encode(31, 17), ImageFormat.JPEG),
}


def test_formats_have_the_numbers_that_stored_indices_hold():
    names = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PNM", "OTHER", "UNREADABLE"]
    assert [(one.value, one.name) for one in ImageFormat] == [*enumerate(names)]


@pytest.mark.parametrize("name", FILES)
def test_header_of_each_format(tmp_path, name):
    data, image_format = FILES[name]
    (tmp_path / name).write_bytes(data)
    assert read_header(tmp_path / name) == (31, 17, image_format)


def segment(marker, payload):
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def with_exif_thumbnail(data):
    """Orientation 6 and a thumbnail JPEG of another size in an EXIF segment before the frame."""
    thumbnail = encode(160, 120)
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = exif.tobytes() + thumbnail
    return data[:2] + segment(0xE1, payload + bytes(9000)) + data[2:]


def test_jpeg_exif_thumbnail_and_rotation_do_not_count(tmp_path, without_pillow):
    path = tmp_path / "1.jpg"
    path.write_bytes(with_exif_thumbnail(encode(31, 17)))
    assert read_header(path) == (31, 17, ImageFormat.JPEG)


@pytest.fixture
def without_pillow(monkeypatch):
    def fail(path):
        raise AssertionError("Pillow was asked for a plain JPEG")

    monkeypatch.setattr(image_header, "_read_with_pillow", fail)


@pytest.mark.parametrize("length", [0, *range(4050, 4105), 8180, 65533])
def test_jpeg_frame_at_the_end_of_what_was_read(tmp_path, without_pillow, length):
    data = encode(31, 17)
    path = tmp_path / "1.jpg"
    path.write_bytes(data[:2] + segment(0xEF, bytes(length)) + data[2:])
    assert read_header(path) == (31, 17, ImageFormat.JPEG)


jpeg_fillings = st.lists(
    st.one_of(
        st.binary(max_size=5000).map(lambda payload: segment(0xE7, payload)),
        st.binary(max_size=50).map(lambda payload: segment(0xFE, payload)),
        st.integers(1, 5).map(lambda count: b"\xff" * count),  # fill bytes before a marker
    ),
    max_size=5,
).map(b"".join)


@given(st.integers(1, 70), st.integers(1, 70), st.booleans(), jpeg_fillings)
@settings(max_examples=100, deadline=None)
def test_jpeg_with_segments_and_fill_bytes_equals_pillow(
    tmp_path_factory, width, height, progressive, filling
):
    data = encode(width, height, progressive=progressive)
    data = data[:2] + filling + data[2:]
    path = tmp_path_factory.getbasetemp() / "segments.jpg"
    path.write_bytes(data)
    size = image_header._jpeg_size(lambda n, start: data[start : start + n], len(data))
    assert size == (width, height)
    assert read_header(path) == (width, height, ImageFormat.JPEG)
    assert read_header_of_bytes(np.frombuffer(data, np.uint8)) == read_header(path)
    with Image.open(path) as image:
        assert image.size == (width, height)


@pytest.mark.parametrize("marker", [0xC4, 0xCC])
def test_jpeg_tables_before_the_frame_are_no_frame(tmp_path, without_pillow, marker):
    """DHT and DAC have markers amid those of the frames."""
    data = encode(31, 17)
    (tmp_path / "1.jpg").write_bytes(data[:2] + segment(marker, bytes(range(1, 30))) + data[2:])
    assert read_header(tmp_path / "1.jpg") == (31, 17, ImageFormat.JPEG)


def test_jpeg_with_garbage_before_the_frame(tmp_path):
    data = encode(31, 17)
    frame = data.index(b"\xff\xdb")
    path = tmp_path / "1.jpg"
    path.write_bytes(data[:frame] + b"garbage" + data[frame:])
    assert read_header(path) == (31, 17, ImageFormat.OTHER)  # Pillow decodes it, as it forgives


def _with_frame(change):
    data = bytearray(encode(31, 17))
    change(data, data.index(b"\xff\xc0"))
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        _with_frame(lambda data, at: data.__setitem__(at + 4, 12)),  # bits of a level
        _with_frame(lambda data, at: data.__setitem__(at + 4, 0xCB)),
        _with_frame(lambda data, at: data.__setitem__(at + 9, 2)),  # components
        _with_frame(lambda data, at: data.__setitem__(at + 1, 0xC3)),  # lossless
        _with_frame(lambda data, at: data.__setitem__(slice(at, at), data[at : at + 19])),  # two
    ],
)
def test_jpeg_that_dali_might_refuse_is_not_given_to_it(data):
    assert read_header_of_bytes(np.frombuffer(data, np.uint8))[2] in (
        ImageFormat.OTHER,
        ImageFormat.UNREADABLE,
    )


def test_bmp_with_a_palette_is_not_given_to_dali():
    data = encode(31, 17, "BMP", "P")
    assert read_header_of_bytes(np.frombuffer(data, np.uint8)) == (31, 17, ImageFormat.OTHER)


def test_jpeg_cut_short(tmp_path):
    data = encode(31, 17)
    scan = data.index(b"\xff\xda")
    end_of_header = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    path = tmp_path / "1.jpg"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        # DALI would decode windows before the cut; Pillow says whether it takes such a file.
        expected = (31, 17, ImageFormat.OTHER)
        if length < end_of_header:
            expected = (0, 0, ImageFormat.UNREADABLE)
        assert read_header(path) == expected
        assert read_header_of_bytes(np.frombuffer(data[:length], np.uint8)) == expected


@pytest.mark.parametrize("size", [(31, 17), (300, 200)])  # of less and of more than one read
@pytest.mark.parametrize("trailer", [0, 1, 2000, 4094])
def test_bytes_behind_a_jpeg_are_no_cut(tmp_path, size, trailer):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    data = buffer.getvalue()
    path = tmp_path / "1.jpg"
    path.write_bytes(data + bytes(trailer))
    assert read_header(path) == (*size, ImageFormat.JPEG)
    path.write_bytes(data[:-2] + bytes(trailer))
    assert read_header(path) == (*size, ImageFormat.OTHER)
    # The end of a preview in the header is not that of the image.
    path.write_bytes(_with_preview(data)[:-2])
    assert read_header(path) == (*size, ImageFormat.OTHER)
    path.write_bytes(_with_preview(data))
    assert read_header(path) == (*size, ImageFormat.JPEG)


def _with_preview(data):
    """The JPEG with a whole one in a segment before its frame."""
    preview = encode(16, 16)
    return data[:2] + b"\xff\xe2" + (2 + len(preview)).to_bytes(2, "big") + preview + data[2:]


@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)))
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_never_raise(tmp_path_factory, name, changes):
    data = bytearray(FILES[name][0])
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    path.write_bytes(data)
    width, height, image_format = read_header(path)
    assert (width > 0 and height > 0) == (image_format != ImageFormat.UNREADABLE)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"<html>not found</html>"])
def test_files_that_are_no_images(tmp_path, data):
    (tmp_path / "1.jpg").write_bytes(data)
    assert read_header(tmp_path / "1.jpg") == (0, 0, ImageFormat.UNREADABLE)


def test_missing_file_and_frame_without_height(tmp_path):
    assert read_header(tmp_path / "none.jpg") == (0, 0, ImageFormat.UNREADABLE)
    data = bytearray(encode(31, 17))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = b"\0\0"
    (tmp_path / "1.jpg").write_bytes(data)
    assert read_header(tmp_path / "1.jpg") == (0, 0, ImageFormat.UNREADABLE)


def test_real_images_equal_pillow_on_size(tmp_path):
    random = np.random.default_rng(0)
    expected = []
    for i in range(200):
        width, height = random.integers(1, 80, 2).tolist()
        name = f"{'ab'[i % 2]}/{i:03d}.jpg"
        write_tree(tmp_path, [name], encode(width, height, mode="L"))
        expected.append((name, width, height))
    found = open_index(tmp_path)
    rows = zip(relative_paths(found), found.widths.tolist(), found.heights.tolist(), strict=True)
    assert list(rows) == sorted(expected)
    assert (found.formats == ImageFormat.JPEG).all()


# What is left out, and user errors


def test_unreadable_files_are_left_out_with_one_warning(small, caplog):
    bad = ["a/bad.jpg", "b/empty.png", "c/deep/link.jpg"]
    write_tree(small, bad[:1], b"<html>")
    write_tree(small, bad[1:2], b"")
    (small / bad[2]).symlink_to("nowhere.jpg")
    caplog.set_level(logging.INFO)
    for built in (True, False):
        caplog.clear()
        found = open_index(small)
        assert ("indexed 4 images" in caplog.text) == built
        assert relative_paths(found) == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/deep/1.jpg"]
        (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert "3 image files" in warning
        listed_in = Path(warning.rpartition(" ")[2])
        assert listed_in.read_text().splitlines() == bad


def test_repaired_file_is_noticed_although_its_folder_has_not_changed(small):
    bad = small / "a" / "1.jpg"
    bad.write_bytes(b"<html>")
    assert len(open_index(small)) == 3
    with bad.open("r+b") as file:
        file.write(JPEG_BYTES)
    assert len(open_index(small)) == 4


def test_class_keeps_its_label_when_all_its_files_are_unreadable(small):
    write_tree(small, ["b/1.jpg"], b"bad")
    found = open_index(small)
    assert found.classes == ("a", "b", "deep")
    assert found.labels.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class folders"),
        (["1.jpg", "2.jpg", "a/3.jpg"], "2 images lie directly in"),
        (["a/notes.txt", "b/c/x.npy"], "no images"),
        (
            ["a/1.jpg", "e10/x.txt", "e2/x.txt", "f/y/x.txt", "g/.hidden.txt"],
            "4 class folders without images in .*: e2, e10, g, ...; ",
        ),
    ],
)
def test_wrong_layouts(tmp_path, names, message):
    root = tmp_path / "data"
    root.mkdir()
    write_tree(root, names)
    with pytest.raises(UserError, match=message) as caught:
        open_index(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)
    assert not (place_beside(root)).exists()


def test_root_missing_or_no_folder_or_all_unreadable(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_index(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match="file is empty; a list of images has PATH, a tab and LABEL"
    ):
        open_index(tmp_path / "file")
    root = write_tree(tmp_path / "data", ["a/1.jpg", "b/2.jpg"], b"bad")
    with pytest.raises(UserError, match=r"none of the 2 image files .* a/1\.jpg"):
        open_index(root)


# The stored index


def test_stored_index_is_loaded_memory_mapped_and_equal(small, num_builds):
    built = open_index(small)
    loaded = open_index(small)
    assert num_builds() == 1
    assert_equal(loaded, built)
    assert loaded.root == built.root == small
    assert loaded.num_classes == 3
    dtypes = [str(array.dtype) for array in arrays(loaded)]
    assert dtypes == ["int64", "int32", "int32", "uint8", "uint8", "int64"]
    assert all(isinstance(array.base, np.memmap) for array in arrays(loaded))
    assert [path for path in small.parent.iterdir() if path.name.startswith(".")] == [
        place_beside(small)
    ]


def replace_in_place(path):
    path.with_suffix(".new").write_bytes(encode(7, 7))
    path.with_suffix(".new").rename(path)


CHANGES = {
    "add a file": lambda root: write_tree(root, ["a/3.jpg"]),
    "remove a file": lambda root: (root / "a/2.jpg").unlink(),
    "rename a file": lambda root: (root / "a/2.jpg").rename(root / "a/0.jpg"),
    "replace a file by renaming": lambda root: replace_in_place(root / "a/2.jpg"),
    "add a nested file": lambda root: write_tree(root, ["c/deep/2.jpg"]),
    "add a class folder": lambda root: write_tree(root, ["d/1.jpg"]),
    "add a nested class folder": lambda root: write_tree(root, ["c/x/1.jpg"]),
    "remove a class folder": lambda root: [(root / "b/1.jpg").unlink(), (root / "b").rmdir()],
    "rename a class folder": lambda root: (root / "b").rename(root / "z"),
    "rename a nested class folder": lambda root: (root / "c/deep").rename(root / "c/low"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(small, num_builds, caplog, change):
    open_index(small)
    open_index(small)
    assert num_builds() == 1
    CHANGES[change](small)
    found = open_index(small)
    assert num_builds() == 2
    assert "built again: " in caplog.text
    open_index(small)
    assert num_builds() == 2
    assert_equal(found, open_index(small, cache_dir=small.parent / "cache"))


def test_listing_waits_until_a_change_would_show(small, monkeypatch):
    """A folder changed less than a clock tick ago is listed after that tick."""
    path = small / "a"
    changed_s = path.stat().st_mtime
    monkeypatch.setattr(folder.time, "time", lambda: changed_s + 0.001)
    monkeypatch.setattr(folder.time, "sleep", lambda duration_s: write_tree(small, ["a/late.jpg"]))
    listed = folder._visit(path, frozenset())
    assert "late.jpg" in listed.images
    assert listed.mtime_ns == path.stat().st_mtime_ns

    monkeypatch.setattr(folder.time, "time", lambda: changed_s + 10)
    monkeypatch.setattr(folder.time, "sleep", lambda duration_s: pytest.fail("waited for nothing"))
    folder._visit(path, frozenset())


def test_image_added_to_the_root_is_noticed(small):
    open_index(small)
    write_tree(small, ["stray.jpg"])
    with pytest.raises(UserError, match="1 images lie directly in"):
        open_index(small)


@pytest.mark.parametrize("name", ["meta.json", "labels.npy", "path_offsets.npy"])
@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_damaged_index_is_built_again(small, num_builds, name, damage):
    built = open_index(small)
    path = place_beside(small) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    assert_equal(open_index(small), built)
    assert num_builds() == 2
    assert_equal(open_index(small), built)
    assert num_builds() == 2


def test_index_of_another_version_is_built_again(small, num_builds, monkeypatch, caplog):
    open_index(small)
    monkeypatch.setattr(storage, "FORMAT_VERSION", storage.FORMAT_VERSION + 1)
    open_index(small)
    assert num_builds() == 2
    new = storage.FORMAT_VERSION
    assert f"it has format {new - 1}, not {new}" in caplog.text


def test_moved_dataset_keeps_its_index(small, num_builds):
    open_index(small)
    moved = small.parent.rename(small.parent.with_name("moved")) / small.name
    found = open_index(moved)
    assert num_builds() == 1
    assert found.path(0) == moved / "a" / "1.jpg"


def test_one_cache_dir_serves_several_datasets(small, tmp_path, num_builds):
    other = write_tree(tmp_path / "x" / "data", ["q/1.jpg"])
    for _ in range(2):
        assert len(open_index(small, cache_dir=tmp_path / "cache")) == 4
        assert len(open_index(other, cache_dir=tmp_path / "cache")) == 1
    assert num_builds() == 2
    assert not (place_beside(small)).exists()


def make_read_only(monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and access(path, mode))


def test_index_of_a_read_only_root_lies_in_the_user_cache(small, tmp_path, num_builds, monkeypatch):
    make_read_only(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    open_index(small)
    open_index(small)
    assert num_builds() == 1
    assert not (place_beside(small)).exists()
    assert [path.name[:4] for path in (tmp_path / "home/cache/dali_rsb").iterdir()] == ["data"]


def test_index_in_a_read_only_root_is_used(small, tmp_path, num_builds, monkeypatch):
    open_index(small)
    make_read_only(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    open_index(small)
    assert num_builds() == 1
    assert not (tmp_path / "home").exists()


def test_without_a_place_to_store_it_the_index_still_opens(small, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = open_index(small, cache_dir=tmp_path / "file" / "cache")
    assert len(found) == 4
    assert "name a writable cache_dir" in caplog.text


def test_failed_writing_leaves_nothing_behind(small, monkeypatch):
    before = sorted(small.iterdir())

    def no_space(path, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_space)
    assert len(open_index(small)) == 4
    assert sorted(small.iterdir()) == before


def test_processes_that_open_at_the_same_time_build_once(tmp_path):
    root = write_tree(tmp_path / "data", [f"{c}/{i}.jpg" for c in "abcd" for i in range(100)])
    program = (
        "import logging, sys, pathlib; from dali_rsb.dataset import open_index;"
        "logging.basicConfig(level=logging.INFO); sys.stdin.readline();"
        "found = open_index(pathlib.Path(sys.argv[1]));"
        "print(len(found), int(found.labels.sum()), found.path(399).name)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(storage.__file__).parents[2],
        )
        for _ in range(3)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=240) for process in processes]
    assert [out for out, _ in answers] == ["400 600 99.jpg\n"] * 3
    assert sum(err.count("indexed 400 images") for _, err in answers) == 1


@pytest.mark.parametrize("meanwhile", ["moved away", "replaced"])
def test_target_that_another_process_changes_is_replaced(tmp_path, monkeypatch, meanwhile):
    """The other process acts right after the first attempt has found the target in the way."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "version").write_text("old")
    rename = Path.rename
    attempts = []

    def rename_among_others(self, destination):
        try:
            rename(self, destination)
        except OSError:
            attempts.append(self)
            if len(attempts) == 1:
                rename(target, tmp_path / "elsewhere")
                if meanwhile == "replaced":
                    target.mkdir()
                    (target / "version").write_text("theirs")
            raise

    monkeypatch.setattr(Path, "rename", rename_among_others)
    with atomic_directory(target) as directory:
        (directory / "version").write_text("new")
    assert (target / "version").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "target"]


def test_file_in_the_place_of_a_directory_is_an_error(tmp_path):
    target = tmp_path / "target"
    target.write_text("a file")
    with pytest.raises(NotADirectoryError), atomic_directory(target) as directory:
        (directory / "version").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_readers_never_see_a_mixture_while_the_index_is_replaced(tmp_path):
    """Two versions that differ in every array are stored in turn while others load."""
    root = write_tree(tmp_path / "data", ["a/1.jpg", "b/1.jpg"])
    found = open_index(root)
    first = dataclasses.replace(found, **{name: getattr(found, name).copy() for name in ARRAYS})
    second = dataclasses.replace(
        first, widths=first.widths + 1, heights=first.heights + 1, labels=1 - first.labels
    )
    listing = folder.list_images(root, TIMM)
    fingerprint = folder.FolderFingerprint(listing.root_entries, listing.directory_mtime_ns, {})
    place = place_beside(root)
    done = threading.Event()

    # One thread reads: CPython 3.11 may mix up two that parse the headers of arrays (`ast`).
    def load():
        num_loaded = 0
        while not done.is_set():
            loaded, _ = storage.load(place, root, TIMM)
            if loaded is not None:
                assert_equal(loaded, first if loaded.labels[0] == first.labels[0] else second)
                num_loaded += 1
        return num_loaded

    def store():
        for i in range(25):
            storage.write_with_fingerprint(place, (first, second)[i % 2], fingerprint, TIMM)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        reader = pool.submit(load)
        writers = [pool.submit(store) for _ in range(2)]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        assert reader.result() > 0
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == [
        place_beside(root)
    ]


def test_imagenet_sized_index_loads_fast(tmp_path):
    num_images, num_classes = 1_281_167, 1000
    root = tmp_path / "data"
    for label in range(num_classes):
        (root / f"n{label:08d}").mkdir(parents=True)
    labels = np.sort(np.arange(num_images) % num_classes)
    name_bytes = 29  # n01440764/n01440764_10026.JPEG, nearly
    made_up = DatasetIndex(
        classes=tuple(f"n{label:08d}" for label in range(num_classes)),
        labels=labels,
        widths=np.full(num_images, 500, np.int32),
        heights=np.full(num_images, 375, np.int32),
        formats=np.zeros(num_images, np.uint8),
        store=FolderStore(
            root,
            Keys(
                data=np.full(num_images * name_bytes, ord("x"), np.uint8),
                offsets=np.arange(num_images + 1, dtype=np.int64) * name_bytes,
            ),
        ),
        stamps=np.zeros((num_images, 2), np.int64),
    )
    mtimes = {name: (root / name).stat().st_mtime_ns for name in made_up.classes}
    storage.write_with_fingerprint(
        place_beside(root), made_up, folder.FolderFingerprint(list(mtimes), mtimes, {}), TIMM
    )

    start_s = time.perf_counter()
    loaded = open_index(root)
    open_s = time.perf_counter() - start_s
    assert len(loaded) == num_images
    assert open_s < 1

    indices = np.random.default_rng(0).integers(0, num_images, 20_000)
    start_s = time.perf_counter()
    paths = loaded.image_arrays(indices)
    per_path_s = (time.perf_counter() - start_s) / len(paths)
    assert per_path_s < 10e-6  # under 1 us on an idle machine


# Own lists of samples


def test_index_samples_keeps_order_labels_and_paths(tmp_path, monkeypatch):
    write_tree(tmp_path / "x", ["b/2.jpg"], encode(3, 4))
    write_tree(tmp_path / "y", ["1.png"], encode(5, 6, "PNG"))
    monkeypatch.chdir(tmp_path)
    samples = [("x/b/2.jpg", 7), (tmp_path / "y" / "1.png", 0), ("x/b/2.jpg", 1)]
    found = index_samples(samples)
    assert [found.path(i) for i in range(3)] == [tmp_path / path for path, _ in samples]
    assert found.labels.tolist() == [7, 0, 1]
    assert found.widths.tolist() == [3, 5, 3]
    assert found.heights.tolist() == [4, 6, 4]
    assert found.formats.tolist() == [ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.JPEG]
    assert found.classes == tuple("01234567")
    assert list(tmp_path.rglob(".*")) == []


def test_index_samples_without_a_common_folder():
    file = Path(ImageFile.__file__)
    with pytest.raises(UserError, match="none of the 2 image files in / can be read"):
        index_samples([("/nowhere/1.jpg", 0), (file, 0)])


def test_index_samples_leaves_out_what_is_unreadable(small, caplog):
    write_tree(small, ["a/2.jpg"], b"bad")
    samples = [(small / "a/1.jpg", 0), (small / "a/2.jpg", 0), (small / "b/1.jpg", 1)]
    found = index_samples(samples, classes=["cat", "dog"])
    assert found.labels.tolist() == [0, 1]
    assert found.classes == ("cat", "dog")
    assert "1 image files" in caplog.text
    assert "2.jpg" in caplog.text


@pytest.mark.parametrize("label", [-1, 2])
def test_index_samples_refuses_labels_without_a_class(small, label):
    with pytest.raises(UserError, match=f"label {label} of .*1.jpg is not one of the 2 classes"):
        index_samples([(small / "a/1.jpg", label)], classes=["a", "b"])


def test_index_samples_refuses_an_empty_list():
    with pytest.raises(UserError, match="empty"):
        index_samples([])


def test_index_samples_takes_timm_samples(small):
    timm_data = pytest.importorskip("timm.data")
    samples = timm_data.create_dataset("", root=str(small)).reader.samples
    found = index_samples(samples)
    stored = open_index(small)
    assert [found.path(i) for i in range(4)] == [stored.path(i) for i in range(4)]
    np.testing.assert_array_equal(found.labels, stored.labels)

"""A JPEG that a stray marker cuts short never becomes a picture that is half grey."""

import io
import tarfile

import numpy as np
import pytest
from damage import START_OF_SCAN, encoded
from PIL import Image

from benchmarks.pillow_pixels import BY_DALI, GOOD, REFUSED, _Decoder, verdict
from dali_rsb import DaliLoader
from dali_rsb.dataset import open_index
from dali_rsb.dataset.coded_data import is_cut_by_marker
from dali_rsb.errors import UserError
from dali_rsb.loader import bad_images
from dali_rsb.loader.conversion import Conversions

FORMS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "optimized": {"optimize": True},
    "restart": {"restart_marker_blocks": 2},
    "progressive": {"progressive": True},
    "metadata": {"comment": b"\xff\xd9\xff\x53", "exif": b"Exif\0\0MM\0*\xff\xda"},
}


def _with_marker(data, seed, code=None):
    """A marker, or fill bytes and a marker, planted in the coded data."""
    rng = np.random.default_rng(seed)
    start = data.rindex(START_OF_SCAN) + 14
    at = int(rng.integers(start, len(data) - 80))
    code = int(rng.integers(1, 256)) if code is None else code
    planted = b"\xff" * int(rng.choice([1, 2, 30])) + bytes([code])
    return data[:at] + planted + data[at + len(planted) :]


@pytest.mark.parametrize("form", FORMS)
def test_no_marker_is_found_in_what_is_in_order(form):
    for seed in range(5):
        data = encoded(64 + seed, 48, seed=seed, **FORMS[form])
        assert not is_cut_by_marker(data)
        assert not is_cut_by_marker(data + b"\xff\x53 behind the end")


def test_markers_are_found_that_end_the_coded_data():
    data = encoded(64, 64)
    for code in range(1, 0xFF):
        goes_on = 0xD0 <= code <= 0xD9 and code != 0xD8  # a restart marker, or the end of the image
        assert is_cut_by_marker(_with_marker(data, code, code)) != goes_on


@pytest.mark.parametrize("form", FORMS)
def test_images_with_markers_have_pillows_pixels_or_are_refused(form):
    decoder, found = _Decoder(), set()
    for seed in range(40):
        data = _with_marker(encoded(64, 48, seed=seed, **FORMS[form]), seed)
        found.add(verdict(data, decoder))
    assert found <= GOOD
    assert REFUSED in found


def test_without_the_check_dali_would_make_pictures_of_them(monkeypatch):
    monkeypatch.setattr("benchmarks.pillow_pixels.is_cut_by_marker", lambda _: False)
    decoder = _Decoder()
    data = encoded(64, 48)
    assert verdict(data, decoder) == BY_DALI
    assert verdict(_with_marker(data, 0, 0x53), decoder) not in GOOD


def _loader(path, **options):
    return DaliLoader(path, 4, size_px=32, device="cpu", num_threads=1, **options)


def _write(tmp_path, layout, files):
    if layout == "folder":
        for name, data in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "data"
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "0.tar", "w") as shard:
        for name, data in files.items():
            label = b"0" if name.startswith("a") else b"1"
            for suffix, content in ((".jpg", data), (".cls", label)):
                member = tarfile.TarInfo(name.replace("/", "_").removesuffix(".jpg") + suffix)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return tmp_path / "data"


@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_the_loader_leaves_them_out_and_names_each_once(tmp_path, caplog, layout):
    files = {f"{'ab'[i % 2]}/{i}.jpg": encoded(seed=i) for i in range(8)}
    files["a/2.jpg"] = _with_marker(files["a/2.jpg"], 3, 0x53)
    data = _write(tmp_path, layout, files)
    with _loader(data, on_bad_image="substitute") as loader:
        for _ in range(2):
            assert sum(len(labels) for _, labels in loader) == 8
    named = [r.message for r in caplog.records if "cannot be decoded" in r.message]
    assert len(named) == 1
    assert "2.jpg" in named[0]
    with _loader(data, on_bad_image="raise") as loader, pytest.raises(UserError, match=r"2\.jpg"):
        list(loader)


def test_a_file_that_is_damaged_after_its_first_use_is_noticed(tmp_path, caplog):
    files = {f"a/{i}.jpg": encoded(seed=i) for i in range(8)}
    data = _write(tmp_path, "folder", files)
    with _loader(data, on_bad_image="substitute") as loader:
        assert sum(len(labels) for _, labels in loader) == 8
        (data / "a/5.jpg").write_bytes(_with_marker(files["a/5.jpg"], 1, 0x53))
        assert sum(len(labels) for _, labels in loader) == 8
    assert [r.message for r in caplog.records if "5.jpg cannot be decoded" in r.message]


def test_what_pillow_decodes_all_the_same_has_its_pixels(tmp_path):
    # A comment between the coded data and the end is legal, and no reason to lose the image.
    data = encoded(40, 40)
    odd = data[:-2] + b"\xff\xfe\0\5abc" + data[-2:]
    assert is_cut_by_marker(odd)
    folder = _write(tmp_path, "folder", {"a/0.jpg": odd, "a/1.jpg": encoded(40, 40, seed=1)})
    with _loader(folder, on_bad_image="raise") as loader:
        assert sum(len(labels) for _, labels in loader) == 2
    pixels = np.asarray(Image.open(io.BytesIO(odd)))
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_the_size_that_a_file_states_counts_not_that_of_the_index(tmp_path, caplog):
    # Pillow would make 12 GB of a JPEG that states 65,500 x 65,500 pixels.
    folder = _write(tmp_path, "folder", {f"a/{i}.jpg": encoded(seed=i) for i in range(4)})
    index = open_index(folder, progress=False)
    large = encoded(90, 40)
    index.path(2).write_bytes(large[:-2] + b"\xff\xfe\0\5abc" + large[-2:])
    status = index.path(2).stat()
    index.stamps[2] = (status.st_mtime_ns, status.st_size)  # as if nothing had changed
    with _loader(index, on_bad_image="substitute", max_pixels=2000) as loader:
        assert sum(len(labels) for _, labels in loader) == 4
    assert [r.message for r in caplog.records if "2.jpg has 90 x 40 pixels" in r.message]
    index.widths[2], index.heights[2] = 48, 40
    assert not Conversions(index, 2000).convert_rejected(2)


def test_each_image_is_read_to_its_end_once(tmp_path, monkeypatch):
    data = _write(tmp_path, "folder", {f"a/{i}.jpg": encoded(seed=i) for i in range(6)})
    seen = []

    def counted(encoded_image):
        seen.append(encoded_image)
        return is_cut_by_marker(encoded_image)

    monkeypatch.setattr(bad_images, "is_cut_by_marker", counted)
    with _loader(data) as loader:
        for _ in range(3):
            list(loader)
    assert len(seen) == len(set(seen)) == 6

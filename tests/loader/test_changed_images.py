"""Images that change between indexing and use, and images that are too large."""

import logging
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from damage import encoded, in_child
from PIL import Image

from dali_rsb import DaliLoader
from dali_rsb.config import load_config
from dali_rsb.constants import MAX_PIXELS
from dali_rsb.dataset import changes, file_store, open_index
from dali_rsb.dataset.packing import PackOptions, pack
from dali_rsb.errors import UserError
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.run.processes import Processes
from dali_rsb.training import assembly

NUM_IMAGES = 40
SIDE_PX = 40


@pytest.fixture
def folder(tmp_path):
    """Forty JPEGs of 40 x 40 pixels in two classes, each of one colour."""
    for i in range(NUM_IMAGES):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE_PX, SIDE_PX), _color(i)).save(path, quality=95)
    return tmp_path / "data"


def _warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def _color(i):
    return (6 * i, 240 - 6 * i, 99)


def _paths(folder):
    index = open_index(folder, progress=False)
    return [index.path(i) for i in range(len(index))]


def _mean_colors(source, train=True, **options):
    """Mean colour of each image of an epoch, [N, 3], in the order of the dataset."""
    options = {"size_px": 32, "batch_size": NUM_IMAGES, "num_threads": 2, "seed": 1} | options
    with DaliLoader(
        source, train=train, shuffle=False, dtype=torch.uint8, device="cpu", **options
    ) as loader:
        return torch.cat([images.float().mean((2, 3)) for images, _ in loader]).numpy()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("side_px", [1, 16, 300])
def test_an_image_replaced_by_one_of_another_size_is_used_as_it_is_now(
    folder, train, side_px, caplog
):
    before = _mean_colors(folder, train)
    paths = _paths(folder)
    for row in (3, 17, 39):
        Image.new("RGB", (side_px, side_px), (9, 9, 9)).save(paths[row], quality=95)
    with caplog.at_level(logging.INFO, "dali_rsb"):
        after = _mean_colors(folder, train)
    assert np.allclose(after[[3, 17, 39]], 9, atol=2)
    others = np.setdiff1d(np.arange(NUM_IMAGES), [3, 17, 39])
    assert np.array_equal(before[others], after[others])
    assert caplog.text.count("the headers of those are read again") == 1


def test_a_change_that_leaves_time_and_size_alike_is_found_when_the_batch_fails(folder):
    paths = _paths(folder)
    paths[5].write_bytes(encoded(24, 24))
    index = open_index(folder, progress=False)
    now = paths[5].stat()
    index.stamps[5] = (now.st_mtime_ns, now.st_size)  # as if nothing had happened
    colors = _mean_colors(index)
    assert (index.widths[5], index.heights[5]) == (24, 24)
    assert len(colors) == NUM_IMAGES


def test_changes_between_epochs_are_noticed_too(folder):
    paths = _paths(folder)
    with DaliLoader(
        folder, NUM_IMAGES, train=True, size_px=32, device="cpu", num_threads=2
    ) as loader:
        index = loader.dataset.index
        for side_px in (10, 90, 1):
            Image.new("RGB", (side_px, side_px)).save(paths[7])
            assert sum(len(images) for images, _ in loader) == NUM_IMAGES
            assert index.widths[7] == side_px
    assert open_index(folder, progress=False).widths[7] == SIDE_PX  # the stored index stays


def test_files_that_are_written_to_while_they_are_read(tmp_path):
    assert in_child("changing_folder.py", tmp_path, "4").endswith("survived\n")


def test_a_header_that_went_bad_is_named_once_and_no_good_image_is_lost(folder, caplog):
    before = _mean_colors(folder)
    index, paths = open_index(folder, progress=False), _paths(folder)
    paths[8].write_bytes(paths[8].read_bytes()[:300])
    paths[9].unlink()
    with caplog.at_level(logging.WARNING):
        after = _mean_colors(index, max_bad_fraction=0.1)
    assert [message.count("cannot be decoded") for message in _warnings(caplog)] == [1, 1]
    others = np.setdiff1d(np.arange(NUM_IMAGES), [8, 9])
    assert np.array_equal(before[others], after[others])
    with pytest.raises(UserError, match=rf"{paths[8].name} cannot be decoded; repair or remove"):
        _mean_colors(index, train=False)


def test_slow_file_systems_are_asked_many_questions_at_once(folder, monkeypatch):
    index = open_index(folder, progress=False)
    paths = _paths(folder)
    paths[33].write_bytes(encoded(9, 9))
    monkeypatch.setattr(file_store, "_SLOW_S", 0)
    assert changes.update_changed(index, np.arange(NUM_IMAGES)) == [33]
    assert changes.update_changed(index, np.arange(NUM_IMAGES)) == []


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_images_of_too_many_pixels_are_bad_images_that_say_so(folder, file_format, caplog):
    large = folder / "b" / "99.jpg"
    Image.new("RGB", (300, 200)).save(large, file_format)
    limit = 300 * 200 - 1
    with caplog.at_level(logging.WARNING):
        assert len(_mean_colors(folder, batch_size=41, max_pixels=limit)) == 41
    complaint = f"99.jpg has 300 x 200 pixels, more than max_pixels={limit} (data.max_pixels)"
    assert [complaint in message for message in _warnings(caplog)] == [True]
    with pytest.raises(UserError, match="shrink or remove it, or raise max_pixels") as caught:
        _mean_colors(folder, train=False, max_pixels=limit)
    assert complaint in str(caught.value)
    assert len(str(caught.value)) - len(str(large)) < 300
    caplog.clear()
    _mean_colors(folder, batch_size=41, max_pixels=limit + 1)  # the fix it names
    assert not _warnings(caplog)


def test_bombs_of_either_format_are_in_the_index_and_never_decoded(tmp_path):
    # Pillow refuses to open the one and knows nothing of the other.
    for name, data in {"bomb.png": _png_bomb(20_000), "bomb.jpg": _jpeg_bomb(20_000)}.items():
        folder = tmp_path / name
        (folder / "a").mkdir(parents=True)
        (folder / "a" / name).write_bytes(data)
        for i in range(7):
            (folder / "a" / f"{i}.jpg").write_bytes(encoded())
        assert len(open_index(folder, progress=False)) == 8
        with pytest.raises(UserError, match=f"20000 x 20000 pixels, more than .*{MAX_PIXELS}"):
            _mean_colors(folder, train=False, batch_size=8)


def _jpeg_bomb(side_px):
    jpeg = bytearray(encoded())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = side_px.to_bytes(2, "big") * 2
    return bytes(jpeg)


def _png_bomb(side_px):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_the_configuration_reaches_both_loaders(folder):
    quickstart = ROOT / "configs" / "quickstart.yaml"
    config = load_config(quickstart, ["data.max_pixels=1234", "optimizer.batch_size=8"])
    assert config.data.max_pixels == 1234
    assert load_config(quickstart).data.max_pixels == MAX_PIXELS
    index = open_index(folder, progress=False)
    processes = Processes(torch.device("cpu"))
    _, loader = assembly.eval_loader(config, index, processes)
    assert loader._bad_images._max_pixels == 1234
    settings = LoaderSettings(threads=1)
    samples = assembly.train_samples(config, index, processes, 8, settings)
    loader = assembly.train_loader(config.data, samples, settings, processes)
    assert loader._bad_images._max_pixels == 1234


def test_a_shard_that_is_cut_short_in_use_is_named(folder, tmp_path):
    pack(open_index(folder, progress=False), tmp_path / "shards", PackOptions(), progress=False)
    index = open_index(tmp_path / "shards", progress=False)
    index.image_arrays(np.arange(3))
    (shard,) = (tmp_path / "shards").glob("*.tar")
    os.truncate(shard, 4096)
    with pytest.raises(UserError, match=rf"{shard.name} has been cut short while in use: restore"):
        _mean_colors(index)


@pytest.mark.parametrize("tiles", [False, True])
def test_a_shard_that_is_cut_while_batches_are_decoded_ends_no_process(tmp_path, tiles):
    """Batches in flight have been read before; what lies behind the cut is an error."""
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    for i in range(8):  # a tenth of a second to decode, each
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(pixels, i)).save(path, quality=95)
    index = open_index(tmp_path / "data", progress=False)
    pack(index, tmp_path / "shards", PackOptions(tiles=tiles), progress=False)
    (shard,) = (tmp_path / "shards").glob("*.tar")
    with pytest.raises(UserError, match=rf"{shard.name} has been cut short while in use"):
        _cut_in_use(shard)


def _cut_in_use(shard):
    with DaliLoader(shard.parent, 2, size_px=32, device="cpu", num_threads=2) as loader:
        for _ in range(9):
            for _ in loader:
                os.truncate(shard, 600)  # the next batches are being decoded


def test_a_selection_of_images_has_the_stamps_of_its_own_files(folder):
    index = open_index(folder)
    selection = index.select(np.array([30, 7, 11]))
    assert changes.update_changed(selection, np.arange(3)) == []
    os.utime(selection.path(1), ns=(0, 0))
    assert changes.update_changed(selection, np.arange(3)) == [1]

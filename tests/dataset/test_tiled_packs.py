"""Packs of tiled JPEGs load as the folder they were made of, from smaller images."""

import io
import itertools
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import run_module
from PIL import Image
from same_batches import equal_batches, evaluates_as, goes_on_in

from benchmarks import packs
from benchmarks.loader import our_samples
from benchmarks.peers import LoaderTask
from dali_rsb import DaliLoader, UserError, open_index
from dali_rsb.dataset.packing import PackOptions, pack, verify, writing
from dali_rsb.dataset.packing.pixels import verify_pixels
from dali_rsb.dataset.tiles import transcoding
from dali_rsb.dataset.tiles.assembly import Cut
from dali_rsb.dataset.windows import Windows
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.samples import TrainSamples, TrainTransform
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import train_loader
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.loader.warm_up import WholeImages, warm_up_training

pytestmark = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="needs jpegtran of libjpeg-turbo"
)
TILES = PackOptions(shard_bytes=150_000, tiles=True)
NOT_TILED = {"4 colour components": 1, "damaged data": 1, "no JPEG": 1}
TRAINING = {
    "train": True,
    "size_px": 24,
    "device": "cpu",
    "num_threads": 1,
    "randaugment": "rand-m6-mstd0.5-inc1",
    "mixup": 0.1,
    "seed": 3,
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """28 photographs, of which one is grey, one a PNG, one CMYK, one progressive, one cut off."""
    root = tmp_path_factory.mktemp("tiled") / "folder"
    for number in range(28):
        path = root / "ab"[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph = photographs[number % 14].resize((240 + number, 170 + 3 * number))
        options = {"subsampling": ("4:2:0", "4:4:4")[number % 5 == 0], "progressive": number == 4}
        mode, kind = {1: ("L", "JPEG"), 2: ("RGB", "PNG"), 3: ("CMYK", "JPEG")}.get(
            number, ("RGB", "JPEG")
        )
        photograph.convert(mode).save(path, kind, **(options if number > 3 else {}))
    data = (root / "b" / "5.JPEG").read_bytes()
    (root / "b" / "5.JPEG").write_bytes(data[: len(data) // 2])
    return root


@pytest.fixture(scope="module")
def tiled(folder):
    target = folder.parent / "tiled"
    report = pack(open_index(folder), target, TILES)
    assert report.num_shards > 2
    assert report.num_tiled == 25
    assert report.not_tiled == NOT_TILED
    return target


@pytest.mark.parametrize("repeats", [None, 3])
def test_an_epoch_is_that_of_the_folder(folder, tiled, repeats, monkeypatch):
    assembled = []
    assemble = Cut.assemble
    monkeypatch.setattr(Cut, "assemble", lambda *a: assembled.append(1) or assemble(*a))
    ours, theirs = (DaliLoader(root, 7, repeats=repeats, **TRAINING) for root in (tiled, folder))
    assert equal_batches(list(ours), list(theirs))
    # Where a batch decodes whole images, none are put together.
    assert bool(assembled) == (repeats is None)


def test_training_goes_on_in_the_middle_of_an_epoch_also_from_folder_to_tiles(folder, tiled):
    assert goes_on_in(tiled, folder, 7, 2, **TRAINING)


def test_an_evaluation_is_that_of_the_folder(folder, tiled):
    assert evaluates_as(tiled, folder)


def _loader(root, decode_mode):
    index = open_index(root)
    transform = TrainTransform(32, decode_mode=decode_mode)
    samples = TrainSamples(index, BatchLayout(28, 28), transform)
    bad_images = BadImages(index)
    loader = train_loader(samples, LoaderSettings(threads=1), CPU, bad_images)
    return loader, samples, bad_images.conversions


@pytest.mark.parametrize("decode_mode", ["roi", "full"])
def test_images_that_pillow_decodes_take_the_place_of_small_ones(folder, tiled, decode_mode):
    """Their copies are whole: windows lie in them where they lie in the stored image."""
    batches = []
    for root in (folder, tiled):
        loader, samples, conversions = _loader(root, decode_mode)
        if root == tiled:
            assert all(conversions.convert_rejected(image) for image in range(4, 12))
        specs = itertools.chain(samples.specs(0), samples.specs(1))
        batches.append([batch.images.clone() for batch in loader.batches(specs)])
        loader.close()
    assert all(map(torch.equal, *batches))


@pytest.mark.parametrize("decode_mode", ["roi", "full"])
def test_the_warm_up_decodes_whole_images(tiled, decode_mode):
    loader, samples, _ = _loader(tiled, decode_mode)
    index = samples.index
    num_pixels = (index.widths.astype(int) * index.heights).sum()
    assert warm_up_training(loader, samples, 0, 1) == num_pixels
    loader.close()
    # Pillow's copies of some of them are whole too: no window moves.
    prepared = WholeImages(samples).prepare(next(samples.specs(0)))
    names = {"anchor", "start", "end"} & prepared.inputs.keys()
    before = {name: prepared.inputs[name].copy() for name in names}
    prepared.take_whole_images(range(28))
    assert all(np.array_equal(prepared.inputs[name], before[name]) for name in names)


def test_windows_are_smaller_and_metadata_stay_out(tiled):
    index = open_index(tiled)
    rows = np.arange(28)
    windows = Windows(*np.full((4, 28), 60))
    images = index.window_images(rows, windows)
    whole = index.image_arrays(rows)
    is_tiled = index.store.tiles.tile_widths > 0
    sizes = np.array([[len(a), len(b)] for a, b in zip(images.arrays, whole, strict=True)])
    assert (sizes[is_tiled, 0] < 0.75 * sizes[is_tiled, 1]).all()
    assert (sizes[~is_tiled, 0] == sizes[~is_tiled, 1]).all()
    assert (images.origins[~is_tiled] == 0).all()
    assert (images.origins[is_tiled] > 0).any(axis=1).all()


def test_the_benchmark_counts_the_bytes_that_reach_the_decoder(folder, tiled):
    in_folder, in_tiles = (
        packs.bytes_per_window(our_samples(LoaderTask(root, 14, 24, None, 1), "roi", 1), 2)
        for root in (folder, tiled)
    )
    assert in_folder == np.mean([path.stat().st_size for path in folder.glob("*/*")])
    assert 0.4 < in_tiles / in_folder < 0.9


def test_a_store_can_be_pickled_and_selected_from(tiled):
    index, rows = open_index(tiled), np.array([20, 3, 9])
    store, sizes = index.store, (index.widths[rows], index.heights[rows])
    windows = Windows(*np.full((4, 3), 50))
    expected = store.window_images(rows, *sizes, windows)
    for other in (pickle.loads(pickle.dumps(store)).select(rows), store.select(rows)):
        found = other.window_images(np.arange(3), *sizes, windows)
        assert np.array_equal(found.origins, expected.origins)
        assert all(map(np.array_equal, found.arrays, expected.arrays))


def test_an_interrupted_pack_goes_on_and_ends_the_same(folder, tiled, tmp_path, monkeypatch):
    target, save = tmp_path / "packed", writing.Record.save

    def interrupt(record, file):
        if len(list(target.glob("*.tar"))) == 2:
            raise KeyboardInterrupt
        save(record, file)

    with monkeypatch.context() as patch:
        patch.setattr(writing.Record, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(open_index(folder), target, TILES)
    report = pack(open_index(folder), target, TILES)
    assert report.not_tiled == NOT_TILED
    for path in [*tiled.glob("*.tar"), *tiled.glob("dali_rsb_index/*.npy")]:
        assert (target / path.relative_to(tiled)).read_bytes() == path.read_bytes()


def test_pixels_are_verified(folder, tiled, tmp_path, monkeypatch):
    assert verify(tiled) > 2
    assert verify_pixels(open_index(folder), tiled) == 28
    # A wrong place of a tile is found, which no checksum of a shard tells.
    damaged = tmp_path / "damaged"
    shutil.copytree(tiled, damaged)
    places = damaged / "dali_rsb_index" / "row_starts.npy"
    row_starts = np.load(places)
    row_starts[len(row_starts) // 2 :] += 7
    np.save(places, row_starts)
    verify(damaged)
    with pytest.raises(UserError, match="images have other pixels than their originals"):
        verify_pixels(open_index(folder), damaged)


def test_what_pixels_cannot_be_compared_with_is_said(folder, tiled, tmp_path):
    smaller = tmp_path / "smaller"
    pack(open_index(folder), smaller, PackOptions(max_side=100, tiles=True))
    with pytest.raises(UserError, match="are not those of the originals"):
        verify_pixels(open_index(folder), smaller)
    (tmp_path / "other").mkdir()
    shutil.copytree(folder / "a", tmp_path / "other" / "a")
    with pytest.raises(UserError, match="was not packed from"):
        verify_pixels(open_index(tmp_path / "other"), tiled)


def test_smaller_images_are_tiled_too(folder, tmp_path):
    report = pack(open_index(folder), tmp_path / "packed", PackOptions(max_side=100, tiles=True))
    assert report.num_reencoded == 27
    assert report.num_tiled == 27
    assert report.not_tiled == {"damaged data": 1}


def test_without_jpegtran_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    transcoding._program.cache_clear()
    with pytest.raises(UserError, match="needs jpegtran"):
        pack(open_index(folder), tmp_path / "packed", TILES)
    transcoding._program.cache_clear()
    assert not (tmp_path / "packed").exists()


def test_the_command_counts_and_verifies(folder, tmp_path):
    done = run_module("dali_rsb.pack", folder, tmp_path / "packed", "--tiles")
    assert done.returncode == 0, done.stderr
    assert "cut 25 into tiles, with every pixel as it was" in done.stdout
    assert "kept 3 as they are: 1 " in done.stdout
    done = run_module("dali_rsb.pack", folder, "--verify", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    assert "28 images have the pixels of those in" in done.stdout


def test_other_programs_read_tiles_as_jpegs(folder, tiled):
    packed, source = open_index(tiled), open_index(folder)
    for row in np.flatnonzero(packed.store.tiles.tile_widths > 0).tolist():
        with packed.open(row) as file, source.open(row) as other:
            pixels, expected = (
                np.asarray(Image.open(io.BytesIO(f.read())).convert("RGB")) for f in (file, other)
            )
        assert np.array_equal(pixels, expected)

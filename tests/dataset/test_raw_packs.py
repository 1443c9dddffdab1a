"""Packs that hold some images as pixels load as the folder they were made of."""

import dataclasses
import gc
import itertools
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from same_batches import equal_batches, evaluates_as, goes_on_in

from dali_rsb import DaliLoader, UserError, open_index
from dali_rsb import pack as command
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.packing import PackOptions, pack, plan, verify, writing
from dali_rsb.dataset.packing.note import read_pack
from dali_rsb.dataset.packing.pixels import verify_pixels
from dali_rsb.dataset.raw import layout
from dali_rsb.dataset.raw.reading import WindowReader, read_window
from dali_rsb.dataset.windows import Windows
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.samples import BatchSpec, TrainSamples, TrainTransform
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import train_loader
from dali_rsb.loader.cpu_resize import CpuResize
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.loader.warm_up import warm_up_training
from pipelines import TrainArguments, train_pipeline

RAW = PackOptions(shard_bytes=400_000, raw=0.6)
CPU = torch.device("cpu")
TRAINING = {
    "train": True,
    "size_px": 24,
    "device": "cpu",
    "num_threads": 1,
    "mixup": 0.1,
    "seed": 3,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def _images(photographs):
    """(name, image, format): of every mode, of odd sizes, of one pixel in either direction."""
    small = [
        photograph.resize((61 + 9 * n, 40 + 13 * n)) for n, photograph in enumerate(photographs)
    ]
    transparent = small[3].convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(small[3].size))
    yield from ((f"{n}.JPEG", image, "JPEG") for n, image in enumerate(small))
    yield "grey.JPEG", small[0].convert("L"), "JPEG"
    yield "cmyk.JPEG", small[1].convert("CMYK"), "JPEG"
    yield "alpha.png", transparent, "PNG"
    yield "palette.png", small[2].quantize(64), "PNG"
    yield "bits.png", small[4].convert("1"), "PNG"
    yield "picture.webp", small[5], "WEBP"
    yield "still.gif", small[6].quantize(32), "GIF"
    yield "pixel.png", small[7].resize((1, 1)), "PNG"
    yield "row.png", small[8].resize((50, 1)), "PNG"
    yield "column.JPEG", small[9].resize((1, 41)), "JPEG"


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    root = tmp_path_factory.mktemp("raw") / "folder"
    for number, (name, image, kind) in enumerate(_images(photographs)):
        path = root / "ab"[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    data = (root / "b" / "5.JPEG").read_bytes()
    (root / "b" / "cut.JPEG").write_bytes(data[: len(data) // 2])
    return root


@pytest.fixture(scope="module")
def raw(folder):
    """A pack of which every readable image is pixels."""
    target = folder.parent / "raw"
    report = pack(open_index(folder), target, dataclasses.replace(RAW, raw=1.0))
    assert report.num_shards > 1
    assert report.num_raw == report.num_images - 1
    assert report.num_undecodable == 1  # the one that was cut
    return target


@pytest.fixture(scope="module")
def half(folder):
    """A pack of which some images are pixels, and the others tiled where they can be."""
    target = folder.parent / "half"
    tiles = shutil.which("jpegtran") is not None
    report = pack(open_index(folder), target, dataclasses.replace(RAW, tiles=tiles))
    assert 0.3 * report.num_images < report.num_raw < 0.9 * report.num_images
    return target


@pytest.mark.parametrize(("packed", "repeats"), [("raw", None), ("half", None), ("half", 3)])
def test_an_epoch_is_that_of_the_folder(folder, packed, repeats, request):
    roots = (request.getfixturevalue(packed), folder)
    policy = "rand-m6-mstd0.5-inc1" if (packed, repeats) == ("half", None) else None
    ours, theirs = (
        DaliLoader(root, 8, repeats=repeats, randaugment=policy, **TRAINING) for root in roots
    )
    assert equal_batches(list(ours), list(theirs))


def test_training_goes_on_in_the_middle_of_an_epoch_also_from_folder_to_pack(folder, half):
    assert goes_on_in(half, folder, 8, 1, **TRAINING)


def test_an_evaluation_is_that_of_the_folder(folder, half):
    assert evaluates_as(half, folder)


def _samples(root, decode_mode, **options):
    transform = TrainTransform(32, decode_mode=decode_mode, gpu_share=0.5, vflip=0.5)
    return TrainSamples(open_index(root), BatchLayout(25, 25), transform, seed=4, **options)


def _specs(rows=range(25)):
    """Batches with copies of some images."""
    for epoch in range(3):
        indices = np.sort(np.random.default_rng(epoch).choice(rows, 25))
        yield BatchSpec(indices, 25, epoch, range(25))


def _batches(samples, raw, specs=None):
    """Batches of a loader whose pipelines take raw images in one of the two ways."""
    reader = WindowReader(2) if raw == "pixels" else None

    def build():
        return train_pipeline(
            TrainArguments(
                size_px=32,
                batch_size=25,
                num_threads=1,
                device_id=None,
                source=samples.index.image_source,
                decode_mode=samples.transform.decode_mode,
                host_resize=CpuResize(32, 1),
                raw=raw,
            )
        )

    loader = Loader(samples, build, CPU, 2, BadImages(samples.index), reader=reader)
    batches = [batch.images.clone() for batch in loader.batches(specs or _specs())]
    loader.close()
    return batches


@pytest.mark.parametrize("decode_mode", ["roi", "full", "hybrid", "shared"])
def test_windows_come_by_their_places_or_as_pixels(folder, half, decode_mode):
    """Both ways into the pipeline, CPU's and GPU's, give the same images as decoding does."""
    expected = _batches(_samples(folder, decode_mode), None)
    for raw in ("places", "pixels"):
        assert all(map(torch.equal, _batches(_samples(half, decode_mode), raw), expected)), raw


@pytest.mark.parametrize("decode_mode", ["roi", "shared"])
def test_a_raw_image_may_be_decoded_after_all(folder, half, decode_mode):
    """A copy takes the place of some: these are whole, and go through the decoder."""
    samples = _samples(half, decode_mode)
    is_raw = samples.index.store.is_raw
    batches = []
    for root in (folder, half):
        loader, bad_images = _loader(root, decode_mode)
        if root == half:
            some = np.flatnonzero(is_raw)[:6].tolist()
            assert all(bad_images.conversions.convert_rejected(image) for image in some)
        batches.append([batch.images.clone() for batch in loader.batches(_specs())])
        loader.close()
    assert all(map(torch.equal, *batches))


def _loader(root, decode_mode="roi"):
    samples = _samples(root, decode_mode)
    bad_images = BadImages(samples.index)
    loader = train_loader(samples, LoaderSettings(threads=1), CPU, bad_images)
    return loader, bad_images


@pytest.mark.parametrize("decode_mode", ["roi", "shared"])
def test_the_warm_up_takes_whole_images(half, decode_mode, monkeypatch):
    pixels = []

    def resize(self, images, starts, ends, interpolations, places=()):
        decoded = [np.prod(image.shape[:2]) for image in images]
        read = [np.prod(place[-2:]) if place[0] >= 0 else 0 for place in places]
        pixels.append(np.maximum(decoded, read).sum())
        return [np.zeros((32, 32, 3), np.uint8)] * len(images)

    monkeypatch.setattr(CpuResize, "__call__", resize)
    samples = _samples(half, decode_mode)
    loader, bad_images = _loader(half, decode_mode)
    warm_up_training(loader, samples, 0, 1)
    loader.close()
    (bad,) = bad_images.replacements.items()
    of_images = samples.index.widths.astype(int) * samples.index.heights
    assert of_images.sum() - of_images[bad[0]] + of_images[bad[1]] in pixels


def _edge_windows(width, height):
    """Every corner, edge and side of an image, and all of it."""
    starts = [(0, 1), (0, height), (height - 1, 1), (height // 2, height - height // 2)]
    columns = [(0, 1), (0, width), (width - 1, 1), (width // 2, width - width // 2)]
    every = [(top, left, h, w) for (top, h), (left, w) in itertools.product(starts, columns)]
    return Windows(*np.array(every).T)


def test_windows_at_every_edge_are_those_of_the_image(folder, raw):
    packed, source = open_index(raw), open_index(folder)
    reader, compared = WindowReader(2), 0
    for row in np.flatnonzero(packed.store.is_raw).tolist():
        with source.open(row) as file:
            pixels = np.asarray(layout.decode(file.read()))
        windows = _edge_windows(pixels.shape[1], pixels.shape[0])
        images = packed.window_images(np.full(16, row), windows)
        assert (images.sizes[:, 0] == windows.height).all()
        assert (images.sizes[:, 1] == windows.width).all()
        arrays = reader.read(images.raw.places)
        for number, (top, left) in enumerate(images.origins.tolist()):
            height, width = images.sizes[number, :2]
            expected = pixels[top : top + height, left : left + width]
            assert np.array_equal(read_window(images.raw.places[number].tolist()), expected)
            assert np.array_equal(arrays[number], expected)
            compared += 1
    assert compared == 16 * (len(packed) - 1)


def test_memory_is_used_again_when_nobody_has_it_any_more(raw):
    index = open_index(raw)
    rows = np.flatnonzero(index.store.is_raw)[:8]
    windows = Windows(*np.zeros((2, 8), int), index.heights[rows], index.widths[rows])
    places = index.window_images(rows, windows).raw.places
    reader = WindowReader(1)
    first, second = reader.read(places), reader.read(places)
    assert not any(map(np.shares_memory, first, second))
    kept, address = first[3], first[0].ctypes.data
    expected = kept.copy()
    del first
    third = reader.read(places)  # an array of the first is still held
    assert np.array_equal(kept, expected)
    assert third[0].ctypes.data != address
    del kept
    assert reader.read(places)[0].ctypes.data == address


def test_which_images_are_pixels_depends_on_seed_and_name(folder, half, tmp_path):
    keys = open_index(folder).store.keys.all()
    chosen = layout.chosen(keys, 0, 0.6)
    is_raw = open_index(half).store.is_raw
    assert (is_raw == chosen & [b"cut" not in key for key in keys]).all()
    assert (layout.chosen(keys[::-1], 0, 0.6) == chosen[::-1]).all()
    assert (layout.chosen(keys, 1, 0.6) != chosen).any()
    many = [str(number).encode() for number in range(20_000)]
    shares = [layout.chosen(many, 0, share) for share in (0, 0.2, 0.7, 1)]
    assert [share.mean() for share in shares] == pytest.approx([0, 0.2, 0.7, 1], abs=0.01)
    assert (shares[2] >= shares[1]).all()


def test_an_interrupted_pack_goes_on_and_ends_the_same(folder, half, tmp_path, monkeypatch):
    target, save = tmp_path / "packed", writing.Record.save
    options = dataclasses.replace(RAW, tiles=shutil.which("jpegtran") is not None)

    def interrupt(record, file):
        if len(list(target.glob("*.tar"))) == 2:
            raise KeyboardInterrupt
        save(record, file)

    with monkeypatch.context() as patch:
        patch.setattr(writing.Record, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(open_index(folder), target, options)
    with pytest.raises(UserError, match=r"0\.6 of the images as pixels"):
        pack(open_index(folder), target, dataclasses.replace(options, raw=0.5))
    pack(open_index(folder), target, options)
    for path in [*half.glob("*.tar"), *half.glob("dali_rsb_index/*.npy")]:
        assert (target / path.relative_to(half)).read_bytes() == path.read_bytes()


def test_made_smaller_the_pixels_are_those_of_the_resize(folder, tmp_path):
    """No JPEG comes in between, whatever the quality of the others."""
    options = PackOptions(max_side=60, quality=50, raw=1.0)
    report = pack(open_index(folder), tmp_path / "packed", options)
    packed, source = open_index(tmp_path / "packed"), open_index(folder)
    assert report.num_reencoded == (np.maximum(source.widths, source.heights) > 60).sum() - 1
    for row in np.flatnonzero(packed.store.is_raw).tolist():
        with source.open(row) as file, packed.open(row) as other:
            expected = layout.decode(file.read())
            pixels = layout.decode(other.read())
        assert pixels.size == (packed.widths[row], packed.heights[row])
        assert packed.formats[row] == ImageFormat.PNM
        assert max(pixels.size) == min(60, max(expected.size))
        expected = expected.resize(pixels.size, Image.Resampling.LANCZOS)
        assert np.array_equal(pixels, expected)
    with pytest.raises(UserError, match="are not those of the originals"):
        verify_pixels(source, tmp_path / "packed")


def test_pixels_and_checksums_are_verified(folder, half, tmp_path):
    assert verify(half) > 1
    assert verify_pixels(open_index(folder), half) == 25
    damaged = tmp_path / "damaged"
    shutil.copytree(half, damaged)
    index = open_index(damaged)
    row = int(np.flatnonzero(index.store.is_raw)[3])
    shard, place = index.store.shard(row), index.store.offsets[row] + index.store.lengths[row] - 5
    with shard.open("r+b") as file:
        file.seek(int(place))
        (value,) = file.read(1)
        file.seek(int(place))
        file.write(bytes([value ^ 1]))
    with pytest.raises(UserError, match="1 of 25 images have other pixels"):
        verify_pixels(open_index(folder), damaged)
    with pytest.raises(UserError, match="missing or damaged"):
        verify(damaged)


def test_a_store_can_be_pickled_and_selected_from(half):
    index = open_index(half)
    rows = np.array([*np.flatnonzero(index.store.is_raw)[:2], np.argmin(index.store.is_raw)])
    sizes = (index.widths[rows], index.heights[rows])
    windows = Windows(*np.zeros((2, 3), int), *np.ones((2, 3), int))
    expected = index.store.window_images(rows, *sizes, windows)
    for other in (pickle.loads(pickle.dumps(index.store)).select(rows), index.store.select(rows)):
        found = other.window_images(np.arange(3), *sizes, windows)
        assert np.array_equal(found.raw.is_raw, [True, True, False])
        for place, same in zip(found.raw.places[:2], expected.raw.places[:2], strict=True):
            pixel = read_window(place.tolist()).copy()
            assert np.array_equal(pixel, read_window(same.tolist()))


def test_files_close_with_the_last_who_may_read_them(half):
    def num_open():
        return sum(
            os.path.realpath(link).startswith(str(half)) for link in Path("/proc/self/fd").iterdir()
        )

    gc.collect()
    before = num_open()
    index = open_index(half)
    rows = np.flatnonzero(index.store.is_raw)
    windows = Windows(*np.zeros((2, len(rows)), int), *np.ones((2, len(rows)), int))
    images = index.window_images(rows, windows)
    places = images.raw.places
    del index, images
    gc.collect()
    assert num_open() > before
    assert read_window(places[0].tolist()).shape == (1, 1, 3)
    del places
    gc.collect()
    assert num_open() == before


@pytest.mark.parametrize("raw_input", ["places", "pixels"])
@pytest.mark.parametrize(
    ("change", "message"),
    [("cut", "cut short while in use"), ("overwritten", "written to while in use")],
)
def test_a_shard_that_changes_in_use_is_said(raw, tmp_path, change, message, raw_input):
    """And a crash it is not, as it would be with a memory map."""
    shutil.copytree(raw, tmp_path / "packed")
    samples = _samples(tmp_path / "packed", "roi")

    def specs():
        for number, spec in enumerate(_specs(np.flatnonzero(samples.index.store.is_raw))):
            if number == 1:
                for shard in (tmp_path / "packed").glob("*.tar"):
                    _change(shard, change)
            yield spec

    with pytest.raises(UserError, match=message):
        _batches(samples, raw_input, specs())


def test_a_shard_that_is_cut_before_it_is_read_is_said(raw, tmp_path, monkeypatch):
    """Between the check and the reading nobody looks: the end of the file is met."""
    shutil.copytree(raw, tmp_path / "packed")
    samples = _samples(tmp_path / "packed", "roi")
    prepare = TrainSamples.prepare

    def prepared(*arguments):
        run = prepare(*arguments)
        for shard in (tmp_path / "packed").glob("*.tar"):
            _change(shard, "cut")
        return run

    monkeypatch.setattr(TrainSamples, "prepare", prepared)
    for raw_input, message in (("places", "cut short while in use"), ("pixels", "cannot be read")):
        with pytest.raises(UserError, match=message):
            _batches(samples, raw_input, _specs(np.flatnonzero(samples.index.store.is_raw)))
        shutil.rmtree(tmp_path / "packed")
        shutil.copytree(raw, tmp_path / "packed")
        samples = _samples(tmp_path / "packed", "roi")


def _change(shard, change):
    if change == "cut":
        os.truncate(shard, 2000)
    else:
        with shard.open("r+b") as file:
            file.write(bytes(shard.stat().st_size))


@pytest.mark.parametrize("decode_mode", ["roi", "full", "hybrid", "shared"])
def test_a_gpu_pipeline_takes_pixels_in_every_mode(decode_mode):
    """Without a GPU it can be traced, which checks all operators and devices."""
    pipeline = train_pipeline(
        TrainArguments(
            size_px=32,
            batch_size=4,
            num_threads=1,
            device_id=0,
            decode_mode=decode_mode,
            source="encoded",
            raw="pixels",
        )
    )
    pipeline._build_graph()
    specs = [str(operator.spec) for operator in pipeline._ops]
    assert any("pixels" in spec for spec in specs)
    assert not any("PythonFunction" in spec for spec in specs)


def _run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["pack", *map(str, arguments)])
    command.main()
    return capsys.readouterr().out.splitlines()


def test_the_command_says_beforehand_what_it_takes(folder, tmp_path, monkeypatch, capsys):
    options = ("--raw", 1, "--quality", 80)
    first, *others = _run(monkeypatch, capsys, folder, tmp_path / "packed", *options)
    pixels = np.asarray(open_index(folder).widths) * open_index(folder).heights
    assert first.startswith("25 images will take ")
    assert "25 of them are pixels" in first
    assert f"{3 * pixels.sum() / 1e6:,.1f} MB" in first
    assert any(line.startswith("kept 24 as pixels") for line in others)


def test_what_a_pack_takes_is_known(folder, half):
    """To the byte where no image is encoded again, but for the end of each shard."""
    options = dataclasses.replace(RAW, raw=0.6)
    expected = plan(open_index(folder), options)
    note, _ = read_pack(half, "")
    packed = open_index(half)
    assert expected.num_raw == packed.store.is_raw.sum()
    assert not expected.is_estimate
    header_bytes = 20 * expected.num_raw
    assert 0 <= packed.store.lengths[packed.store.is_raw].sum() - expected.raw_bytes < header_bytes
    in_shards = sum(shard.bytes for shard in note.shards)
    assert expected.num_bytes == pytest.approx(in_shards, abs=16_000 * len(note.shards))
    smaller = plan(open_index(folder), dataclasses.replace(options, max_side=60))
    assert smaller.is_estimate
    assert smaller.raw_bytes < 0.7 * expected.raw_bytes
    assert 0 < smaller.other_bytes < expected.other_bytes


def test_a_disk_without_room_is_said_with_figures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=123_400))
    arguments = ["pack", str(folder), str(tmp_path / "new" / "packed"), "--raw", "0.5"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(
        UserError, match=r"needs \d.* MB, and .* has room for 0.1 MB: .*--raw \("
    ) as error:
        command.main()
    assert len(str(error.value)) < 300
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    command.main()


def test_a_share_is_between_0_and_1(folder, tmp_path, monkeypatch):
    for share in ("-0.1", "1.5", "nan"):
        monkeypatch.setattr(sys, "argv", ["pack", str(folder), str(tmp_path), f"--raw={share}"])
        with pytest.raises(UserError, match=r"--raw .* is no share of the images: give 0 to 1"):
            command.main()

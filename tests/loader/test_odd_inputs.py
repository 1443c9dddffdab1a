"""Files that are not plain RGB JPEG: the loader yields Pillow's pixels for each of them."""

import io
import logging
import resource
import struct
import subprocess
import time
import zlib
from shutil import which
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import torch
from PIL import Image

from dali_rsb.dataset import index_samples, open_index
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.storage import place_beside
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.order import BatchLayout, EvalLayout
from dali_rsb.draws.samples import BatchSpec, EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.loader import conversion
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.conversion import Conversions
from dali_rsb.loader.loader import Loader
from pipelines import EvalArguments, TrainArguments, eval_pipeline, train_pipeline
from pipelines.decoding import decode_check_pipeline

SIZE_PX = 48


def _encode(image, image_format, **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _png(samples, color_type):
    """PNG of 16 bits a sample, which Pillow cannot write; samples big-endian [H, W, channels]."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _without_adobe_marker(jpeg):
    at = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + jpeg[at + 2 + length :]


def _as_ycck(cmyk):
    at = cmyk.index(b"Adobe")
    return cmyk[: at + 11] + b"\2" + cmyk[at + 12 :]


def _bitmap_565(pixels):
    """BMP of 16 bits a pixel, bottom row first."""
    wide = pixels[::-1].astype(np.uint16)
    packed = (wide[..., 0] >> 3) << 11 | (wide[..., 1] >> 2) << 5 | wide[..., 2] >> 3
    height, width = packed.shape
    rows = np.pad(packed, ((0, 0), (0, width % 2))).astype("<u2").tobytes()
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 66 + len(rows), 0, 0, 66) + info + masks + rows


# Sequential JPEGs may store their components in scans of their own, as jpegtran -scans writes them.
SCANS = {"scan_a_component.jpg": "0;1;2;", "luma_apart.jpg": "0;1 2;"} if which("jpegtran") else {}


def _in_scans(jpeg, script):
    with NamedTemporaryFile("w") as file:
        file.write(script)
        file.flush()
        command = ["jpegtran", "-scans", file.name]
        written = subprocess.run(command, input=jpeg, capture_output=True, check=True).stdout
    assert written.count(b"\xff\xda") == script.count(";")
    assert b"\xff\xc0" in written  # SOF0: baseline, not progressive
    return written


def _odd_files(photograph):
    """Name -> content of every kind of file; all have the size of the photograph."""
    rgb, grey, noise = photograph, photograph.convert("L"), np.random.default_rng(0)
    alpha = Image.fromarray(noise.integers(0, 256, (rgb.height, rgb.width), np.uint8))
    rgba, grey_alpha = rgb.copy(), grey.copy()
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    palette, cmyk, turned = rgb.quantize(200), rgb.convert("CMYK"), rgb.transpose(1)
    deep = np.asarray(rgb).astype(">u2") * 256 + noise.integers(0, 256, (rgb.height, rgb.width, 3))
    deep = deep.astype(">u2")
    grey16 = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    adobe = _encode(cmyk, "JPEG")
    return {
        "grey.jpg": _encode(grey, "JPEG"),
        "progressive.jpg": _encode(rgb, "JPEG", progressive=True),
        "progressive_grey.jpg": _encode(grey, "JPEG", progressive=True),
        "fine_chroma.jpg": _encode(rgb, "JPEG", subsampling=0),
        **{name: _in_scans(_encode(rgb, "JPEG"), script) for name, script in SCANS.items()},
        "stored_as_rgb.jpg": _encode(rgb, "JPEG", keep_rgb=True),
        "restart_markers.jpg": _encode(rgb, "JPEG", restart_marker_blocks=3),
        "rotated.jpg": _encode(rgb, "JPEG", exif=exif),
        "several.jpg": _encode(rgb, "MPO", save_all=True, append_images=[turned]),
        "cmyk.jpg": adobe,
        "ycck.jpg": _as_ycck(adobe),
        "cmyk_not_inverted.jpg": _without_adobe_marker(adobe),
        "png_named.JPEG": _encode(rgb, "PNG"),
        "grey.png": _encode(grey, "PNG"),
        "palette.png": _encode(palette, "PNG"),
        "palette_two.png": _encode(rgb.quantize(2), "PNG"),
        "palette_transparent.png": _encode(palette, "PNG", transparency=3),
        "palette_alpha.png": _encode(palette, "PNG", transparency=bytes(range(200))),
        "color_key.png": _encode(rgb, "PNG", transparency=(10, 20, 30)),
        "rgba.png": _encode(rgba, "PNG"),
        "la.png": _encode(grey_alpha, "PNG"),
        "one_bit.png": _encode(rgb.convert("1"), "PNG"),
        "rotated.png": _encode(rgb, "PNG", exif=exif),
        "animated.png": _encode(rgb, "PNG", save_all=True, append_images=[turned]),
        "grey16.png": _encode(grey16, "PNG"),
        "rgb16.png": _png(deep, 2),
        "rgba16.png": _png(np.concatenate([deep, deep[..., :1]], axis=2), 6),
        "la16.png": _png(np.ascontiguousarray(deep[..., :2]), 4),
        "lossy.webp": _encode(rgb, "WEBP"),
        "alpha.webp": _encode(rgba, "WEBP", lossless=True),
        "animated.webp": _encode(rgb, "WEBP", save_all=True, append_images=[turned], lossless=True),
        "rgb.bmp": _encode(rgb, "BMP"),
        "rgba.bmp": _encode(rgba, "BMP"),
        "palette.bmp": _encode(palette, "BMP"),
        "one_bit.bmp": _encode(rgb.convert("1"), "BMP"),
        "565.bmp": _bitmap_565(np.asarray(rgb)),
        "rgb.tif": _encode(rgb, "TIFF"),
        "lzw.tif": _encode(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _encode(rgb, "TIFF", compression="jpeg"),
        "grey.tif": _encode(grey, "TIFF"),
        "palette.tif": _encode(palette, "TIFF"),
        "la.tif": _encode(grey_alpha, "TIFF"),
        "rgba.tif": _encode(rgba, "TIFF"),
        "cmyk.tif": _encode(cmyk, "TIFF"),
        "one_bit.tif": _encode(rgb.convert("1"), "TIFF"),
        "grey16.tif": _encode(grey16, "TIFF"),
        # Pillow, and so timm, rotates TIFF but no other format.
        "rotated.tif": _encode(rgb.transpose(Image.Transpose.ROTATE_90), "TIFF", tiffinfo={274: 6}),
        "still.gif": _encode(rgb.quantize(100), "GIF"),
        "animated.gif": _encode(palette, "GIF", save_all=True, append_images=[turned.quantize()]),
        "gif_named.jpg": _encode(rgb.quantize(64), "GIF"),
        "rgb.ppm": _encode(rgb, "PPM"),
        "grey.pgm": _encode(grey, "PPM"),
        "grey16.pgm": _encode(grey16, "PPM"),
        "100_levels.ppm": b"P6 %d %d 100\n" % rgb.size + (np.asarray(rgb) // 3).tobytes(),
        "tga_named.jpg": _encode(rgb, "TGA"),
    }


@pytest.fixture(scope="module")
def odd_index(photographs, tmp_path_factory):
    """Square files, of the size that the loaders yield: crop and resize leave them as they are."""
    files = _odd_files(photographs[0].resize((SIZE_PX, SIZE_PX)))
    return _write(tmp_path_factory.mktemp("square"), files)


@pytest.fixture(scope="module")
def oblong_indices(photographs, tmp_path_factory):
    """The files at 61 x 47 pixels, and what Pillow makes of them as RGB PNG, in the same order."""
    root = tmp_path_factory.mktemp("oblong")
    odd = _write(root / "odd", _odd_files(photographs[0].resize((61, 47))))
    twins = {f"{i:03d}.png": _encode(_pillow(odd, i), "PNG") for i in range(len(odd))}
    return odd, _write(root / "twins", twins)


def _write(root, files):
    (root / "kind").mkdir(parents=True)
    for name, content in files.items():
        (root / "kind" / name).write_bytes(content)
    return open_index(root, progress=False)


def _pillow(index, i):
    with Image.open(index.path(i)) as image:
        return image.convert("RGB")


def _train_batches(index, decode_mode, bad_images=None, **options):
    """Output of every image in order: uint8 [N, 48, 48, 3]."""
    transform = TrainTransform(SIZE_PX, decode_mode=decode_mode, **options)
    samples = TrainSamples(index, BatchLayout(8, 8), transform)

    def build():
        return train_pipeline(
            TrainArguments(
                size_px=SIZE_PX,
                batch_size=8,
                num_threads=1,
                device_id=None,
                decode_mode=decode_mode,
            )
        )

    bad_images = bad_images or BadImages(index, "raise")
    loader = Loader(samples, build, torch.device("cpu"), 2, bad_images)
    starts = range(0, len(index), 8)
    indices = [np.arange(start, min(start + 8, len(index))) for start in starts]
    specs = [BatchSpec(i, len(i), 0, range(i[0], i[0] + len(i))) for i in indices]
    batches = [*loader.batches(specs)]
    missing = np.isin(np.concatenate(indices), [*bad_images.replacements]).sum()
    assert sum(batch.replaced for batch in batches) == missing
    return np.concatenate([batch.images.numpy() for batch in batches])


def _eval_batches(index, size_px=SIZE_PX):
    samples = EvalSamples(index, EvalLayout(len(index), 8), EvalGeometry(size_px, 1.0))

    def build():
        return eval_pipeline(
            EvalArguments(size_px=size_px, batch_size=8, num_threads=1, device_id=None)
        )

    loader = Loader(samples, build, torch.device("cpu"), 2, BadImages(index, "raise"))
    batches = loader.batches(samples.specs())
    return np.concatenate([batch.images[: batch.num_valid].numpy() for batch in batches])


def _names_of_unequal(index, got, expected):
    assert got.shape == expected.shape
    unequal = (got != expected).any(axis=(1, 2, 3))
    return [index.path(i).name for i in np.flatnonzero(unequal)]


WHOLE_IMAGE = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0}


@pytest.mark.parametrize("use", ["roi", "full", "shared", "eval"])
def test_every_kind_of_file_has_pillows_pixels(odd_index, use):
    if use == "eval":
        got = _eval_batches(odd_index)
    else:
        got = _train_batches(odd_index, use, **WHOLE_IMAGE)
    expected = np.stack([np.asarray(_pillow(odd_index, i)) for i in range(len(odd_index))])
    assert not _names_of_unequal(odd_index, got, expected)


@pytest.mark.parametrize("use", ["roi", "full", "eval"])
def test_every_kind_of_file_is_cropped_as_its_pixels_in_a_png(oblong_indices, use):
    odd, twins = oblong_indices
    assert odd.widths.tolist() == twins.widths.tolist() == [61] * len(odd)
    got, expected = (
        _eval_batches(index) if use == "eval" else _train_batches(index, use)
        for index in (odd, twins)
    )
    assert not _names_of_unequal(odd, got, expected)


def test_the_log_says_once_which_files_pillow_decodes(photographs, tmp_path, caplog):
    files = _odd_files(photographs[0].resize((SIZE_PX, SIZE_PX)))
    index = _write(tmp_path / "data", files)
    bad_images = BadImages(index, "raise")
    with caplog.at_level(logging.INFO, "dali_rsb.loader.conversion"):
        for _ in range(2):
            _train_batches(index, "roi", bad_images)
    converted = int(np.isin(index.formats, [ImageFormat.GIF, ImageFormat.OTHER]).sum())
    said = [r.getMessage() for r in caplog.records if r.name == conversion.__name__]
    assert len(said) == 1
    assert said[0].startswith(f"{converted} of {len(index)} images in {index.root}")
    assert "kind/565.bmp" in said[0]
    # Next to the index, one whole copy each.
    copies = list((place_beside(tmp_path / "data") / "converted").iterdir())
    assert len(copies) == converted
    assert {copy.suffix for copy in copies} == {".ppm"}


def test_plain_files_are_read_as_they_are(odd_index):
    plain = [i for i in range(len(odd_index)) if odd_index.path(i).stem in ("rgb", "grey", "rgba")]
    plain = [i for i in plain if odd_index.path(i).suffix != ".tif"]
    paths = odd_index.image_arrays(np.array(plain))
    Conversions(odd_index).substitute(paths, np.array(plain))
    assert [path.tobytes().decode() for path in paths] == [str(odd_index.path(i)) for i in plain]
    assert len(plain) > 6


@pytest.fixture
def six_files(photographs, tmp_path):
    """Six images of 48 x 48 pixels: a.gif and b.png to f.png."""
    tiles = [photograph.resize((SIZE_PX, SIZE_PX)) for photograph in photographs[:6]]
    files = {"a.gif": _encode(tiles[0].quantize(99), "GIF")}
    files |= {f"{name}.png": _encode(t, "PNG") for name, t in zip("bcdef", tiles[1:], strict=True)}
    return _write(tmp_path / "data", files)


def _expected(index, skip=()):
    return {i: np.asarray(_pillow(index, i)) for i in range(len(index)) if i not in skip}


def test_a_file_that_only_pillow_decodes_is_converted_not_replaced(six_files, caplog):
    # Unknown to the index: the GIF came after it was built, and nobody noticed.
    gif = _encode(_pillow(six_files, 0).quantize(64), "GIF")
    six_files.path(3).write_bytes(gif)
    status = six_files.path(3).stat()
    six_files.stamps[3] = (status.st_mtime_ns, status.st_size)
    bad_images = BadImages(six_files, "raise")
    with caplog.at_level(logging.INFO, "dali_rsb"):
        got = _train_batches(six_files, "roi", bad_images, **WHOLE_IMAGE)
        _train_batches(six_files, "roi", bad_images, **WHOLE_IMAGE)
    for i, expected in _expected(six_files).items():
        assert np.array_equal(got[i], expected)
    assert not bad_images.replacements
    assert caplog.text.count("the headers of those are read again") == 1


def test_a_file_that_neither_decodes_is_replaced(six_files):
    gif = six_files.path(0).read_bytes()
    six_files.path(0).write_bytes(gif[: len(gif) // 2])
    bad_images = BadImages(six_files)
    got = _train_batches(six_files, "roi", bad_images, **WHOLE_IMAGE)
    assert bad_images.replacements == {0: 1}
    assert np.array_equal(got[0], got[1])
    with pytest.raises(UserError, match=r"a\.gif cannot be decoded"):
        _eval_batches(six_files)


class _PickyDecoder:
    """Stands for a GPU's decoder: rejects one file that the CPU's decodes."""

    def __init__(self, rejected, message="decoding failed"):
        self._rejected = rejected
        self._message = message

    def run(self, path, size):
        if path[0].tobytes().decode() == str(self._rejected):
            raise RuntimeError(self._message)


def test_a_file_that_only_the_gpu_rejects_is_converted(six_files, monkeypatch, caplog):
    def check_pipeline(source, device_id=None):
        if device_id is None:
            return decode_check_pipeline(source)
        return _PickyDecoder(six_files.path(3))

    monkeypatch.setattr("dali_rsb.loader.bad_images.decode_check_pipeline", check_pipeline)
    bad_images = BadImages(six_files, "raise")
    failure = RuntimeError("the graph failed")
    with pytest.raises(RuntimeError, match="the graph failed"):
        bad_images.find(np.arange(6), failure)
    with caplog.at_level(logging.INFO, "dali_rsb"):
        bad_images.find(np.arange(6), failure, device_id=0)
    said = [message for message in caplog.messages if "d.png" in message]
    assert len(said) == 1
    assert "is decoded by Pillow, as DALI rejects it" in said[0]
    got = bad_images.conversions.image_array(3).tobytes().decode()
    assert got.endswith(".ppm")
    assert np.array_equal(np.asarray(Image.open(got)), np.asarray(_pillow(six_files, 3)))
    with pytest.raises(RuntimeError, match="the graph failed"):  # the copy is accepted
        bad_images.find(np.arange(6), failure, device_id=0)


def test_a_gpu_is_asked_only_where_the_cpu_finds_nothing(six_files, monkeypatch):
    def check_pipeline(source, device_id=None):
        assert device_id is None
        return decode_check_pipeline(source)

    monkeypatch.setattr("dali_rsb.loader.bad_images.decode_check_pipeline", check_pipeline)
    png = six_files.path(2).read_bytes()
    six_files.path(2).write_bytes(png[: len(png) // 2])
    bad_images = BadImages(six_files)
    bad_images.admit(np.arange(6))  # its header is whole
    bad_images.find(np.arange(6), RuntimeError("decoding failed"), device_id=0)
    assert bad_images.replacements == {2: 3}


def test_a_gpu_that_fails_is_not_an_images_fault(six_files, monkeypatch):
    out_of_memory = "CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory"

    def check_pipeline(source, device_id=None):
        if device_id is None:
            return decode_check_pipeline(source)
        return _PickyDecoder(six_files.path(3), out_of_memory)

    monkeypatch.setattr("dali_rsb.loader.bad_images.decode_check_pipeline", check_pipeline)
    bad_images = BadImages(six_files, "raise")
    for failure in ("decoding failed", out_of_memory):
        with pytest.raises(RuntimeError, match="out of memory"):
            bad_images.find(np.arange(6), RuntimeError(failure), device_id=0)
    assert six_files.image_arrays(np.array([3]))[0].tobytes() == (
        bad_images.conversions.image_array(3).tobytes()
    )


def test_replaced_images_are_counted_once_however_they_are_found(six_files):
    six_files.path(5).write_bytes(b"no image")  # seen by its header, before the batch is built
    png = six_files.path(2).read_bytes()
    six_files.path(2).write_bytes(png[: len(png) // 2])  # makes the pipeline fail
    bad_images = BadImages(six_files, max_fraction=0.5)
    _train_batches(six_files, "roi", bad_images, **WHOLE_IMAGE)  # which compares the counts
    assert {*bad_images.replacements} == {2, 5}


def test_a_gif_may_stand_in(six_files):
    six_files.path(5).write_bytes(b"no image")
    bad_images = BadImages(six_files)
    got = _train_batches(six_files, "roi", bad_images, **WHOLE_IMAGE)
    assert bad_images.replacements == {5: 0}
    assert np.array_equal(got[5], np.asarray(_pillow(six_files, 0)))


def test_a_copy_that_vanished_is_made_again(six_files):
    bad_images = BadImages(six_files, "raise")
    first = _train_batches(six_files, "roi", bad_images)
    for copy in (six_files.place / "converted").iterdir():
        copy.unlink()
    assert np.array_equal(_train_batches(six_files, "roi", bad_images), first)


def test_a_file_that_changed_is_converted_anew(six_files):
    _eval_batches(six_files)
    new = _pillow(six_files, 0).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    six_files.path(0).write_bytes(_encode(new.quantize(99), "GIF"))
    assert np.array_equal(_eval_batches(six_files)[0], np.asarray(_pillow(six_files, 0)))


def test_later_runs_and_other_processes_use_the_same_copy(six_files, monkeypatch):
    first = Conversions(six_files).image_array(0).tobytes()
    monkeypatch.setattr(conversion, "_write", None)
    assert Conversions(six_files).image_array(0).tobytes() == first


def test_without_a_stored_index_copies_are_kept_in_the_users_cache(
    six_files, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = index_samples([(six_files.path(0), 0)], progress=False)
    copy = Conversions(index).image_array(0).tobytes().decode()
    assert copy.startswith(str(tmp_path / "cache/dali_rsb/converted"))


def test_a_folder_that_cannot_be_written_is_the_users_mistake(six_files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    index = index_samples([(six_files.path(0), 0)], progress=False)
    with pytest.raises(UserError, match="cannot write a converted copy"):
        Conversions(index).image_array(0)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 3), (1, 1000)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_images_of_few_pixels(photographs, tmp_path, size, suffix):
    image = photographs[0].resize((1000, 1000)).crop((0, 0, *size))
    content = {"jpg": "JPEG", "png": "PNG", "gif": "GIF"}[suffix]
    image = image.quantize(16) if suffix == "gif" else image
    index = _write(tmp_path / "data", {f"1.{suffix}": _encode(image, content)})
    twin = _write(tmp_path / "twin", {"1.png": _encode(_pillow(index, 0), "PNG")})
    for decode_mode in ("roi", "full"):
        got, expected = (_train_batches(i, decode_mode) for i in (index, twin))
        assert np.array_equal(got, expected)
    assert np.array_equal(_eval_batches(index), _eval_batches(twin))


def test_very_large_images(photographs, tmp_path):
    large = photographs[0].resize((6000, 4000), Image.Resampling.BILINEAR)
    files = {"1.jpg": _encode(large, "JPEG"), "2.jpg": _encode(large, "JPEG", progressive=True)}
    index = _write(tmp_path / "data", files)
    start_s = time.monotonic()
    got = _eval_batches(index, 224)
    _train_batches(index, "roi")
    assert time.monotonic() - start_s < 30
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_kib < 6 * 2**20
    middle = _pillow(index, 0).crop((1000, 0, 5000, 4000))
    expected = np.asarray(middle.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got[0] - expected).mean() < 0.3

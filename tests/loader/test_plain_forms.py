"""What DALI decodes, as a white list; all else has the pixels of Pillow, or is refused."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile

from benchmarks.mutations import mutated
from benchmarks.pillow_pixels import GOOD, verdicts
from dali_rsb import DaliLoader
from dali_rsb.dataset import open_index
from dali_rsb.dataset.image_header import ImageFormat, read_header_of_bytes
from dali_rsb.errors import UserError
from dali_rsb.loader import conversion
from dali_rsb.loader.conversion import Conversions

SIZE_PX = 32


def _pixels(seed=0, size=(SIZE_PX, SIZE_PX)):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _encoded(image, image_format, **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _plain(seed):
    """One file of each form that DALI decodes, by name."""
    rgb = _pixels(seed)
    grey, palette, rgba = rgb.convert("L"), rgb.quantize(50), rgb.convert("RGBA")
    return {
        "baseline.jpg": _encoded(rgb, "JPEG"),
        "4:4:4.jpg": _encoded(rgb, "JPEG", subsampling=0),
        "progressive.jpg": _encoded(rgb, "JPEG", progressive=True),
        "grey.jpg": _encoded(grey, "JPEG"),
        "restart.jpg": _encoded(rgb, "JPEG", restart_marker_blocks=2),
        "trailer.jpg": _encoded(rgb, "JPEG") + bytes(2000),
        "rgb.png": _encoded(rgb, "PNG"),
        "rgba.png": _encoded(rgba, "PNG"),
        "grey.png": _encoded(grey, "PNG"),
        "palette.png": _encoded(palette, "PNG", transparency=3),
        "bit.png": _encoded(rgb.convert("1"), "PNG"),
        "lossy.webp": _encoded(rgb, "WEBP"),
        "lossless.webp": _encoded(rgba, "WEBP", lossless=True),
        "lossy with alpha.webp": _encoded(rgba, "WEBP"),
        "profile.webp": _encoded(rgb, "WEBP", icc_profile=b"profile"),
        "rgb.bmp": _encoded(rgb, "BMP"),
        "rgba.bmp": _encoded(rgba, "BMP"),
        "rgb.tif": _encoded(rgb, "TIFF"),
        "grey.tif": _encoded(grey, "TIFF"),
        "rgb.ppm": _encoded(rgb, "PPM"),
        "grey.pgm": _encoded(grey, "PPM"),
    }


def _not_plain(seed):
    """Files of the same formats that are not on the list."""
    rgb, other = _pixels(seed), _pixels(seed + 1)
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    png = _encoded(rgb, "PNG")
    return {
        "cmyk.jpg": _encoded(rgb.convert("CMYK"), "JPEG"),
        "a scan without data.jpg": _with_segment_again(_encoded(rgb, "JPEG"), b"\xff\xda"),
        "long trailer.jpg": _encoded(rgb, "JPEG") + bytes(5000),
        "several.jpg": b"\xff\xd8\xff\xfe\0\4ab\0\0" + _encoded(rgb, "JPEG")[2:],
        "two frames.png": _encoded(rgb, "PNG", save_all=True, append_images=[other]),
        "picture and frames.png": _encoded(
            rgb, "PNG", save_all=True, append_images=[other, rgb], default_image=True
        ),
        "deep.png": _encoded(deep, "PNG"),
        "unknown chunk.png": png[:33] + _chunk(b"cICP", bytes([9, 16, 0, 1])) + png[33:],
        "two headers.png": png[:33] + png[8:33] + png[33:],
        "frames.webp": _encoded(rgb, "WEBP", save_all=True, append_images=[other]),
        "with bytes behind.webp": _encoded(rgb, "WEBP") + b"12",
        "exif.webp": _encoded(rgb, "WEBP", exif=_exif()),
        "xmp.webp": _encoded(rgb.convert("RGBA"), "WEBP", xmp=b"<x/>"),
        "palette.bmp": _encoded(rgb.quantize(50), "BMP"),
        "lzw.tif": _encoded(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _encoded(rgb, "TIFF", compression="jpeg"),
        "rgba.tif": _encoded(rgb.convert("RGBA"), "TIFF"),
        "cmyk.tif": _encoded(rgb.convert("CMYK"), "TIFF"),
        "turned.tif": _encoded(rgb, "TIFF", tiffinfo={274: 6}),
        "deep.pgm": _encoded(deep, "PPM"),
        "levels.ppm": b"P6 %d %d 100\n" % rgb.size + (np.asarray(rgb) // 3).tobytes(),
    }


def _exif():
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a picture"
    return exif.tobytes()


def _with_segment_again(jpeg, marker):
    start = jpeg.index(marker)
    end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:end] + jpeg[start:]


def _chunk(name, data):
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _format(data):
    return read_header_of_bytes(np.frombuffer(data, np.uint8))[2]


@pytest.mark.parametrize("seed", range(3))
def test_the_list_holds_these_forms_and_no_others(seed):
    off = [name for name, data in _plain(seed).items() if _format(data) == ImageFormat.OTHER]
    assert not off
    on = [name for name, data in _not_plain(seed).items() if _format(data) != ImageFormat.OTHER]
    assert not on


def _write(folder, files):
    (folder / "a").mkdir(parents=True)
    for name, data in files.items():
        (folder / "a" / name).write_bytes(data)
    return folder


def _images(folder, **options):
    with DaliLoader(
        folder,
        64,
        size_px=SIZE_PX,
        crop_ratio=1.0,
        dtype=torch.uint8,
        device="cpu",
        num_threads=1,
        **options,
    ) as loader:
        names = [name.rpartition("/")[2] for name in loader.dataset.filenames()]
        images = torch.cat([images for images, _ in loader]).permute(0, 2, 3, 1).numpy()
    return dict(zip(names, images, strict=True))


def test_all_of_them_have_pillows_pixels(tmp_path):
    files = _plain(5) | _not_plain(5)
    # Pillow's decoder of GIF, BMP and others may read what is behind the image as well.
    del files["a scan without data.jpg"]  # which Pillow refuses
    images = _images(_write(tmp_path, files))
    assert images.keys() == files.keys()
    unequal = [
        name
        for name, image in images.items()
        if not np.array_equal(image, np.asarray(Image.open(tmp_path / "a" / name).convert("RGB")))
    ]
    assert not unequal


def test_mutations_have_pillows_pixels_or_are_refused(tmp_path):
    files = _plain(7) | _not_plain(7)
    folder = _write(tmp_path, files)
    todo = [(f"a/{name}", seed) for name in files for seed in range(8)]
    found = list(verdicts(folder, todo))
    wrong = [(*task, *f) for task, f in zip(todo, found, strict=True) if f[1] not in GOOD]
    assert not wrong
    assert len({verdict for _, verdict in found}) >= 3  # not all refused, not all unharmed


def test_a_mutation_is_drawn_from_its_seed_alone():
    data = _encoded(_pixels(), "PNG")
    first, second = ([mutated(data, np.random.default_rng(s)) for s in range(40)] for _ in "ab")
    assert first == second
    assert len({kind for kind, _ in first}) > 5


def test_a_rejected_jpeg_is_converted_before_anything_else_asked_pillow(tmp_path):
    # Pillow knows no format until its plugins are loaded, which `Image.open` does by itself.
    path = tmp_path / "1.jpg"
    path.write_bytes(_encoded(_pixels(), "JPEG"))
    program = (
        "import sys; from dali_rsb.dataset.image_header import open_with_pillow\n"
        "print(open_with_pillow(open(sys.argv[1], 'rb')).convert('RGB').size)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"({SIZE_PX}, {SIZE_PX})\n"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_what_allows_truncated_files_leaves_nothing_to_those_that_do_not(
    tmp_path, monkeypatch, suffix
):
    image = _pixels(3, (400, 300))
    data = {
        "jpg": _encoded(image, "JPEG"),
        "png": _encoded(image, "PNG"),
        "gif": _encoded(image.quantize(60), "GIF"),
    }[suffix]
    files = {f"{i}.{suffix}": data for i in range(3)}
    files[f"1.{suffix}"] = data[: len(data) * 2 // 3]
    folder = _write(tmp_path / "data", files)
    for allowed in (False, True, False):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
        if allowed:
            assert len(_images(folder)) == 3
        else:
            with pytest.raises(UserError, match=rf"1\.{suffix} cannot be decoded"):
                _images(folder)


@pytest.mark.parametrize("fact", ["__version__", "_VERSION"])
def test_a_copy_of_another_version_is_made_again(tmp_path, monkeypatch, fact):
    folder = _write(tmp_path / "data", {"1.gif": _encoded(_pixels().quantize(9), "GIF")})
    index = open_index(folder, progress=False)
    first = Conversions(index).image_array(0).tobytes()
    assert Conversions(index).image_array(0).tobytes() == first
    monkeypatch.setattr(conversion, fact, "another")
    assert Conversions(index).image_array(0).tobytes() != first

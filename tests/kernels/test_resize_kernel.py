"""Crop, resize and mirror of a CPU pipeline: the compiled kernel against Pillow, to the bit."""

import os

import numpy as np
import PIL
import pytest
from PIL import Image

from dali_rsb.dataset.raw import places
from dali_rsb.kernels.numba_support import numba_obstacle
from dali_rsb.kernels.resize_numba import resize_numba
from dali_rsb.loader import cpu_resize
from pipelines.types import INTERPOLATIONS

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized_by_pillow(image, window, is_cubic, size):
    """One axis after the other: Pillow 13 turns them round for windows that are tall."""
    start_y, start_x, end_y, end_x = window
    rows = slice(min(start_y, end_y), max(start_y, end_y))
    columns = slice(min(start_x, end_x), max(start_x, end_x))
    part, resample = np.ascontiguousarray(image[rows, columns]), FILTERS[int(is_cubic)]
    along_x = Image.fromarray(part).resize((size, len(part)), resample)
    result = np.asarray(along_x.resize((size, size), resample))
    return result[:: -1 if start_y > end_y else 1, :: -1 if start_x > end_x else 1]


def resized(images, windows, is_cubic, size, raw=None):
    """By the kernel: results, and which images could not be read."""
    results = np.full((len(windows), size, size, 3), 77, np.uint8)
    failed = np.zeros(len(windows), bool)
    raw = np.empty((0, places.NUM_COLUMNS), np.int64) if raw is None else raw
    addresses = np.array([image.ctypes.data for image in images])
    shapes = np.array([image.shape[:2] for image in images])
    windows = np.array(windows, np.int64)
    resize_numba(addresses, shapes, windows, np.array(is_cubic), raw, results, failed, 0, 1)
    return results, failed


def random_windows(generator, count, largest):
    for _ in range(count):
        height, width = generator.integers(1, largest, 2).tolist()
        starts = [int(generator.integers(0, side)) for side in (height, width)]
        ends = [
            int(generator.integers(start, side)) + 1
            for start, side in zip(starts, (height, width), strict=True)
        ]
        axes = [
            (end, start) if generator.integers(2) else (start, end)
            for start, end in zip(starts, ends, strict=True)
        ]
        (start_y, end_y), (start_x, end_x) = axes
        yield noise(height, width), (start_y, start_x, end_y, end_x)


@pytest.mark.parametrize("largest", [20, 400])
@pytest.mark.parametrize("size", [1, 5, 6, 16, 31, 64, 160])
def test_windows_have_pillows_pixels_to_the_bit(size, largest):
    """From windows of one pixel to large ones, both filters, mirrored along either axis."""
    generator = np.random.default_rng(size)
    images, windows = zip(*random_windows(generator, 40, largest), strict=True)
    is_cubic = generator.integers(0, 2, len(images)).astype(bool)
    results, failed = resized(images, windows, is_cubic, size)
    assert not failed.any()
    for got, *of_window in zip(results, images, windows, is_cubic, strict=True):
        assert np.array_equal(got, resized_by_pillow(*of_window, size)), of_window[1:]


def test_pillow_itself_agrees_but_for_tall_windows_from_13_on():
    generator, size = np.random.default_rng(0), 96
    has_changed = int(PIL.__version__.partition(".")[0]) >= 13
    tall = 0
    for height, width in generator.integers(40, 400, (40, 2)).tolist():
        image, is_cubic = noise(height, width), bool(generator.integers(2))
        (got,), _ = resized([image], [(0, 0, height, width)], [is_cubic], size)
        whole = Image.fromarray(image).resize((size, size), FILTERS[int(is_cubic)])
        is_tall = height > size and height - size > 2 * (width - size)
        assert np.array_equal(got, np.asarray(whole)) != (is_tall and has_changed), (height, width)
        tall += is_tall
    assert 0 < tall < 40


def test_levels_are_clipped_where_the_cubic_overshoots():
    image = np.zeros((40, 40, 3), np.uint8)
    image[::4, ::4] = 255
    window = (0, 0, 40, 40)
    (got,), _ = resized([image], [window], [True], 96)
    assert np.array_equal(got, resized_by_pillow(image, window, True, 96))
    assert {0, 255} <= {*np.unique(got)}


@pytest.mark.parametrize(
    "window",
    [
        (-1, 0, 20, 20),
        (0, -1, 20, 20),
        (0, 0, 41, 20),
        (0, 61, 20, 0),
        (5, 5, 5, 20),
        (0, 9, 20, 9),
    ],
)
def test_a_window_that_is_no_part_of_its_image_is_an_error_and_reads_nothing(window):
    image, whole = noise(40, 60), (0, 0, 40, 60)
    got, failed = resized([image] * 3, [whole, window, whole], [False] * 3, 32)
    assert failed.tolist() == [False, True, False]
    assert (got[1] == 77).all()
    assert np.array_equal(got[2], resized_by_pillow(image, whole, False, 32))
    start, end = (np.array(part, np.float32) for part in (window[:2], window[2:]))
    code = np.int32(INTERPOLATIONS["bilinear"])
    with pytest.raises(ValueError, match=r"is empty or leaves an image of \[40, 60\]"):
        cpu_resize.CpuResize(32, 1)([image], [start], [end], [code])


def test_only_contiguous_images_are_taken():
    corner = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="contiguous"):
        cpu_resize.CpuResize(32, 1)(
            [noise(40, 60)[:, ::2]], [corner], [corner + 8], [np.int32(INTERPOLATIONS["bicubic"])]
        )


@pytest.fixture
def rows_in_a_file(tmp_path):
    """Rows 10 to 50 of an image 90 pixels wide, 7 bytes into a file; the window begins at 20."""
    image = noise(60, 90)
    (tmp_path / "shard").write_bytes(b"header." + image[10:50].tobytes())
    descriptor = os.open(tmp_path / "shard", os.O_RDONLY)
    yield image, np.array([[descriptor, 7, 270, 20, 40, 60]])
    os.close(descriptor)


def test_pixels_are_read_from_a_file(rows_in_a_file):
    image, raw = rows_in_a_file
    assert [places.DESCRIPTOR, places.START, places.ROW_BYTES] == [0, 1, 2]
    assert [places.LEFT, places.HEIGHT, places.WIDTH] == [3, 4, 5]
    none = np.zeros((1, 1, 3), np.uint8)
    windows = [(0, 0, 40, 60), (5, 50, 35, 3)]
    for window in windows:
        (got,), failed = resized([none], [window], [True], 32, raw)
        assert not failed[0]
        assert np.array_equal(got, resized_by_pillow(image[10:50, 20:80], window, True, 32))
    both = np.concatenate([raw, np.full((1, places.NUM_COLUMNS), -1)])
    got, _ = resized([none, image], [windows[0]] * 2, [False] * 2, 32, both)
    assert np.array_equal(got[1], resized_by_pillow(image, windows[0], False, 32))


def test_a_file_that_ends_too_early_is_an_error_and_no_other_image_suffers(rows_in_a_file):
    image, raw = rows_in_a_file
    places_of = np.concatenate([raw, np.full((1, places.NUM_COLUMNS), -1)])
    places_of[0, places.HEIGHT] = 41
    window = (0, 0, 40, 60)
    got, failed = resized([image] * 2, [window] * 2, [False] * 2, 32, places_of)
    assert failed.tolist() == [True, False]
    assert np.array_equal(got[1], resized_by_pillow(image, window, False, 32))
    start, end = np.array([0, 0], np.float32), np.array([40, 60], np.float32)
    code = np.int32(INTERPOLATIONS["bilinear"])
    with pytest.raises(OSError, match="the file ends before the image does"):
        cpu_resize.CpuResize(32, 1)([image] * 2, [start] * 2, [end] * 2, [code] * 2, places_of)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_threads_share_a_batch_and_without_numba_torch_comes_near(batch, monkeypatch):
    generator = np.random.default_rng(batch)
    images, windows = zip(*random_windows(generator, batch, 200), strict=True)
    names = generator.choice([*INTERPOLATIONS], batch)
    codes = [np.int32(INTERPOLATIONS[name]) for name in names]
    starts = [np.array(window[:2], np.float32) for window in windows]
    ends = [np.array(window[2:], np.float32) for window in windows]
    assert numba_obstacle() is None
    resize = cpu_resize.CpuResize(100, 2)
    got = np.stack(resize(images, starts, ends, codes))
    for result, image, window, name in zip(got, images, windows, names, strict=True):
        assert np.array_equal(result, resized_by_pillow(image, window, name == "bicubic", 100))
    monkeypatch.setattr(cpu_resize, "numba_obstacle", lambda: "the package is not installed")
    by_torch = np.stack(resize(images, starts, ends, codes))
    assert np.abs(by_torch.astype(int) - got).max() <= 2

"""Tiled JPEGs: what can be tiled, where the tiles lie, and the pixels of windows made of them."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.jpeg_kinds import encoded, jpegs, picture, with_fill_bytes
from benchmarks.tile_pixels import assembled, cut_out, decode_windows, decoded_of_tiles, windows_of
from dali_rsb.dataset.tiles import assembly, transcoding
from dali_rsb.dataset.tiles.assembly import cut
from dali_rsb.dataset.tiles.layout import TILE_ARRAYS, CannotTileError, Tiles, read_layout
from dali_rsb.dataset.tiles.transcoding import check_jpegtran, tile_mcus, transcode
from dali_rsb.dataset.windows import Windows
from dali_rsb.errors import UserError

needs_jpegtran = pytest.mark.skipif(
    shutil.which("jpegtran") is None or shutil.which("cjpeg") is None,
    reason="needs jpegtran and cjpeg of libjpeg-turbo",
)


FRAME = b"\xff\xc0\0\x11\x08"  # marker, length and 8 bits a sample


def _tiled_by_pillow(size, seed=0, **options):
    """A JPEG with an interval for every second unit of 16 x 16 pixels."""
    return encoded(picture(size, seed), restart_marker_blocks=2, **options)


def _windows(*edges):
    return Windows(*np.array(edges, np.int64).T)


def _decoded(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _num_different(jpeg, tiled, tiles, size, windows):
    """Windows whose pixels are not those that Pillow and DALI decode of the original."""
    count = len(windows.top)
    sizes = np.tile(np.array([size[1], size[0], 3], np.int32), (count, 1))
    results = (
        decode_windows([np.frombuffer(jpeg, np.uint8)] * count, sizes, windows),
        cut_out([_decoded(jpeg)] * count, windows),
        *decoded_of_tiles(tiled, tiles, size, windows),
    )
    return sum(
        not all(np.array_equal(levels[0], other) for other in levels[1:])
        for levels in zip(*results, strict=True)
    )


@needs_jpegtran
@pytest.mark.parametrize("size", [(255, 130), (61, 47), (7, 9)])
def test_windows_of_tiles_have_the_pixels_of_the_original(size):
    rng = np.random.default_rng(0)
    for kind, jpeg in jpegs(size, seed=3).items():
        tiled, layout = transcode(jpeg)
        windows = windows_of(size, 16, rng)
        tiles = Tiles.of_layouts([layout])
        assert _num_different(jpeg, tiled, tiles, size, windows) == 0, kind


def test_a_window_needs_the_chroma_beside_it(monkeypatch):
    size = (320, 64)
    jpeg = _tiled_by_pillow(size, subsampling="4:2:0")
    tiles = Tiles.of_layouts([read_layout(jpeg)])
    windows = _windows((16, 32, 32, 64), (16, 64, 16, 32))  # they end where tiles do
    assert _num_different(jpeg, jpeg, tiles, size, windows) == 0
    monkeypatch.setattr(assembly, "MARGIN_PX", 0)
    assert _num_different(jpeg, jpeg, tiles, size, windows) == 2


def test_a_batch_is_cut_at_once():
    sizes = [(320, 64), (96, 96), (64, 64), (320, 64)]
    jpegs_ = [_tiled_by_pillow(size, seed) for seed, size in enumerate(sizes)]
    layouts = [read_layout(jpeg) for jpeg in jpegs_]
    layouts[2] = None  # not tiled
    images = np.array([3, 0, 2, 1, 0])
    widths, heights = np.array([sizes[i] for i in images]).T
    windows = _windows(
        (0, 5, 20, 30), (0, 0, 64, 320), (5, 5, 9, 9), (40, 40, 9, 9), (60, 310, 4, 10)
    )
    found = cut(Tiles.of_layouts(layouts), images, widths, heights, windows)
    assert found.rows.tolist() == [0, 3, 4]
    assert found.origins.tolist() == [[0, 0], [0, 0], [0, 0], [32, 32], [48, 288]]
    small = assembled(found, [jpegs_[i] for i in images[found.rows]])
    of_originals = Windows(*(edge[found.rows] for edge in vars(windows).values()))
    top, left = (of_originals.top, of_originals.left) - found.origins[found.rows].T
    inside = Windows(top, left, of_originals.height, of_originals.width)
    expected = cut_out([_decoded(jpegs_[i]) for i in images[found.rows]], of_originals)
    pixels = cut_out([_decoded(jpeg.tobytes()) for jpeg in small], inside)
    assert all(map(np.array_equal, pixels, expected))


@pytest.mark.parametrize("rows", [[2, 0, 0, 1], [3], []])
def test_the_layouts_of_some_images_are_as_if_there_were_no_others(rows):
    sizes = [(320, 64), (96, 96), (64, 64)]
    layouts = [read_layout(_tiled_by_pillow(size, seed)) for seed, size in enumerate(sizes)]
    layouts.append(None)
    taken = Tiles.of_layouts(layouts).take(np.array(rows, np.int64))
    expected = Tiles.of_layouts([layouts[row] for row in rows])
    for name in TILE_ARRAYS:
        column, other = getattr(taken, name), getattr(expected, name)
        assert column.dtype == other.dtype
        assert column.tolist() == other.tolist(), name


def test_nothing_is_cut_of_a_batch_without_tiles():
    found = cut(
        Tiles.of_layouts([None]),
        np.zeros(2, np.int64),
        *np.full((2, 2), 64),
        _windows((0, 0, 9, 9), (1, 1, 9, 9)),
    )
    assert found.rows.size == 0
    assert assembled(found, []) == []


def test_parts_hold_the_bytes_that_are_copied():
    jpeg = _tiled_by_pillow((320, 64), exif=b"Exif\0\0" + bytes(5000))
    jpeg = transcoding._metadata_first(jpeg)
    layout = read_layout(jpeg)
    tiles = Tiles.of_layouts([layout])
    found = cut(
        tiles, np.zeros(1, np.int64), np.array([320]), np.array([64]), _windows((20, 100, 9, 9))
    )
    (((head_start, head_end), (start, end)),) = found.parts.tolist()
    (small,) = assembled(found, [jpeg])
    blank = bytearray(len(jpeg))
    for part in (slice(head_start, head_end), slice(start, end)):
        blank[part] = jpeg[part]
    assert head_start > 5000
    assert start > head_end
    assert end < len(jpeg) - 1000
    assert assembled(found, [bytes(blank)])[0].tobytes() == small.tobytes()


@pytest.mark.parametrize(
    ("mcus_per_row", "mcu_width", "expected"),
    [
        (32, 16, 2),  # 500 px in units of 16
        (63, 8, 3),  # 500 px in units of 8: 24 px
        (21, 16, 3),  # 333 px: 48 rather than 16
        (25, 16, 1),  # 400 px: 16 rather than 80
        (19, 16, 1),  # 16 px, as nothing else divides a prime number
        (47, 8, 47),  # 8 px would be too narrow
        (3, 8, 3),
    ],
)
def test_tiles_divide_a_row_and_are_near_32_px_wide(mcus_per_row, mcu_width, expected):
    assert tile_mcus(mcus_per_row, mcu_width) == expected


def test_layout_of_a_jpeg_without_metadata_is_read_off_its_markers():
    jpeg = _tiled_by_pillow((320, 64))
    layout = read_layout(jpeg)
    assert (layout.tile_width, layout.tile_height) == (32, 16)
    assert layout.head_start == 2
    assert len(layout.row_starts) == 4
    assert len(layout.tile_ends) == 40
    row_ends = layout.row_starts + layout.tile_ends.reshape(4, 10)[:, -1]
    assert row_ends.tolist() == [*layout.row_starts[1:].tolist(), len(jpeg)]
    ends = (layout.row_starts[:, None] + layout.tile_ends.reshape(4, 10)).ravel()
    markers = [jpeg[end - 2 : end] for end in ends]
    assert markers == [bytes([0xFF, 0xD0 + i % 8]) for i in range(39)] + [b"\xff\xd9"]
    assert jpeg[2 + layout.size_offset :][:4] == bytes([0, 64, 320 >> 8, 320 & 255])


@pytest.mark.parametrize(
    ("jpeg", "reason"),
    [
        (encoded(picture((64, 64), 0)), "no restart intervals that divide a row"),
        (encoded(picture((64, 64), 0), restart_marker_blocks=3), "no restart intervals"),
        (_tiled_by_pillow((64, 64), comment=b"among tables"), "other bytes between the tables"),
        (with_fill_bytes(_tiled_by_pillow((64, 64))), "other bytes between the tables"),
        (_tiled_by_pillow((64, 64)) + b"more", "data between or after"),
        (_tiled_by_pillow((64, 64))[:-300] + b"\xff\xd9", "data between or after"),
        (_tiled_by_pillow((64, 64), progressive=True), "not baseline"),
        (encoded(picture((64, 64), 0).convert("CMYK")), "4 colour components"),
        (_tiled_by_pillow((64, 64)).replace(FRAME, b"\xff\xc1\0\x11\x0c"), "12 bits"),
        (_tiled_by_pillow((64, 64))[:300], "damaged header"),
        (_tiled_by_pillow((64, 64)).replace(FRAME + b"\0\x40", FRAME + b"\0\0"), "height"),
    ],
)
def test_what_has_no_tiles_says_why(jpeg, reason):
    with pytest.raises(CannotTileError, match=reason):
        read_layout(jpeg)


def test_a_row_of_too_many_bytes_is_not_tiled():
    noise = np.random.default_rng(0).integers(0, 256, (8, 8000, 3), np.uint8)
    jpeg = encoded(
        Image.fromarray(noise), quality=100, subsampling="4:4:4", restart_marker_blocks=4
    )
    with pytest.raises(CannotTileError, match="a row of more than 65535 bytes"):
        read_layout(jpeg)


@needs_jpegtran
def test_transcoding_keeps_metadata_and_makes_every_kind_baseline():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    profile = bytes(range(256)) * 400
    jpeg = encoded(picture((300, 200), 0), exif=exif, icc_profile=profile, progressive=True)
    tiled, layout = transcode(jpeg)
    with Image.open(io.BytesIO(tiled)) as image:
        assert image.getexif()[0x010E] == "a description"
        assert image.info["icc_profile"] == profile
        assert not image.info.get("progressive")
    assert layout.head_start > len(profile)
    assert layout.head_length < 2000
    # Once tiled, a JPEG stays as it is.
    assert transcode(tiled)[0] == tiled


@needs_jpegtran
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(picture((64, 64), 0))[:-200], "damaged data"),
        (_tiled_by_pillow((320, 64))[:-100], "damaged data"),  # in its last interval
        (encoded(picture((64, 64), 0).convert("CMYK")), "4 colour components"),
        (b"\x89PNG\r\n\x1a\n", "no JPEG"),
        (b"", "no JPEG"),
        (b"\xff\xd8\xff", "damaged header"),
    ],
)
def test_what_cannot_be_tiled_says_why(data, reason):
    with pytest.raises(CannotTileError, match=reason):
        transcode(data)


@needs_jpegtran
def test_several_images_in_one_file_are_not_tiled():
    stream = io.BytesIO()
    picture((64, 64), 0).save(stream, "MPO", save_all=True, append_images=[picture((64, 64), 1)])
    with pytest.raises(CannotTileError, match="pixels that change"):
        transcode(stream.getvalue())


@needs_jpegtran
def test_pixels_that_change_are_noticed(monkeypatch):
    monkeypatch.setattr(
        transcoding, "_jpegtran", lambda *_: _tiled_by_pillow((64, 64), seed=2, quality=84)
    )
    with pytest.raises(CannotTileError, match="pixels that change"):
        transcode(_tiled_by_pillow((64, 64), seed=2, quality=85))


def test_without_jpegtran_the_message_says_where_it_comes_from(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    transcoding._program.cache_clear()
    with pytest.raises(UserError, match="apt-get install libjpeg-turbo-progs"):
        check_jpegtran()
    transcoding._program.cache_clear()

"""HTML pages: what the browser makes of them, texts that would be markup, and files."""

import base64
import io
import re

import numpy as np
import pytest
from browser import DESKTOP_PX, shown
from PIL import Image

from dali_rsb.errors import UserError
from dali_rsb.pictures.page import (
    Code,
    Facts,
    Gallery,
    Mark,
    Page,
    Picture,
    Section,
    Svg,
    Table,
    Text,
)

NASTY = '<script>console.log("run")</script> & "quoted" \udce9\n'
RED, GREEN = (200, 0, 0), (0, 160, 0)
SVG = (
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="90" height="30">'
    '<clipPath id="half"><rect width="45" height="30"/></clipPath>'
    f'<rect width="90" height="30" fill="rgb{GREEN}" clip-path="url(#half)"/></svg>'
)


def page(*blocks):
    return Page(f"Title {NASTY}", NASTY, [Section(f"Heading {NASTY}", blocks)])


@pytest.fixture(scope="module")
def every_block():
    picture = Picture(Image.new("RGB", (40, 30), RED), NASTY, [NASTY, Mark(NASTY)])
    wide = [f"column {number} {NASTY}" for number in range(30)]
    return page(
        *(Text(NASTY), Text(NASTY, "bad"), Code(f"{NASTY}{NASTY}"), picture, Svg(SVG, NASTY)),
        Gallery([picture] * 9),
        Table(wide, [[NASTY, Mark(NASTY), picture, *wide[3:]]], NASTY, numbers=[0]),
        Facts([(NASTY, "12"), ("name", NASTY, NASTY)]),
    )


@pytest.mark.parametrize(("width", "dark"), [(390, True), (DESKTOP_PX, False)])
def test_every_block_with_texts_that_would_be_markup_shows_without_a_message(
    every_block, tmp_path, width, dark
):
    every_block.write(tmp_path / "page.html")
    screen = shown(tmp_path / "page.html", width, dark)
    assert screen.width == width  # only tables scroll sideways
    colours = np.asarray(screen.image).reshape(-1, 3)
    in_sight = 11 if width == DESKTOP_PX else 10  # the phone's reader scrolls to the table's
    assert (colours == RED).all(1).sum() > (in_sight - 0.5) * 40 * 30  # corners are round
    assert (colours == GREEN).all(1).sum() == 45 * 30
    assert (colours[0].mean() < 60) == dark


def test_a_script_in_the_page_is_a_message(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(Text("text")).html().replace("<main>", "<main><script>1</script>"))
    with pytest.raises(AssertionError, match="Content Security Policy"):
        shown(path)


def test_names_that_are_no_text_become_printable(every_block):
    text = every_block.html()
    assert r"\xe9\n" in text
    assert text.isascii()
    assert "<script" not in text


def test_png_keeps_every_pixel_and_jpeg_is_smaller():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    text = page(Picture(image, "noise"), Picture(image, "noise", quality=50)).html()
    png, jpeg = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', text)[:2]
    with Image.open(io.BytesIO(base64.b64decode(png))) as found:
        assert np.array_equal(np.asarray(found), pixels)
    assert len(jpeg) < len(png) / 2


def test_drawings_of_one_page_keep_their_identifiers_apart():
    text = page(Svg(SVG, "one"), Svg(SVG.replace("45", "60"), "other")).html()
    assert len(set(re.findall(r'id="(\S+-half)"', text))) == 2
    assert set(re.findall(r'id="(\S+-half)"', text)) == set(re.findall(r"url\(#(\S+)\)", text))


def test_links_lead_to_the_sections_of_a_longer_page_only():
    assert Page("t", "l", [Section("one", [])] * 3).html().count('href="#section-') == 3
    assert 'href="#section-' not in Page("t", "l", [Section("one", [])] * 2).html()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/page\.html \(No such file"):
        page().write(tmp_path / "nowhere" / "page.html")
    assert not list(tmp_path.iterdir())

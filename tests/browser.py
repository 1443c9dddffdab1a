"""A page in headless Chromium: what it looks like, and that the browser has nothing to say of it.

The page is shown in a frame of the wanted width, since a window of Chromium is 500 pixels wide at
least; the frame then grows to the page's height.
"""

import html
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

PHONE_PX, DESKTOP_PX = 390, 1280
MAX_HEIGHT_PX = 12_000

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--hide-scrollbars", "--enable-logging=stderr"),
)
_FRAME = """<!DOCTYPE html><meta charset="utf-8"><title>not loaded</title>
<style>body {{ margin: 0 }} iframe {{ display: block; border: 0; width: {width}px }}</style>
<iframe src="{address}"></iframe>
<script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument.documentElement;
  document.title = page.scrollWidth + "x" + page.scrollHeight;
  frame.style.height = page.scrollHeight + "px";
}});
</script>"""


@dataclass(frozen=True)
class Shown:
    """A page as the browser shows it: its size in pixels, and all of it as an image."""

    width: int
    height: int
    image: Image.Image


def shown(page, width=PHONE_PX, dark=False):
    """Show a file; fails on any message of the browser's console, skips where there is no browser.

    Args:
        page: path of the HTML file.
        width: of the window in pixels.
        dark: whether the reader wants dark pages.
    """
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium, and there is none on the path")
    with tempfile.TemporaryDirectory(prefix="browser-") as folder:
        frame, picture = Path(folder, "frame.html"), Path(folder, "page.png")
        address = html.escape(Path(page).absolute().as_uri())
        frame.write_text(_FRAME.format(width=width, address=address))
        result = subprocess.run(
            [
                program,
                *_OPTIONS,
                f"--user-data-dir={folder}/profile",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--window-size={max(width, 500)},{MAX_HEIGHT_PX}",
                f"--screenshot={picture}",
                "--dump-dom",
                frame.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert picture.is_file(), f"no screenshot: {result.stderr[-2000:]}"
        messages = [line for line in result.stderr.splitlines() if re.search(r"\bCONSOLE\b", line)]
        assert not messages, "\n".join(messages)
        size = re.search(r"<title>(\d+)x(\d+)</title>", result.stdout)
        assert size, f"the page was not loaded: {result.stdout[:500]}"
        page_width, height = map(int, size.groups())
        with Image.open(picture) as image:
            image = image.convert("RGB").crop((0, 0, width, min(height, MAX_HEIGHT_PX)))
    return Shown(page_width, height, image)

"""Damaged images by the dozen, and a child process to feed them to: one crash ends no test run."""

import faulthandler
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

START_OF_FRAME, START_OF_SCAN = b"\xff\xc0", b"\xff\xda"


def encoded(width=48, height=40, file_format="JPEG", seed=0, **options):
    """An image of noise on a ground of colour: bytes of a file."""
    pixels = np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)
    pixels[:, :, seed % 3] += np.uint8(80)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def unreadable_headers():
    """Files whose header DALI cannot read, by name."""
    jpeg, png = encoded(), encoded(file_format="PNG")
    frame, scan = jpeg.index(START_OF_FRAME), jpeg.index(START_OF_SCAN)
    return {
        "empty": b"",
        "page of a server": b"<html>404 Not Found</html>" * 20,
        "JPEG without its magic": b"XX" + jpeg[2:],
        "JPEG cut in the frame header": jpeg[: frame + 6],
        "JPEG cut between frame and scan": jpeg[: frame + 19],
        "JPEG cut at the scan": jpeg[:scan],
        "PNG cut in its header": png[:20],
        "PNG with junk": png[:8] + b"junk" * 100,
    }


def in_child(module, *arguments, timeout_s=240):
    """Run a module of the tests in a process of its own; fail with its stack if it crashes.

    Returns what it printed to stdout.
    """
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", Path(__file__).with_name(module), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stderr[-6000:]}"
    return result.stdout


faulthandler.enable()

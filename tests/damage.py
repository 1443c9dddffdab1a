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


def damaged(seed=0):
    """Thirty-two files, each damaged in another way, by name; a few can still be decoded."""
    rng = np.random.default_rng(seed)
    jpeg = encoded(64, 64, seed=seed)
    png = encoded(64, 64, "PNG", seed=seed)
    webp, gif, bmp, tiff = (encoded(64, 64, name) for name in ("WEBP", "GIF", "BMP", "TIFF"))
    files = {
        **{f"JPEG cut at {n} eighths": jpeg[: len(jpeg) * n // 8] for n in range(1, 8)},
        **{f"PNG cut at {n} quarters": png[: len(png) * n // 4] for n in range(1, 4)},
        "WebP cut": webp[:200],
        "GIF cut": gif[:200],
        "BMP cut": bmp[:2000],
        "TIFF cut": tiff[:3000],
        "zeros": bytes(3000),
        "noise": rng.bytes(3000),
        "JPEG, entropy-coded data overwritten": _overwritten(jpeg, len(jpeg) // 2, rng.bytes(200)),
        "JPEG, markers in its data": _overwritten(jpeg, len(jpeg) // 2, b"\xff\xd9" * 100),
        "JPEG, Huffman table overwritten": _overwritten(
            jpeg, jpeg.index(b"\xff\xc4") + 4, b"\xff" * 20
        ),
        "JPEG, length of a table": _overwritten(jpeg, jpeg.index(b"\xff\xdb") + 2, b"\xff\xff"),
        "JPEG of 203 bits": _overwritten(jpeg, jpeg.index(START_OF_FRAME) + 4, b"\xcb"),
        "JPEG of 65,500 x 65,500": _overwritten(
            jpeg, jpeg.index(START_OF_FRAME) + 5, b"\xff\xdc" * 2
        ),
        "PNG, a bit flipped": _overwritten(png, len(png) // 2, bytes([png[len(png) // 2] ^ 255])),
        "another image, smaller": encoded(16, 16, seed=seed),
        "another image, larger": encoded(200, 300, seed=seed),
    }
    files |= unreadable_headers()
    position, bits = int(rng.integers(2, 600)), int(rng.integers(1, 256))
    files["JPEG, a byte of its header"] = _overwritten(
        jpeg, position, bytes([jpeg[position] ^ bits])
    )
    del files["JPEG cut at 1 eighths"], files["zeros"]
    return files


def _overwritten(data, at, by):
    return data[:at] + by + data[at + len(by) :]


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

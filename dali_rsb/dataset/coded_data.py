"""Finds JPEGs whose coded data a stray marker cuts short.

libjpeg fills what is missing with grey. Pillow reads on to the end of the file and refuses most of
these images there; DALI stops at the last row, and gives the grey as pixels. Headers do not tell,
so the whole file is read: 62 microseconds for 118 KB, on its first use alone.
"""

from __future__ import annotations

import numpy as np

from dali_rsb.dataset.tiles.layout import (
    EOI,
    FRAMES,
    RST0,
    RST7,
    SOF0,
    SOF1,
    CannotTileError,
    split_header,
)

# What may follow 0xFF in coded data: the zero of a coded 0xFF, a fill byte, a restart marker.
_GOES_ON = np.zeros(256, np.bool_)
_GOES_ON[[0x00, 0xFF, *range(RST0, RST7 + 1)]] = True


def is_cut_by_marker(encoded: bytes) -> bool:
    """Whether another marker than the end of the image may end the coded data of a JPEG.

    Of images of several scans, progressive ones among them, the answer is no: between scans there
    are markers, and DALI reads all of these images as Pillow does.

    Args:
        encoded: a JPEG whose header is in order (see `image_header`).
    """
    try:
        segments, start = split_header(encoded)
    except CannotTileError:  # bare markers in the header; what DALI makes of it nobody has tried
        return True
    frames = [segment for segment in segments if segment.marker in FRAMES]
    if len(frames) != 1 or frames[0].marker not in (SOF0, SOF1):
        return False
    components_of_frame, components_of_scan = frames[0].data[9], segments[-1].data[4]
    if components_of_scan != components_of_frame:
        return False
    data = np.frombuffer(encoded, np.uint8, offset=start)
    codes = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
    ends = codes[~_GOES_ON[codes]]
    return len(ends) > 0 and int(ends[0]) != EOI[1]

"""Notices files that have changed since their headers were read, when they are about to be used.

Crop windows are drawn for the size in the index; a file that has another one by now needs another
window. The index is brought up to date in memory, for this process; the stored one stays.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.image_header import NO_STAMP, read_header_of_bytes, read_stamped_header
from dali_rsb.dataset.index import DatasetIndex

# A local file system answers in 1 to 2 us. One that has to ask a server takes a hundred times as
# long, and answers many questions at once.
_NUM_FIRST, _SLOW_S, _NUM_THREADS = 16, 50e-6, 32


def update_changed(index: DatasetIndex, images: npt.NDArray[np.int64]) -> list[int]:
    """Read the headers of those images again whose files have another mtime or size by now.

    Args:
        images: [n], distinct. Each costs one `os.stat`.

    Returns:
        The images that have changed; `ImageFormat.UNREADABLE` in `index.formats` for those that are
        gone, or whose header cannot be read any more.

    Raises:
        UserError: a shard has been cut short.
    """
    if index.stamps is None:
        if index.shards is not None:
            index.shards.check_lengths(images)
        return []
    stamps = np.array(_stamps(index.path_strings(images)), np.int64).reshape(-1, 2)
    changed: list[int] = images[(stamps != index.stamps[images]).any(axis=1)].tolist()
    for image in changed:
        update(index, image)
    return changed


def update(index: DatasetIndex, image: int) -> bool:
    """Read the header of one image again; whether it differs from what the index held."""
    if index.shards is not None:
        width, height, image_format = read_header_of_bytes(index.shards.view(image))
    else:
        width, height, image_format, *stamp = read_stamped_header(index.path_array(image).tobytes())
        if index.stamps is not None:
            index.stamps[image] = stamp
    before = (index.widths[image], index.heights[image], index.formats[image])
    index.widths[image], index.heights[image], index.formats[image] = width, height, image_format
    return before != (width, height, image_format)


def _stamps(paths: Sequence[bytes]) -> list[tuple[int, int]]:
    start_s = time.perf_counter()
    stamps = [_stamp(path) for path in paths[:_NUM_FIRST]]
    if time.perf_counter() - start_s < _SLOW_S * len(stamps):
        return stamps + [_stamp(path) for path in paths[_NUM_FIRST:]]
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        return stamps + list(pool.map(_stamp, paths[_NUM_FIRST:]))


def _stamp(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 -- a Path takes longer to make than this
    except OSError:
        return NO_STAMP
    return status.st_mtime_ns, status.st_size

"""Notices files that have changed since their headers were read, when they are about to be used.

Crop windows are drawn for the size in the index; a file that has another one by now needs another
window. The index is brought up to date in memory, for this process; the stored one stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.index import DatasetIndex


def update_changed(index: DatasetIndex, images: npt.NDArray[np.int64]) -> list[int]:
    """Read the headers of those images again whose files have another mtime or size by now.

    Args:
        images: [n], distinct.

    Returns:
        The images that have changed; `ImageFormat.UNREADABLE` in `index.formats` for those that are
        gone, or whose header cannot be read any more.

    Raises:
        UserError: a shard has been cut short.
    """
    stamps = index.store.current_stamps(images)
    if stamps is None or index.stamps is None:
        return []
    changed: list[int] = images[(stamps != index.stamps[images]).any(axis=1)].tolist()
    for image in changed:
        update(index, image)
    return changed


def update(index: DatasetIndex, image: int) -> bool:
    """Read the header of one image again; whether it differs from what the index held."""
    width, height, image_format, *stamp = index.store.stamped_header(image)
    if index.stamps is not None:
        index.stamps[image] = stamp
    before = (index.widths[image], index.heights[image], index.formats[image])
    index.widths[image], index.heights[image], index.formats[image] = width, height, image_format
    return before != (width, height, image_format)

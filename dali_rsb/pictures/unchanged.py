"""Whether a dataset is still the one that a run was trained on; changes are refused by name.

Names and labels are compared by their digest, files by their time. A file that was replaced by one
of an older time is not noticed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from dali_rsb.dataset import DatasetIndex
from dali_rsb.errors import UserError
from dali_rsb.run.sessions import Session
from dali_rsb.system.names import printable

_FIX = "data.exclude=LIST leaves those out that are new; restore those that are gone"


def check_same_images(index: DatasetIndex, session: Session) -> None:
    """Refuse a dataset whose images are not those of a run, by number, names or labels.

    Raises:
        UserError: names one that is newer than the run, if there is one.
    """
    origin = printable(index.origin, 80)
    if session.num_images not in (None, len(index)):
        raise UserError(
            f"{origin} has {len(index):,} images, the run had {session.num_images:,}"
            f"{_newer(index, session)}: {_FIX}"
        )
    if session.num_classes not in (None, len(index.classes)):
        raise UserError(
            f"{origin} has {len(index.classes):,} classes, the run had {session.num_classes:,}"
            f"{_newer(index, session)}: {_FIX}"
        )
    if session.images_digest not in (None, index.digest()):
        raise UserError(
            f"{origin} has other names or labels than the run{_newer(index, session)}: {_FIX}"
        )


def check_same_files(index: DatasetIndex, images: Iterable[int], session: Session) -> None:
    """Refuse images whose files were written or removed after a session began.

    Raises:
        UserError: names the first one.
    """
    if session.started_s is None:
        return
    for image in sorted(images):
        changed_s = _changed_s(index, image)
        if changed_s is not None and changed_s > session.started_s:
            raise UserError(
                f"{printable(index.name(image), 110)} has changed since the run began "
                f"({_date(changed_s)}, {_date(session.started_s)}): restore it, or give --changed "
                "for the images as they are now"
            )


def _newer(index: DatasetIndex, session: Session) -> str:
    """An image that is newer than a session, for a message; empty if there is none."""
    if session.started_s is None:
        return ""
    stamps = index.store.current_stamps(np.arange(len(index)))
    if stamps is None:  # shards: one file holds many images
        return ""
    newer = np.flatnonzero(stamps[:, 0] > session.started_s * 1e9)
    if not len(newer):
        return ""
    return f"; {printable(index.name(int(newer[0])), 80)} is newer than the run"


def _changed_s(index: DatasetIndex, image: int) -> float | None:
    """When an image's file was last written or, if it is gone, its folder; None if not known."""
    if stamp := index.store.stamp(image):
        return stamp[0] / 1e9
    try:
        return index.path(image).parent.stat().st_mtime
    except OSError:
        return time.time()  # the folder is gone too


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))

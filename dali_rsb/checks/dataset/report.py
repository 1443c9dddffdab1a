"""What `dali-rsb verify` prints, and the list of images to leave out that it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from dali_rsb.checks.dataset.findings import Duplicates, Place, class_of
from dali_rsb.checks.dataset.scan import Outcome, Scan
from dali_rsb.dataset.counting import LOST, describe_left_out
from dali_rsb.dataset.storage import UNREADABLE, stored_unreadable
from dali_rsb.errors import UserError, one_line
from dali_rsb.system.atomic import atomic_file

_MAX_SHOWN = 10


def describe_scan(scanned: Scan) -> list[str]:
    """The lines about one dataset: used, left out, decoders, classes, sizes."""
    index = scanned.index
    left_out = sum(index.left_out.values())
    reasons = f" ({describe_left_out(index.left_out)})" if left_out else ""
    counts = np.bincount(index.labels, minlength=index.num_classes)
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    empty = [name for name, count in zip(index.classes, counts, strict=True) if not count]
    decoded = {name: scanned.outcomes.count(name) for name in get_args(Outcome)}
    by_dali = decoded["DALI"] + decoded["damaged"]
    lines = [
        str(index.origin),
        f"  used         {len(index):,} of {len(index) + left_out:,} entries; "
        f"{left_out:,} left out{reasons}",
        f"  decoded      {by_dali:,} by DALI, {decoded['Pillow']:,} by Pillow; "
        f"{decoded['undecodable']:,} by neither: training puts another image in their place",
        f"  classes      {index.num_classes:,}, of {counts.min():,} ({index.classes[smallest]}) to "
        f"{counts.max():,} images ({index.classes[largest]})",
    ]
    if empty:
        lines.append(f"  no images    of {len(empty):,} classes: {', '.join(empty[:_MAX_SHOWN])}")
    pixels = index.widths.astype(np.int64) * index.heights
    order = np.argsort(pixels, kind="stable")
    sizes = [f"{index.widths[i]}x{index.heights[i]}" for i in order[[0, len(order) // 2, -1]]]
    lines.append(f"  sizes        {sizes[0]} smallest, {sizes[1]} median, {sizes[2]} largest")
    return [one_line(line) for line in lines]


def describe_problems(scans: Sequence[Scan], duplicates: Duplicates) -> list[str]:
    """A line for each kind of finding, and its first images below; empty where all is well."""
    problems: list[str] = []
    for number, scanned in enumerate(scans):
        bad = [[Place(number, row)] for row in scanned.undecodable]
        problems += _groups(scans, bad, f"images of {scanned.index.origin} cannot be decoded")
        damaged = [[Place(number, row)] for row in scanned.damaged]
        what = f"images of {scanned.index.origin} are damaged: DALI decodes them, Pillow refuses"
        problems += _groups(scans, damaged, what)
        place = scanned.index.place
        lost = {reason: n for reason, n in scanned.index.left_out.items() if reason in LOST}
        if lost:
            problems.append(
                f"problem: {describe_left_out(lost)} of {scanned.index.origin}; listed in "
                f"{UNREADABLE if place is None else place / UNREADABLE}: restore them"
            )
    problems += _groups(scans, duplicates.across_classes, "images stand under several classes")
    problems += _groups(scans, duplicates.across_sets, "images are in both sets")
    return [one_line(line) for line in problems]


def _groups(scans: Sequence[Scan], groups: Sequence[Sequence[Place]], what: str) -> list[str]:
    if not groups:
        return []
    lines = [f"problem: {len(groups):,} {what}"]
    for group in groups[:_MAX_SHOWN]:
        names = [
            f"{scans[place.dataset].index.name(place.row)} ({class_of(scans, place)})"
            for place in group[:_MAX_SHOWN]
        ]
        lines.append("  " + " = ".join(names))
    more = len(groups) - _MAX_SHOWN
    return [*lines, f"  and {more:,} more"] if more > 0 else lines


def names_to_exclude(scans: Sequence[Scan], places: Sequence[Place]) -> list[str]:
    """Names of some images, and of all that the indices leave out, as they cannot be read."""
    names = [scans[place.dataset].index.name(place.row) for place in places]
    for scanned in scans:
        if scanned.index.place is not None and LOST & scanned.index.left_out.keys():
            names += [
                f"{scanned.index.root}/{key}" for key in stored_unreadable(scanned.index.place)
            ]
    return names


def write_exclude_list(path: Path, names: Sequence[str]) -> int:
    """Write the names that `data.exclude` takes, one in each line; return how many.

    A name with a line break cannot stand in such a list and is left out of it.

    Raises:
        UserError: the file cannot be written.
    """
    encoded = map(os.fsencode, names)
    fit = [name for name in encoded if b"\n" not in name and b"\r" not in name]
    try:
        with atomic_file(path) as file:
            file.write(b"".join(name + b"\n" for name in fit))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give another --output") from error
    return len(fit)

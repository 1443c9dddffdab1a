"""The command `dali-rsb verify DATA [DATA2]`: is every image what training takes it for?

Decodes everything once, as training would, and says: what is used and what is left out and why,
what decodes images, which would be substituted, equal bytes under two classes or in both of two
sets (give training and validation), classes and their counts, sizes. Where something is wrong it
writes the images to leave out into a list that `data.exclude` and DaliLoader's `exclude` take, and
exits with code 1.

    dali-rsb verify /images/train /images/val
    dali-rsb train CONFIG data.exclude=exclude.txt
"""

from __future__ import annotations

import collections
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from dali_rsb.checks.dataset.findings import find_duplicates, to_exclude
from dali_rsb.checks.dataset.report import (
    describe_problems,
    describe_scan,
    names_to_exclude,
    write_exclude_list,
)
from dali_rsb.checks.dataset.scan import Scan, scan
from dali_rsb.config.options import OptionsParser
from dali_rsb.dataset import DatasetIndex, Reading, open_index
from dali_rsb.dataset.counting import count_left_out
from dali_rsb.dataset.image_list import find_excluded, read_names
from dali_rsb.dataset.reading import add_reading_arguments, reading_of_arguments
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.console import console_messages


def main() -> None:
    parser = OptionsParser("verify", __doc__)
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="DATA", help="folder of class folders, shards or list"
    )
    parser.add_argument("--exclude", type=Path, metavar="FILE", help="images to leave out already")
    parser.add_argument(
        "--output", type=Path, default=Path("exclude.txt"), metavar="FILE", help="the list"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads")
    parser.add_argument("--index", type=Path, metavar="DIR", help="where to store the indices")
    add_reading_arguments(parser)
    arguments = parser.parse_args()
    if len(arguments.data) > 2:
        raise UserError("verify takes one or two datasets: give training and validation")
    if arguments.workers is not None and not 1 <= arguments.workers <= 1024:
        raise UserError(f"--workers {arguments.workers} is out of range: give 1 to 1024")
    excluded = [] if arguments.exclude is None else read_names(arguments.exclude)
    reading = reading_of_arguments(arguments)
    scans: list[Scan] = []
    with console_messages():
        try:
            for data in arguments.data:
                if scans:
                    first = scans[0].index
                    reading = reading.joined_to(first.classes, f"the classes of {first.origin}")
                index = _open(data, arguments.index, reading, excluded)
                scans.append(scan(index, arguments.workers))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
    sys.exit(_report(scans, arguments.output, excluded))


def _open(
    data: Path, cache_dir: Path | None, reading: Reading, excluded: list[str]
) -> DatasetIndex:
    index = open_index(data, cache_dir, reading=reading)
    found = find_excluded(index, excluded)
    left = np.setdiff1d(np.arange(len(index)), found.rows)
    if not len(left):
        raise UserError(f"--exclude leaves no image of {index.origin}: give a shorter list")
    left_out = collections.Counter(index.left_out)
    left_out.subtract(count_left_out({}, found.unreadable))
    left_out["by --exclude"] = len(found.rows) + len(found.unreadable)
    return replace(index.select(left), left_out=+left_out)


def _report(scans: list[Scan], output: Path, excluded: list[str]) -> int:
    """Print what was found; return the exit code.

    Args:
        excluded: names that are left out already, and stay on the list.
    """
    duplicates = find_duplicates(scans)
    for scanned in scans:
        print("\n".join(describe_scan(scanned)))
    if duplicates.within_class:
        copies = sum(len(group) - 1 for group in duplicates.within_class)
        print(f"note: {copies:,} images are copies of others of their class")
    problems = describe_problems(scans, duplicates)
    print("\n".join(problems or ["nothing is wrong"]))
    found = names_to_exclude(scans, to_exclude(scans, duplicates))
    if found:
        names = list(dict.fromkeys([*excluded, *found]))
        fit = write_exclude_list(output, names)
        print(f"{fit:,} images are listed in {output}: data.exclude={output} leaves them out")
        if fit < len(names):
            print(
                f"{len(names) - fit:,} images have names with line breaks, which no list can hold: "
                "rename or remove them"
            )
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)

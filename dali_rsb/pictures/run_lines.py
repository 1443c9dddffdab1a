"""The lines of a run's metrics.jsonl that can be used, in the order of training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dali_rsb.run.trackers.jsonl_file import parsed_lines
from dali_rsb.system.files import UnreadableFileError

# A line as it was written, and its `position`: the updates that were done then.
Line = dict[str, Any]

TOO_LARGE = 10**15  # for an update, an image or a second
_FIX = "the report goes on without it"


def read_lines(path: Path) -> tuple[list[Line], list[str]]:
    """The usable lines of metrics.jsonl that no later line replaces, and what is wrong with it."""
    lines: list[Line] = []
    num_bad = 0
    try:
        for parsed in parsed_lines(path, _FIX):
            line = _usable(parsed)
            if line is None:
                num_bad += 1
                continue
            while lines and _replaces(line, lines[-1]):
                lines.pop()
            lines.append(line)
    except UnreadableFileError as error:
        return [], [f"{path.name} {error.reason}: the curves have one point an epoch."]
    faults = [f"{path.name} has {num_bad} damaged line(s), which are left out."] if num_bad else []
    return lines, faults


# What is used of a line: numbers above 0, numbers, and numbers or null.
_POSITIVE = {
    "update": ("epoch", "update", "num_updates", "img_per_s", "unix_time_s"),
    "epoch": ("epoch", "updates", "unix_time_s"),
}
_NUMBER = {
    "update": ("lr", "data_wait_percent"),
    "epoch": ("lr", "img_per_s", "data_wait_percent", "skipped"),
}
_NUMBER_OR_NULL = {
    "update": ("loss",),
    "epoch": ("train_loss", "val_loss", "val_top1", "val_top5", "ema_top1", "ema_top5"),
}


def _usable(line: Line | None) -> Line | None:
    """A line with all the numbers that are wanted of it, with its `position` in updates."""
    if line is None:
        return None
    try:
        kind = line["kind"]
        positive = [line[name] for name in _POSITIVE[kind]]
        numbers = [line[name] for name in _NUMBER[kind]]
        numbers += [line[name] for name in _NUMBER_OR_NULL[kind] if line[name] is not None]
        if not all(math.isfinite(number) for number in positive + numbers):
            return None
        if not 0 < min(positive) <= max(positive) < TOO_LARGE:
            return None
        if kind == "epoch":
            line["position"] = int(line["updates"])
        else:
            line["position"] = int((line["epoch"] - 1) * line["num_updates"] + line["update"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return line if line["position"] > 0 else None


def _replaces(line: Line, kept: Line) -> bool:
    """Whether an earlier line tells of what a later one tells again."""
    if line["kind"] == "epoch" and kept["kind"] == "update":  # the epoch's own last updates
        return bool(kept["position"] > line["position"])
    return bool(kept["position"] >= line["position"])

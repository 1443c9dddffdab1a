"""The command `dali-rsb seen RUN FILE`: every update of a run that used an image, and how.

So far, as the run folder says, or with --all up to the end of its schedule. `dali-rsb replay` shows
the pictures of any of them.

    dali-rsb seen runs/a3 n01440764/n01440764_10026.JPEG
    dali-rsb seen runs/a3 n01440764/n01440764_10026.JPEG --all --json uses.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dali_rsb.config.arguments import ConfigParser, is_override
from dali_rsb.errors import UserError, run_command
from dali_rsb.pictures.folder import write_json
from dali_rsb.pictures.past import add_past_arguments, open_past
from dali_rsb.pictures.rows import mixing_text, operations_text
from dali_rsb.pictures.uses import find_uses
from dali_rsb.run.console import console_messages
from dali_rsb.system.names import printable
from dali_rsb.training.messages import replay_command

_HEAD = ("update", "epoch", "position", "rank", "window", "flip", "RandAugment", "mixing")


def main() -> None:
    parser = ConfigParser("seen", __doc__, "RUN", "a run folder, then the image")
    parser.usage = "dali-rsb seen RUN FILE [OPTIONS] [section.key=value ...]"
    parser.add_argument(
        "--all", action="store_true", help="up to the end of the schedule, not only so far"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the uses to this file")
    add_past_arguments(parser)
    options = parser.parse()
    names = [word for word in options.overrides if not is_override(word)]
    if len(names) != 1:
        raise UserError("seen takes a run folder and one image: dali-rsb seen RUN FILE")
    overrides = [word for word in options.overrides if is_override(word)]
    folder = Path(options.run).expanduser()
    with console_messages():
        pasts = open_past(folder, options.world_size, overrides)
        seen = find_uses(pasts, names[0], options.all, options.changed)
    name = printable(names[0])
    if options.json is not None:
        _write(options.json, seen.uses)
    if seen.stand_in is not None:
        print(f"{name} cannot be used; {printable(seen.stand_in)} stands in for it")
    if not seen.uses:
        print(f"no update {'of the schedule' if options.all else 'so far'} used {name}")
        return
    print(_table(seen.uses))
    first = seen.uses[0]
    command = f"{replay_command(folder, first['update'])} --position {first['position']}"
    print(f"{len(seen.uses):,} uses of {name}; the pictures of the first: {command}")


def _write(path: Path, uses: Sequence[dict[str, Any]]) -> None:
    try:
        write_json(path, uses)
    except OSError as error:
        raise UserError(
            f"--json {printable(path, 130)} cannot be written ({error.strerror}); name a file in a "
            "folder that exists and is writable"
        ) from error


def _table(uses: Sequence[dict[str, Any]]) -> str:
    rows = [_HEAD, *(_cells(use) for use in uses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _cells(use: dict[str, Any]) -> tuple[str, ...]:
    window = use["window"]
    size = f"{window['width']}x{window['height']}+{window['left']}+{window['top']}"
    mixed = mixing_text(use)
    if use["stands_in_for"] is not None:
        mixed += f"{', ' if mixed else ''}stands in for {printable(use['stands_in_for'])}"
    return (
        str(use["update"]),
        str(use["epoch"]),
        str(use["position"]),
        str(use["rank"]),
        size,
        "mirrored" if use["mirrored"] else "",
        operations_text(use),
        mixed,
    )


if __name__ == "__main__":
    run_command(main)

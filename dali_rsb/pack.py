"""The command `dali-rsb pack SRC DST`: one dataset, a few large files.

SRC is a folder of class folders, a list with `path<TAB>label` lines, or a folder of shards. DST
gets tar shards that WebDataset's programs read too, in a random order, and an index by which
`data.train=DST` and `DaliLoader(DST)` read them like the folder: same images, same order, same
augmentation for one seed. An interrupted pack goes on when the command is given again.

    dali-rsb pack SRC DST [--tiles] [--max-side 400] [--quality 90] [--raw 0.5]
    dali-rsb pack SRC [DST] --dry-run [...]
    dali-rsb pack [SRC] --verify DST
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dali_rsb.config.options import OptionsParser
from dali_rsb.dataset import DatasetIndex, open_index
from dali_rsb.dataset.packing import (
    DEFAULT_QUALITY,
    PackOptions,
    PackReport,
    check_room,
    pack,
    plan,
    verify,
)
from dali_rsb.dataset.packing.pixels import verify_pixels
from dali_rsb.dataset.reading import add_reading_arguments, reading_of_arguments
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.console import console_messages

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def main() -> None:
    parser = OptionsParser("pack", __doc__)
    parser.add_argument("source", type=Path, nargs="?", metavar="SRC")
    parser.add_argument("target", type=Path, nargs="?", metavar="DST")
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="DST",
        help="compare shards with checksums; with SRC, pixels too",
    )
    parser.add_argument("--shard-size", default="1GB", metavar="SIZE", help="default 1GB")
    parser.add_argument("--seed", type=int, default=0, help="of the order in the shards")
    parser.add_argument(
        "--max-side",
        type=int,
        metavar="PX",
        help="make images smaller whose longer side is above it; their pixels change",
    )
    parser.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help="encode every image as a JPEG of this quality; its pixels change (default: only those "
        f"that --max-side makes smaller, with {DEFAULT_QUALITY})",
    )
    parser.add_argument(
        "--tiles",
        action="store_true",
        help="cut JPEGs into tiles, losslessly, so that a crop is read and decoded without the "
        "rest of its image; for training sets",
    )
    parser.add_argument(
        "--raw",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="keep a share of the images (0 to 1) as pixels: nothing of a crop is decoded, and the "
        "disk pays for it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: say how many bytes the pack will take, and measure on some of the "
        "images what this and other packs cost the CPUs",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads")
    parser.add_argument("--index", type=Path, metavar="DIR", help="where to store SRC's index")
    add_reading_arguments(parser)
    arguments = parser.parse_args()
    reading = reading_of_arguments(arguments)
    if arguments.verify is not None:
        num_shards = verify(arguments.verify)
        print(f"{num_shards} shards in {arguments.verify} are as they were packed")
        if arguments.source is not None:
            source = open_index(arguments.source, arguments.index, reading=reading)
            num_images = verify_pixels(source, arguments.verify)
            print(f"{num_images:,} images have the pixels of those in {arguments.source}")
        return
    if arguments.source is None or (arguments.target is None and not arguments.dry_run):
        parser.error("give SRC and DST, or SRC --dry-run, or --verify DST")
    options = PackOptions(
        shard_bytes=_parse_size(arguments.shard_size),
        seed=arguments.seed,
        max_side=_in_range("--max-side", arguments.max_side, 8, 65_500),
        quality=_in_range("--quality", arguments.quality, 1, 100),
        tiles=arguments.tiles,
        raw=_share("--raw", arguments.raw),
    )
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed} is negative: give 0 or more")
    workers = _in_range("--workers", arguments.workers, 1, 1024)
    with console_messages():
        index = open_index(arguments.source, arguments.index, reading=reading)
        expected = plan(index, options)
        print(expected, flush=True)
        if arguments.target is not None:
            check_room(expected, arguments.target)
        if arguments.dry_run:
            _advise(index, arguments.target, options)
            return
        try:
            report = pack(index, arguments.target, options, workers)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the missing shards", file=sys.stderr)
            sys.exit(130)
    print(_describe(report, arguments.target))


def _advise(index: DatasetIndex, target: Path | None, options: PackOptions) -> None:
    """Measure what packs cost here, as A3 loads them."""
    # Both take PyTorch and DALI, which packing does not need.
    from dali_rsb.checks.machine.packs import print_advice
    from dali_rsb.training.measuring import RecipeLoading

    folder = None
    if target is not None:
        folder = next(each for each in target.expanduser().absolute().parents if each.exists())
    print_advice(index, RecipeLoading.of_recipe("a3"), folder, options)


def _describe(report: PackReport, target: Path) -> str:
    lines = [
        f"{report.num_images:,} images in {report.num_shards} shards in {target}, "
        f"{_megabytes(report.bytes_after)}"
    ]
    if report.num_reencoded:
        lines += [
            f"{'made other pixels of' if report.num_raw else 're-encoded'} "
            f"{report.num_reencoded:,}: {_megabytes(report.bytes_before)} of images became "
            f"{_megabytes(report.bytes_after)}",
            "their pixels are not those of the originals: accuracy may change, and results cannot "
            "be compared digit for digit with those of the originals",
        ]
    if report.num_tiled:
        line = f"cut {report.num_tiled:,} into tiles, with every pixel as it was"
        if not report.num_raw:
            before, after = _megabytes(report.bytes_before), _megabytes(report.bytes_after)
            line += f": {before} became {after}"
        lines.append(line)
    if report.num_raw:
        lines.append(f"kept {report.num_raw:,} as pixels, {_megabytes(report.raw_bytes)}")
    if report.not_tiled:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in report.not_tiled.items())
        lines.append(f"kept {sum(report.not_tiled.values()):,} as they are: {reasons}")
    if report.num_undecodable:
        lines.append(f"kept {report.num_undecodable:,} as they are, which Pillow cannot decode")
    return "\n".join(lines)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise UserError(f"--shard-size {text} is no size: give bytes, or such as 500MB or 1GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:  # nan too
        raise UserError(f"{name} {value:g} is no share of the images: give 0 to 1")
    return value


def _in_range(name: str, value: int | None, least: int, most: int) -> int | None:
    if value is not None and not least <= value <= most:
        raise UserError(f"{name} {value} is out of range: give {least} to {most}")
    return value


if __name__ == "__main__":
    run_command(main)

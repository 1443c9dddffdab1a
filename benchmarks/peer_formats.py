"""Stores a dataset as other loaders want it: `python -m benchmarks.peer_formats DATA PREPARED`.

DATA is a folder of class folders. PREPARED gets its images as they are and, as most of those who
look for speed store them, with no side above 256 px at JPEG quality 90: as folders, tar shards
(WebDataset), MDS (MosaicML Streaming) and LitData's chunks; and FFCV's files, which always encode
again or keep pixels. What cannot be written here is left out; `formats.json` has the reason, and
the bytes of the others. About two minutes for 2,000 images on 2 cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import NotInstalledError, report_progress, write_json
from dali_rsb.dataset import open_index
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.packing import PackOptions, pack
from dali_rsb.errors import UserError, run_command

SMALL_SIDE_PX, QUALITY = 256, 90
FORMATS_FILE = "formats.json"
_NUM_SHARDS = 8  # at least: a shard is read by one worker
# FFCV's files: name, longest side in pixels, share of images kept as pixels. Its settings for
# ImageNet are 500 px with one half; its own figures for loading alone go down to 256 px.
FFCV_FILES = {
    f"ffcv_{name}_{side_px}": (side_px, share_raw)
    for side_px in (500, 256)
    for name, share_raw in (("jpeg", 0.0), ("half_raw", 0.5), ("raw", 1.0))
}


def write_formats(data: Path, prepared: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Write all formats; returns bytes, or the reason why there is none, by format.

    Raises:
        UserError: `prepared` holds something already.
    """
    if prepared.exists() and any(prepared.iterdir()):
        raise UserError(f"{prepared} is not an empty folder: remove it, or name another")
    prepared.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}

    def write(name: str, writer: Callable[[Path], object]) -> None:
        try:
            writer(prepared / name)
        except NotInstalledError as error:
            found[name] = {"left_out": str(error)}
        except Exception as error:  # a package that does not work here is a line, not the end
            shutil.rmtree(prepared / name, ignore_errors=True)
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            found[name] = {"left_out": line}
        else:
            found[name] = {"bytes": _bytes_of(prepared / name)}
        progress(f"{name}: {found[name]}")

    index = open_index(data, prepared / "index", progress=False)
    write("original_shards", functools.partial(_write_shards, index, PackOptions()))
    small = PackOptions(max_side=SMALL_SIDE_PX, quality=QUALITY)
    write("small_shards", functools.partial(_write_shards, index, small))
    of_small = open_index(prepared / "small_shards", progress=False)
    write("small_folder", functools.partial(_write_folder, of_small))
    for kind, images in (("original", index), ("small", of_small)):
        write(f"{kind}_mds", functools.partial(_write_mds, images))
        write(f"{kind}_litdata", functools.partial(_write_litdata, images))
    for name, (side_px, share_raw) in FFCV_FILES.items():
        write(name, functools.partial(write_ffcv, data, max_side_px=side_px, share_raw=share_raw))
    write_json(prepared / FORMATS_FILE, found)
    return found


def stored(prepared: Path | None, name: str) -> Path:
    """A format that was written.

    Raises:
        NotInstalledError: it was not, with the reason.
    """
    if prepared is None:
        raise NotInstalledError("give --prepared FOLDER, of python -m benchmarks.peer_formats")
    try:
        formats = json.loads((prepared / FORMATS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{prepared} holds no {FORMATS_FILE}: write it with python -m benchmarks.peer_formats"
        ) from None
    if "left_out" in formats[name]:
        raise NotInstalledError(formats[name]["left_out"])
    return prepared / name


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _encoded(index: DatasetIndex, image: int) -> bytes:
    with index.open(image) as file:
        return file.read()


def _write_shards(index: DatasetIndex, options: PackOptions, target: Path) -> None:
    from dataclasses import replace

    # A shard has an eighth of the images' bytes; of images made smaller a tenth of that.
    num_bytes = sum(len(_encoded(index, image)) for image in range(len(index)))
    part = 10 if options.reencodes else 1
    pack(index, target, replace(options, shard_bytes=max(1, num_bytes // _NUM_SHARDS // part)), 2)


def _write_folder(index: DatasetIndex, target: Path) -> None:
    for image, label in enumerate(index.labels.tolist()):
        file = target / index.classes[label] / f"{image:08d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_encoded(index, image))


def _write_mds(index: DatasetIndex, target: Path) -> None:
    try:
        from streaming import MDSWriter
    except ImportError as error:
        raise NotInstalledError(f"MosaicML Streaming: {error}") from error

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(target), columns=columns) as writer:
        for image, label in enumerate(index.labels.tolist()):
            writer.write({"image": _encoded(index, image), "label": label})


def _write_litdata(index: DatasetIndex, target: Path) -> None:
    try:
        import litdata
    except ImportError as error:
        raise NotInstalledError(f"LitData: {error}") from error

    rows = list(enumerate(index.labels.tolist()))
    litdata.optimize(
        fn=functools.partial(_litdata_sample, index),
        inputs=rows,
        output_dir=str(target),
        num_workers=1,
        chunk_bytes="64MB",
        start_method="fork",
    )


def _litdata_sample(index: DatasetIndex, row: tuple[int, int]) -> dict[str, Any]:
    image, label = row
    return {"image": _encoded(index, image), "label": label}


def write_ffcv(data: Path, file: Path, max_side_px: int | None, share_raw: float) -> None:
    """Write FFCV's file of a folder of class folders, with its default quality of 90.

    Raises:
        NotInstalledError: FFCV is not installed.
    """
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise NotInstalledError(f"FFCV is not installed: {error}") from error

    encoding: dict[str, Any] = {"write_mode": "proportion", "compress_probability": 1 - share_raw}
    if share_raw in (0.0, 1.0):
        encoding = {"write_mode": "raw" if share_raw else "jpg"}
    image = RGBImageField(jpeg_quality=QUALITY, max_resolution=max_side_px, **encoding)
    writer = DatasetWriter(str(file), {"image": image, "label": IntField()}, num_workers=2)
    # A stored index beside the classes is an empty class to torchvision.
    writer.from_indexed_dataset(ImageFolder(str(data), allow_empty=True))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_formats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of class folders")
    parser.add_argument("prepared", type=Path, help="empty folder for all formats")
    options = parser.parse_args(arguments)
    write_formats(options.data.absolute(), options.prepared.absolute(), report_progress)


if __name__ == "__main__":
    run_command(main)

"""Packs a dataset into tar shards, shuffled, with an index.

Shards are WebDataset's: KEY.jpg (or .png, ...) and KEY.cls, the class number as text, one after the
other. Each shard appears under its name when it is complete, with a record of it in a hidden
folder; when all are, the records become the index. So a pack that was interrupted goes on with the
shards that are still missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.packing.note import (
    PACK_INDEX,
    PACK_VERSION,
    PACK_WORK,
    PackedFile,
    PackNote,
    read_pack,
)
from dali_rsb.dataset.packing.options import PackOptions, PackReport
from dali_rsb.dataset.packing.records import (
    COLUMNS,
    Record,
    claim,
    finished,
    only_packer,
    shard_name,
)
from dali_rsb.dataset.packing.samples import Sample, read_ahead
from dali_rsb.dataset.packing.shard_writer import ShardWriter
from dali_rsb.dataset.raw.store import RawStore
from dali_rsb.dataset.shards import CLASS_NAMES, ShardStore
from dali_rsb.dataset.storage import write_index
from dali_rsb.dataset.tiles.layout import TileLayout, Tiles
from dali_rsb.dataset.tiles.store import TiledStore
from dali_rsb.dataset.tiles.transcoding import check_jpegtran
from dali_rsb.errors import UserError
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.cpus import available_cpus
from dali_rsb.system.files import UnreadableFileError

logger = logging.getLogger(__name__)

_NUM_READERS = 16  # they wait for the file system
_EXTENSIONS = {
    ImageFormat.JPEG: "jpg",
    ImageFormat.PNG: "png",
    ImageFormat.WEBP: "webp",
    ImageFormat.BMP: "bmp",
    ImageFormat.TIFF: "tif",
    ImageFormat.GIF: "gif",
    ImageFormat.PNM: "ppm",
}


def pack(
    index: DatasetIndex,
    target: Path,
    options: PackOptions,
    num_workers: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Pack all images of a dataset into `target`, or go on with it.

    Args:
        num_workers: threads that read and encode images.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: `target` holds something else or lies in the dataset, an image cannot be read, or
            a shard cannot be written.
    """
    target = target.expanduser().absolute()
    digest = _digest(index, options)
    if (target / PACK_INDEX).is_dir():
        return _packed_before(target, digest)
    _check_target(index, target)
    if options.tiles:
        check_jpegtran()
    try:
        work = claim(target, digest, options)
        with only_packer(work):
            records = finished(target, work)
            _write_shards(index, target, options, records, num_workers, progress)
            report = _write_index(index, target, digest, options, records)
            shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"cannot write to {target} ({error.strerror}): fix that and give the same command "
            "again, it goes on with the shards that are missing"
        ) from error
    return report


def _digest(index: DatasetIndex, options: PackOptions) -> str:
    """What makes two packs the same: images and options, wherever the images lie."""
    digest, keys = hashlib.sha256(), index.store.keys
    chosen = dataclasses.asdict(options)
    for name in ("tiles", "raw"):
        if not chosen[name]:
            del chosen[name]  # unknown when the first packs were written, which still hold
    digest.update(json.dumps([PACK_VERSION, chosen, index.classes]).encode())
    for array in (
        keys.data,
        keys.offsets,
        index.labels,
        index.widths,
        index.heights,
        index.formats,
    ):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _packed_before(target: Path, digest: str) -> PackReport:
    try:
        note, _ = read_pack(target, "remove it")
        report = PackReport(**note.report)
    except (UnreadableFileError, TypeError) as error:
        reason = error.reason if isinstance(error, UnreadableFileError) else error
        raise UserError(
            f"{target} holds a pack that cannot be read ({reason}): remove it"
        ) from error
    if note.digest != digest:
        raise UserError(
            f"{target} holds a pack of other images or with other options ({note.options}): "
            "give another folder or remove it"
        )
    shutil.rmtree(target / PACK_WORK, ignore_errors=True)
    logger.info("%s is packed already", target)
    return report


def _check_target(index: DatasetIndex, target: Path) -> None:
    if index.store.claims(target):
        raise UserError(f"{target} lies in {index.root}, which is packed: give a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a new folder for the shards")
    if target.is_dir() and any(target.iterdir()) and not (target / PACK_WORK).is_dir():
        raise UserError(f"{target} is not empty: give a new folder for the shards")


def _write_shards(
    index: DatasetIndex,
    target: Path,
    options: PackOptions,
    records: list[Record],
    num_workers: int | None,
    progress: bool,
) -> None:
    """Write the shards that are still missing, and add their records."""
    order = _order(index, options)
    keys = _unique_keys(index)
    first = sum(len(record.columns) for record in records)
    num_workers = num_workers or (available_cpus() if options.computes else _NUM_READERS)
    show = progress and sys.stderr.isatty()
    samples = read_ahead(index, order[first:], options, num_workers)
    with (
        contextlib.closing(samples),
        tqdm(total=len(order), initial=first, desc="packing", unit="img", disable=not show) as bar,
    ):
        sample = next(samples, None)
        while sample is not None:
            path = target / shard_name(len(records))
            rows: list[list[int]] = []
            layouts: list[TileLayout | None] = []
            not_tiled: Counter[str] = Counter()
            with atomic_file(path) as file:
                shard = ShardWriter(file)
                while sample is not None and shard.has_room(len(sample.data), options.shard_bytes):
                    label = str(index.labels[sample.row])
                    offset = shard.add(
                        keys[sample.row], _extension(index, sample), sample.data, label
                    )
                    rows.append(_columns(sample, offset))
                    layouts.append(sample.layout)
                    not_tiled.update([sample.not_tiled] if sample.not_tiled else [])
                    bar.update()
                    sample = next(samples, None)
                num_bytes, sha256 = shard.finish()
            tiles = Tiles.of_layouts(layouts)
            record = Record(num_bytes, sha256, np.array(rows, np.int64), tiles, dict(not_tiled))
            with atomic_file(target / PACK_WORK / f"{path.name}.npz") as file:
                record.save(file)
            records.append(record)


def _columns(sample: Sample, offset: int) -> list[int]:
    values = {**vars(sample), "offset": offset, "length": len(sample.data)}
    return [int(values[name]) for name in COLUMNS]


def _order(index: DatasetIndex, options: PackOptions) -> npt.NDArray[np.int64]:
    """The rows of the index in the order in which they lie in the shards."""
    return np.random.Generator(np.random.Philox(options.seed)).permutation(len(index))


def _unique_keys(index: DatasetIndex) -> list[str]:
    """A key for each image: its path without extension and dots, where WebDataset ends a key."""
    keys, taken = [], set()
    for row, path in enumerate(map(os.fsdecode, index.store.keys.all())):
        folder, slash, name = path.rpartition("/")
        key = (folder + slash + (name.rpartition(".")[0] or name)).replace(".", "_")
        if key in taken:
            key = f"{key}-{row}"
            while key in taken:
                key += "-"
        taken.add(key)
        keys.append(key)
    return keys


def _extension(index: DatasetIndex, sample: Sample) -> str:
    """By content: WebDataset's programs look for `jpg`, not for `JPEG`, let alone a wrong name."""
    known = _EXTENSIONS.get(ImageFormat(sample.format))
    if known is not None:
        return known
    extension = index.path(sample.row).suffix.lower().lstrip(".")
    return "jpg" if extension == "jpeg" else extension


def _write_index(
    index: DatasetIndex,
    target: Path,
    digest: str,
    options: PackOptions,
    records: Sequence[Record],
) -> PackReport:
    """Put the shards' records together as the index, in the dataset's own order of images."""
    columns = np.concatenate([record.columns for record in records])
    numbers = np.repeat(
        np.arange(len(records), dtype=np.int32), [len(record.columns) for record in records]
    )
    place_of_row = np.argsort(_order(index, options))
    by_name = dict(zip(COLUMNS, columns[place_of_row].T, strict=True))
    names = tuple(shard_name(number) for number in range(len(records)))
    store = ShardStore(
        target,
        index.store.keys,
        names,
        numbers[place_of_row],
        by_name["offset"].copy(),
        by_name["length"].copy(),
    )
    tiles = Tiles.joined([record.tiles for record in records]).take(place_of_row)
    is_raw = by_name["is_raw"] > 0
    if options.raw > 0:
        store = RawStore(**vars(store), tiles=tiles, is_raw=is_raw)
    elif options.tiles:
        store = TiledStore(**vars(store), tiles=tiles)
    packed = dataclasses.replace(
        index,
        widths=by_name["width"].astype(np.int32),
        heights=by_name["height"].astype(np.int32),
        formats=by_name["format"].astype(np.uint8),
        stamps=None,
        place=None,
        left_out={},  # packing has said so; of a pack's own entries all are used
        store=store,
    )
    not_tiled: Counter[str] = Counter()
    for record in records:
        not_tiled.update(record.not_tiled)
    report = PackReport(
        num_images=len(index),
        num_shards=len(records),
        num_reencoded=int(by_name["is_reencoded"].sum()),
        num_undecodable=int(by_name["is_undecodable"].sum()),
        bytes_before=int(by_name["bytes_before"].sum()),
        bytes_after=int(by_name["length"].sum()),
        num_tiled=int((tiles.tile_widths > 0).sum()),
        not_tiled=dict(not_tiled.most_common()),
        num_raw=int(is_raw.sum()),
        raw_bytes=int(by_name["length"][is_raw].sum()),
    )
    effect = f"{report.num_reencoded:,} of {report.num_images:,} re-encoded, {options.encoding}"
    note = PackNote(
        version=PACK_VERSION,
        digest=digest,
        options=str(options),
        effect=effect if report.num_reencoded else None,
        report=dataclasses.asdict(report),
        shards=[
            PackedFile(name, record.num_bytes, record.sha256)
            for name, record in zip(names, records, strict=True)
        ],
    )
    with atomic_file(target / CLASS_NAMES) as file:
        file.write(b"".join(os.fsencode(name) + b"\n" for name in index.classes))
    write_index(target / PACK_INDEX, packed, {"pack": dataclasses.asdict(note)})
    return report

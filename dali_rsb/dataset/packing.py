"""Pack a dataset into tar shards, shuffled, with an index; check what was packed.

Shards are WebDataset's: KEY.jpg (or .png, ...) and KEY.cls, the class number as text, one after the
other. Each shard appears under its name when it is complete, with a record of it in a hidden
folder; when all are, the records become the index. So a pack that was interrupted goes on with the
shards that are still missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import sys
import tarfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.shards import CLASS_NAMES, Shards
from dali_rsb.dataset.storage import (
    PACK_INDEX,
    PACK_VERSION,
    PACK_WORK,
    pack_meta,
    write_index,
)
from dali_rsb.errors import UserError
from dali_rsb.system.cpus import available_cpus

logger = logging.getLogger(__name__)

DEFAULT_QUALITY = 90  # of images that --max-side makes smaller

_NUM_READERS = 16  # they wait for the file system
_READ_AHEAD = 4  # images under way for each thread
_HASH_BYTES = 1 << 24
_TAR_BLOCK = 512
_PLAN = "plan.json"
_EXTENSIONS = {
    ImageFormat.JPEG: "jpg",
    ImageFormat.PNG: "png",
    ImageFormat.WEBP: "webp",
    ImageFormat.BMP: "bmp",
    ImageFormat.TIFF: "tif",
    ImageFormat.GIF: "gif",
    ImageFormat.PNM: "ppm",
}


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        shard_bytes: size of a shard, at most, unless a single image is larger.
        seed: of the order of the images in the shards.
        max_side: make images smaller whose longer side is above it, in pixels.
        quality: JPEG quality to encode images with; None encodes only those that are made smaller.
    """

    shard_bytes: int = 10**9
    seed: int = 0
    max_side: int | None = None
    quality: int | None = None

    @property
    def reencodes(self) -> bool:
        """Whether images may be changed."""
        return self.max_side is not None or self.quality is not None

    @property
    def encoding(self) -> str:
        """What becomes of the images, in words."""
        if not self.reencodes:
            return "original bytes"
        quality = f"JPEG quality {self.quality or DEFAULT_QUALITY}"
        if self.max_side is None:
            return quality
        return f"longer side at most {self.max_side} px, {quality}"

    def __str__(self) -> str:
        return f"shards of {self.shard_bytes} bytes, seed {self.seed}, {self.encoding}"


@dataclass(frozen=True)
class PackReport:
    """What was packed: counts of images, and their bytes before and after.

    `num_undecodable` images of those that should have been re-encoded were kept as they are.
    """

    num_images: int
    num_shards: int
    num_reencoded: int
    num_undecodable: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _Sample:
    """One image as it goes into a shard."""

    row: int
    data: bytes
    width: int
    height: int
    format: int
    bytes_before: int
    is_reencoded: bool = False
    is_undecodable: bool = False


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
    try:
        work = _claim(target, digest, options)
        with _only_packer(work):
            records = _finished(target, work)
            _write_shards(index, target, options, records, num_workers, progress)
            report = _write_index(index, target, digest, options, records)
            shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"cannot write to {target} ({error.strerror}): mend that and give the same command "
            "again, it goes on with the shards that are missing"
        ) from error
    return report


def verify(target: Path, progress: bool = True) -> int:
    """Compare the shards in `target` with their checksums; return how many there are.

    Raises:
        UserError: there is no pack in `target`, or shards are missing or damaged.
    """
    target = target.expanduser().absolute()
    try:
        shards = pack_meta(target)["pack"]["shards"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{target} holds no finished pack ({error}): give the folder that "
            "`python -m dali_rsb.pack SRC DST` has written"
        ) from error
    show = progress and sys.stderr.isatty()
    total = sum(shard["bytes"] for shard in shards)
    damaged = []
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, disable=not show) as bar:
        for shard in shards:
            if _sha256(target / shard["name"], bar) != shard["sha256"]:
                damaged.append(shard["name"])
    if damaged:
        names = ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else "")
        raise UserError(
            f"{len(damaged)} of {len(shards)} shards in {target} are missing or damaged: {names}; "
            "restore them from a copy or pack anew"
        )
    return len(shards)


def _sha256(path: Path, bar: tqdm[Any]) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
                bar.update(len(block))
    except OSError:
        return None
    return digest.hexdigest()


def _digest(index: DatasetIndex, options: PackOptions) -> str:
    """What makes two packs the same: images and options, wherever the images lie."""
    digest = hashlib.sha256()
    digest.update(json.dumps([PACK_VERSION, dataclasses.asdict(options), index.classes]).encode())
    for array in (
        index.path_bytes,
        index.path_offsets,
        index.labels,
        index.widths,
        index.heights,
        index.formats,
    ):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _packed_before(target: Path, digest: str) -> PackReport:
    try:
        packed = pack_meta(target)["pack"]
        report = PackReport(**packed["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{target} holds a pack that cannot be read ({error}): remove it"
        ) from error
    if packed["digest"] != digest:
        raise UserError(
            f"{target} holds a pack of other images or with other options ({packed['options']}): "
            "give another folder or remove it"
        )
    shutil.rmtree(target / PACK_WORK, ignore_errors=True)
    logger.info("%s is packed already", target)
    return report


def _check_target(index: DatasetIndex, target: Path) -> None:
    resolved, root = target.resolve(), index.root.resolve()
    is_folder = index.listing is None and index.shards is None
    if resolved == root or (is_folder and resolved.is_relative_to(root)):
        raise UserError(f"{target} lies in {index.root}, which is packed: give a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a new folder for the shards")
    if target.is_dir() and any(target.iterdir()) and not (target / PACK_WORK).is_dir():
        raise UserError(f"{target} is not empty: give a new folder for the shards")


def _claim(target: Path, digest: str, options: PackOptions) -> Path:
    """Make the folder of records, or find that of an interrupted pack."""
    work = target / PACK_WORK
    work.mkdir(parents=True, exist_ok=True)
    plan = {"digest": digest, "options": str(options)}
    if not (work / _PLAN).exists():
        with _replacing(work / _PLAN) as file:
            file.write(json.dumps(plan).encode())
    found = json.loads((work / _PLAN).read_text(encoding="utf-8"))
    if found != plan:
        raise UserError(
            f"{target} holds an unfinished pack of other images or with other options "
            f"({found['options']}): give another folder or remove it"
        )
    return work


@contextlib.contextmanager
def _only_packer(work: Path) -> Iterator[None]:
    """Keep other processes from packing into the same folder; where it has no locks, trust."""
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is packing into {work.parent}: let it end") from error
        except OSError:
            logger.debug("%s cannot be locked", work)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Record:
    """A finished shard: its checksum, and the columns of its images in the order they lie in."""

    num_bytes: int
    sha256: str
    columns: npt.NDArray[np.int64]  # [images, len(_COLUMNS)]


_COLUMNS = (
    "offset",
    "length",
    "width",
    "height",
    "format",
    "bytes_before",
    "is_reencoded",
    "is_undecodable",
)


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _finished(target: Path, work: Path) -> list[_Record]:
    """Records of the shards that an interrupted pack has finished."""
    for partial in target.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()
    records: list[_Record] = []
    for number in itertools.count():
        path, shard = work / f"{_shard_name(number)}.npz", target / _shard_name(number)
        if not path.exists() or not shard.exists():
            break
        with np.load(path) as stored:
            record = _Record(int(stored["num_bytes"]), str(stored["sha256"]), stored["columns"])
        if shard.stat().st_size != record.num_bytes:
            break
        records.append(record)
    if records:
        count = sum(len(record.columns) for record in records)
        logger.info("going on after %d shards with %d images", len(records), count)
    return records


def _write_shards(
    index: DatasetIndex,
    target: Path,
    options: PackOptions,
    records: list[_Record],
    num_workers: int | None,
    progress: bool,
) -> None:
    """Write the shards that are still missing, and add their records."""
    order = _order(index, options)
    keys = _unique_keys(index)
    first = sum(len(record.columns) for record in records)
    num_workers = num_workers or (available_cpus() if options.reencodes else _NUM_READERS)
    show = progress and sys.stderr.isatty()
    samples = _read_ahead(index, order[first:], options, num_workers)
    with (
        contextlib.closing(samples),
        tqdm(total=len(order), initial=first, desc="packing", unit="img", disable=not show) as bar,
    ):
        sample = next(samples, None)
        while sample is not None:
            path = target / _shard_name(len(records))
            rows = []
            with _replacing(path) as file:
                shard = _ShardWriter(file)
                while sample is not None and shard.has_room(len(sample.data), options.shard_bytes):
                    label = str(index.labels[sample.row])
                    offset = shard.add(
                        keys[sample.row], _extension(index, sample), sample.data, label
                    )
                    rows.append(_columns(sample, offset))
                    bar.update()
                    sample = next(samples, None)
                num_bytes, sha256 = shard.finish()
            record = _Record(num_bytes, sha256, np.array(rows, np.int64))
            with _replacing(target / PACK_WORK / f"{path.name}.npz") as file:
                np.savez(file, **dataclasses.asdict(record))
            records.append(record)


def _columns(sample: _Sample, offset: int) -> list[int]:
    values = {**vars(sample), "offset": offset, "length": len(sample.data)}
    return [int(values[name]) for name in _COLUMNS]


def _order(index: DatasetIndex, options: PackOptions) -> npt.NDArray[np.int64]:
    """The rows of the index in the order in which they lie in the shards."""
    return np.random.Generator(np.random.Philox(options.seed)).permutation(len(index))


def _unique_keys(index: DatasetIndex) -> list[str]:
    """A key for each image: its path without extension and dots, where WebDataset ends a key."""
    paths, offsets = index.path_bytes.tobytes(), index.path_offsets.tolist()
    keys, taken = [], set()
    for row, (start, end) in enumerate(itertools.pairwise(offsets)):
        path = os.fsdecode(paths[start:end])
        folder, slash, name = path.rpartition("/")
        key = (folder + slash + (name.rpartition(".")[0] or name)).replace(".", "_")
        if key in taken:
            key = f"{key}-{row}"
            while key in taken:
                key += "-"
        taken.add(key)
        keys.append(key)
    return keys


def _extension(index: DatasetIndex, sample: _Sample) -> str:
    """By content: WebDataset's programs look for `jpg`, not for `JPEG`, let alone a wrong name."""
    known = _EXTENSIONS.get(ImageFormat(sample.format))
    if known is not None:
        return known
    extension = index.path(sample.row).suffix.lower().lstrip(".")
    return "jpg" if extension == "jpeg" else extension


def _read_ahead(
    index: DatasetIndex, rows: npt.NDArray[np.int64], options: PackOptions, num_workers: int
) -> Generator[_Sample, None, None]:
    """The samples of some rows, in their order, read (and encoded) in parallel."""
    Image.init()  # threads that load plugins at the same time get in each other's way
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[_Sample]] = deque()
        try:
            for row in rows.tolist():
                waiting.append(pool.submit(_read, index, row, options))
                if len(waiting) == _READ_AHEAD * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(index: DatasetIndex, row: int, options: PackOptions) -> _Sample:
    try:
        with index.open(row) as file:
            data = file.read()
    except OSError as error:
        raise UserError(
            f"cannot read {index.name(row)} ({error.strerror}): restore it and give the same "
            "command again, it goes on with the shards that are missing"
        ) from error
    width, height = int(index.widths[row]), int(index.heights[row])
    sample = _Sample(row, data, width, height, int(index.formats[row]), len(data))
    is_large = options.max_side is not None and max(width, height) > options.max_side
    if not is_large and options.quality is None:
        return sample
    try:
        return _reencoded(sample, options)
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return dataclasses.replace(sample, is_undecodable=True)


def _reencoded(sample: _Sample, options: PackOptions) -> _Sample:
    with Image.open(io.BytesIO(sample.data)) as opened:
        image = opened if opened.mode == "L" else opened.convert("RGB")
        image.load()
    size = image.size
    if options.max_side is not None and max(size) > options.max_side:
        scale = options.max_side / max(size)
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality or DEFAULT_QUALITY)
    data = buffer.getvalue()
    if size == (sample.width, sample.height) and len(data) >= len(sample.data):
        return sample  # nothing is gained
    return dataclasses.replace(
        sample,
        data=data,
        width=size[0],
        height=size[1],
        format=int(ImageFormat.JPEG),
        is_reencoded=True,
    )


class _ShardWriter:
    """Writes the members of one tar file; the same members always give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def has_room(self, num_bytes: int, shard_bytes: int) -> bool:
        """Whether an image still fits in; one always does."""
        # Two headers, the label, the padding of the image and the end of the file.
        needed = num_bytes + 4 * _TAR_BLOCK + tarfile.RECORDSIZE
        return self._num_bytes == 0 or self._num_bytes + needed <= shard_bytes

    def add(self, key: str, extension: str, data: bytes, label: str) -> int:
        """Add an image and its label; return the offset of the image's bytes."""
        offset = self._add_member(f"{key}.{extension}", data)
        self._add_member(f"{key}.cls", label.encode())
        return offset

    def finish(self) -> tuple[int, str]:
        """Write the end; return size in bytes and SHA-256 of the whole."""
        end = self._num_bytes + 2 * _TAR_BLOCK
        self._write(bytes(2 * _TAR_BLOCK + -end % tarfile.RECORDSIZE))
        return self._num_bytes, self._digest.hexdigest()

    def _add_member(self, name: str, data: bytes) -> int:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        offset = self._num_bytes
        self._write(data)
        self._write(bytes(-len(data) % _TAR_BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block has ended well, and is on the disk then."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_index(
    index: DatasetIndex,
    target: Path,
    digest: str,
    options: PackOptions,
    records: Sequence[_Record],
) -> PackReport:
    """Put the shards' records together as the index, in the dataset's own order of images."""
    columns = np.concatenate([record.columns for record in records])
    numbers = np.repeat(
        np.arange(len(records), dtype=np.int32), [len(record.columns) for record in records]
    )
    place_of_row = np.argsort(_order(index, options))
    by_name = dict(zip(_COLUMNS, columns[place_of_row].T, strict=True))
    names = tuple(_shard_name(number) for number in range(len(records)))
    packed = dataclasses.replace(
        index,
        root=target,
        widths=by_name["width"].astype(np.int32),
        heights=by_name["height"].astype(np.int32),
        formats=by_name["format"].astype(np.uint8),
        stamps=None,
        place=None,
        listing=None,
        shards=Shards(
            target, names, numbers[place_of_row], by_name["offset"].copy(), by_name["length"].copy()
        ),
    )
    report = PackReport(
        num_images=len(index),
        num_shards=len(records),
        num_reencoded=int(by_name["is_reencoded"].sum()),
        num_undecodable=int(by_name["is_undecodable"].sum()),
        bytes_before=int(by_name["bytes_before"].sum()),
        bytes_after=int(by_name["length"].sum()),
    )
    effect = f"{report.num_reencoded:,} of {report.num_images:,} re-encoded, {options.encoding}"
    about = {
        "version": PACK_VERSION,
        "digest": digest,
        "options": str(options),
        "effect": effect if report.num_reencoded else None,
        "report": dataclasses.asdict(report),
        "shards": [
            {"name": name, "bytes": record.num_bytes, "sha256": record.sha256}
            for name, record in zip(names, records, strict=True)
        ],
    }
    with _replacing(target / CLASS_NAMES) as file:
        file.write("".join(f"{name}\n" for name in index.classes).encode())
    write_index(target / PACK_INDEX, packed, {"pack": about})
    return report

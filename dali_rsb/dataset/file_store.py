"""Images that are files of their own, wherever under one root they lie."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.image_header import NO_STAMP, ImageFormat, read_stamped_header
from dali_rsb.dataset.store import ImageStore, Keys, Rows, Stamp, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Self

    from pipelines.types import ImageSource

# A local file system answers in 1 to 2 us. One that has to ask a server takes a hundred times as
# long, and answers many questions at once.
_NUM_FIRST, _SLOW_S, _NUM_THREADS = 16, 50e-6, 32


@dataclass(frozen=True, eq=False)
class FileStore(ImageStore):
    """Image files; the keys are their paths relative to `root`. DALI opens them by their path."""

    root: Path
    keys: Keys

    kind: ClassVar[str] = "files"  # those that a caller names; no stored index holds them

    @property
    def image_source(self) -> ImageSource:
        return "path"

    def arrays(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        return [np.frombuffer(path, np.uint8) for path in self._paths(rows)]

    def _paths(self, rows: Rows) -> list[bytes]:
        prefix, data, offsets = self._prefix, self.keys.data, self.keys.offsets
        starts, ends = offsets[rows].tolist(), offsets[rows + 1].tolist()
        return [prefix + data[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]

    @property
    def repair(self) -> str:
        return "repair or remove the file"

    def path(self, row: int) -> Path:
        """The file of an image."""
        return Path(os.fsdecode(self._prefix + self.keys[row]))

    def open(self, row: int) -> BinaryIO:
        return self.path(row).open("rb")

    def stamped_header(self, row: int) -> tuple[int, int, ImageFormat, int, int]:
        return read_stamped_header(self._prefix + self.keys[row])

    def current_stamps(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Costs one `os.stat` for each image."""
        return np.array(_stamps(self._paths(rows)), np.int64).reshape(-1, 2)

    def stamp(self, row: int) -> Stamp:
        return file_stamp(self.path(row))

    def select(self, rows: Rows) -> Self:
        return replace(self, keys=self.keys.select(rows))

    def saved(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        return {}, {}

    @functools.cached_property
    def _prefix(self) -> bytes:
        """What stands before a key to make it an absolute path."""
        return os.fsencode(self.root).rstrip(b"/") + b"/"


def changed_since_unreadable(root: Path, unreadable: Mapping[str, Stamp]) -> str | None:
    """In words, which of some unreadable files has changed since its stamp, if one has."""
    for image, stamp in unreadable.items():
        if file_stamp(root / image) != stamp:
            return f"{image}, which could not be read, has changed"
    return None


def _stamps(paths: Sequence[bytes]) -> list[tuple[int, int]]:
    start_s = time.perf_counter()
    stamps = [_stamp(path) for path in paths[:_NUM_FIRST]]
    if time.perf_counter() - start_s < _SLOW_S * len(stamps):
        return stamps + [_stamp(path) for path in paths[_NUM_FIRST:]]
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        return stamps + list(pool.map(_stamp, paths[_NUM_FIRST:]))


def _stamp(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 -- a Path takes longer to make than this
    except OSError:
        return NO_STAMP
    return status.st_mtime_ns, status.st_size

"""Images that are files of their own, wherever under one root they lie."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from dali_rsb.dataset.image_header import ImageFormat, read_header
from dali_rsb.dataset.store import ImageStore, Keys, Rows, Stamp, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Self

    from pipelines.types import ImageSource


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
        prefix, data, offsets = self._prefix, self.keys.data, self.keys.offsets
        starts, ends = offsets[rows].tolist(), offsets[rows + 1].tolist()
        return [
            np.frombuffer(prefix + data[start:end].tobytes(), np.uint8)
            for start, end in zip(starts, ends, strict=True)
        ]

    @property
    def repair(self) -> str:
        return "repair or remove the file"

    def path(self, row: int) -> Path:
        """The file of an image."""
        return Path(os.fsdecode(self._prefix + self.keys[row]))

    def open(self, row: int) -> BinaryIO:
        return self.path(row).open("rb")

    def header(self, row: int) -> tuple[int, int, ImageFormat]:
        return read_header(self._prefix + self.keys[row])

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

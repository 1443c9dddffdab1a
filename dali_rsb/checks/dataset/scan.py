"""Reads and decodes every image of a dataset once, as training would, in parallel."""

from __future__ import annotations

import hashlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from nvidia.dali import Pipeline
from PIL import Image
from tqdm import tqdm

from dali_rsb.dataset import DatasetIndex, ImageFormat
from dali_rsb.dataset.image_header import open_with_pillow
from dali_rsb.loader.conversion import Conversions
from dali_rsb.system.cpus import available_cpus
from pipelines.decoding import decode_check_pipeline

Outcome: TypeAlias = Literal["DALI", "Pillow", "damaged", "undecodable"]

_IMAGES_PER_TASK = 16


@dataclass(frozen=True)
class Scan:
    """What reading a dataset has shown, by the rows of its index.

    Attributes:
        index: the dataset.
        outcomes: which decoder takes each image; "damaged" if DALI does and Pillow refuses it, so
            that training would see its sound part; "undecodable" if none does, so that training
            would put another one in its place.
        digests: of each image's bytes; empty where they cannot be read.
    """

    index: DatasetIndex
    outcomes: list[Outcome]
    digests: list[bytes]

    @property
    def undecodable(self) -> list[int]:
        """Rows of the images that nothing decodes."""
        return self._rows("undecodable")

    @property
    def damaged(self) -> list[int]:
        """Rows of the images that DALI decodes though their data are damaged."""
        return self._rows("damaged")

    def _rows(self, outcome: Outcome) -> list[int]:
        return [row for row, found in enumerate(self.outcomes) if found == outcome]


def scan(index: DatasetIndex, num_workers: int | None = None, progress: bool = True) -> Scan:
    """Decode all images on the CPU.

    Args:
        num_workers: threads; by default the CPUs that this process may use.
        progress: show a progress bar with the time left if stderr is a terminal.

    Raises:
        UserError: a shard cannot be opened, or no folder for converted copies is writable.
    """
    decoder = _Decoder(index)
    tasks = [
        range(start, min(start + _IMAGES_PER_TASK, len(index)))
        for start in range(0, len(index), _IMAGES_PER_TASK)
    ]
    outcomes: list[Outcome] = []
    digests: list[bytes] = []
    show = progress and sys.stderr.isatty()
    Image.init()  # threads that load plugins at the same time get in each other's way
    with (
        ThreadPoolExecutor(num_workers or available_cpus()) as pool,
        tqdm(total=len(index), desc="verifying", unit="img", disable=not show) as bar,
    ):
        try:
            for found in pool.map(decoder.examine, tasks):
                outcomes += [outcome for outcome, _ in found]
                digests += [digest for _, digest in found]
                bar.update(len(found))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Scan(index, outcomes, digests)


class _Decoder:
    """Decodes images by a DALI pipeline of each thread, and by Pillow what DALI rejects."""

    def __init__(self, index: DatasetIndex) -> None:
        self._index = index
        self._conversions = Conversions(index)
        self._threads = threading.local()

    def examine(self, rows: range) -> list[tuple[Outcome, bytes]]:
        return [(self._decode(row), self._digest(row)) for row in rows]

    def _digest(self, row: int) -> bytes:
        try:
            with self._index.open(row) as file:
                return hashlib.sha256(file.read()).digest()
        except OSError:
            return b""

    def _decode(self, row: int) -> Outcome:
        original = self._index.image_arrays(np.array([row]))[0]
        inputs, source = self._conversions.image_inputs(row), self._index.image_source
        is_copy = not np.array_equal(inputs[source][0], original)
        pipeline: Pipeline | None = getattr(self._threads, "pipeline", None)
        if pipeline is None:
            pipeline = self._threads.pipeline = decode_check_pipeline(source)
        try:
            pipeline.run(**inputs)
        except RuntimeError:
            self._threads.pipeline = None  # DALI drops a pipeline that failed
            return "Pillow" if self._conversions.convert_rejected(row) else "undecodable"
        if is_copy:
            return "Pillow"
        return "damaged" if self._is_damaged(row) else "DALI"

    def _is_damaged(self, row: int) -> bool:
        """Whether Pillow refuses an image that DALI has decoded.

        Of the forms that DALI gets, this is known of JPEGs alone: libjpeg forgives damaged data,
        and Pillow reads on to the end of the file, DALI to the last row that it needs.
        """
        if self._index.formats[row] != ImageFormat.JPEG:
            return False
        try:
            with self._index.open(row) as file:
                open_with_pillow(file).load()
        except Exception:  # Pillow's plugins raise nearly every type on damaged files
            return True
        return False

"""How fast the images can be read, and how many of them lie in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dali_rsb.checks.machine.finding import Finding, note, ok, problem
from dali_rsb.checks.machine.gpu import Gpu

NUM_SAMPLES = 512
NUM_THREADS = 16
READ_SECONDS = 3.0
COUNT_SECONDS = 10.0
# A larger file is a container of images: one image's worth is read from within.
CONTAINER_BYTES = 16 * 2**20
IMAGE_BYTES = 114_660  # mean of ImageNet's training images

# Images/s that a GPU trains ResNet-50 on with A3 (160 px), by compute capability: V100 from RSB's
# 15 hours on 4 of them, A100 FFCV's 3,518, H100 NVIDIA's MLPerf 7,054 (at 224 px).
GPU_RATES = {(7, 0): 600.0, (8, 0): 3500.0, (9, 0): 7000.0}
# Of one CPU, where CPUs decode: half of what two of them were measured at (README, "Results").
CPU_RATE = 449.0


@dataclass(frozen=True)
class Sample:
    """Some files of a dataset, picked at random.

    Attributes:
        files: paths.
        num_files: files of the whole dataset; less than all where counting took too long.
        mean_bytes: mean size of `files`.
        counted_all: whether `num_files` is all.
    """

    files: Sequence[Path]
    num_files: int
    mean_bytes: float
    counted_all: bool

    @property
    def total_bytes(self) -> int:
        return int(self.num_files * self.mean_bytes)


@dataclass(frozen=True)
class Reads:
    """A timed read of random files.

    Attributes:
        cached_before: share of their pages that lay in the page cache; None if that is unknown.
        cached_at_start: the same after they were dropped from it.
    """

    num_images: int
    num_bytes: int
    wall_s: float
    cached_before: float | None
    cached_at_start: float | None

    @property
    def img_per_s(self) -> float:
        return self.num_images / self.wall_s

    @property
    def mb_per_s(self) -> float:
        return self.num_bytes / self.wall_s / 1e6


def sample_files(
    root: Path, clock: Callable[[], float] = time.monotonic, seed: int = 0
) -> Sample | None:
    """Pick files under a folder, evenly; None if there are none. Hidden files are left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    draw = random.Random(seed)
    picked: list[Path] = []
    num_files, counted_all = 0, True
    folders = [root]
    start_s = clock()
    while folders:
        if clock() - start_s > COUNT_SECONDS:
            counted_all = False
            break
        # At random, so that a count that is cut short has not seen the first classes alone.
        position = draw.randrange(len(folders))
        folders[position], folders[-1] = folders[-1], folders[position]
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(Path(entry.path))
                    continue
                if not entry.is_file():  # a broken link
                    continue
                num_files += 1
                # Reservoir sampling: each file seen is picked with the same probability.
                if len(picked) < NUM_SAMPLES:
                    picked.append(Path(entry.path))
                elif (place := draw.randrange(num_files)) < NUM_SAMPLES:
                    picked[place] = Path(entry.path)
    if not picked:
        return None
    draw.shuffle(picked)
    mean_bytes = sum(path.stat().st_size for path in picked) / len(picked)
    return Sample(picked, num_files, mean_bytes, counted_all)


def cached_share(files: Sequence[Path]) -> float | None:
    """Share of the files' pages in the page cache; None where the kernel does not tell.

    It tells owners and those who may write: to others every page looks present.
    """
    pages = present = 0
    for path in files:
        if not (path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK)):
            continue
        found = _resident_pages(path)
        if found is not None:
            present, pages = present + found[0], pages + found[1]
    return present / pages if pages else None


def _resident_pages(path: Path) -> tuple[int, int] | None:
    """(pages in the page cache, pages) of a file."""
    size = path.stat().st_size
    if size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        address = np.frombuffer(view, np.uint8).ctypes.data
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) != 0:
            return None
        return sum(flag & 1 for flag in flags), len(flags)


def read_cold(
    files: Sequence[Path], seconds: float = READ_SECONDS, num_threads: int = NUM_THREADS
) -> Reads:
    """Drop the files from the page cache, then read them by several threads until time is up."""
    small = [path for path in files if path.stat().st_size < CONTAINER_BYTES]
    cached_before = cached_share(small)
    for path in files:
        _drop_from_cache(path)
    cached_at_start = cached_share(small)
    start_s = time.perf_counter()

    def read(path: Path) -> int:
        return _read_one_image(path) if time.perf_counter() - start_s < seconds else -1

    with ThreadPoolExecutor(num_threads) as pool:
        sizes = [size for size in pool.map(read, files) if size >= 0]
    wall_s = max(time.perf_counter() - start_s, 1e-6)
    return Reads(len(sizes), sum(sizes), wall_s, cached_before, cached_at_start)


def _drop_from_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _read_one_image(path: Path) -> int:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size < CONTAINER_BYTES:
            return len(file.read())
        file.seek(random.Random(str(path)).randrange(size - IMAGE_BYTES))
        return len(file.read(IMAGE_BYTES))


def needed_rate(gpus: Sequence[Gpu], num_cpus: int) -> float:
    """Images/s that this machine can train ResNet-50 on at 160 px, roughly; published rates."""
    if not gpus:
        return CPU_RATE * num_cpus
    known = sorted(GPU_RATES)
    rates = []
    for gpu in gpus:
        below = [capability for capability in known if capability <= gpu.capability]
        rates.append(GPU_RATES[below[-1] if below else known[0]])
    return sum(rates)


def check_storage(root: Path, reads: Reads, needed: float, fits_memory: bool) -> Finding:
    """Is the storage fast enough for this machine?

    Args:
        needed: images/s.
        fits_memory: whether all images stay in the page cache after the first epoch.
    """
    name = "storage"
    rate = f"{reads.img_per_s:,.0f} img/s ({reads.mb_per_s:,.0f} MB/s) from {root}"
    if reads.cached_before is not None:
        rate += f", {100 * reads.cached_before:.0f} % of the files lay in the page cache"
    if reads.cached_at_start is None:
        rate += "; read as they lay, as the kernel does not tell this user what is cached"
    elif reads.cached_at_start > 0.1:
        rate += "; they cannot be dropped from it (a RAM disk?), so that this is memory's speed"
    wanted = f"training here may want {needed:,.0f} img/s"
    if reads.img_per_s >= needed:
        return ok(name, f"{rate}; {wanted}")
    if fits_memory:
        return note(
            name,
            f"{rate}; {wanted}, which it gets from the page cache after the first epoch",
            f"find {root} -type f -print0 | xargs -0 -P 16 cat > /dev/null  # fills it now",
        )
    return problem(
        name,
        f"{rate}; {wanted}",
        f"python -m dali_rsb.pack {root} DIRECTORY_ON_A_LOCAL_DISK",
    )

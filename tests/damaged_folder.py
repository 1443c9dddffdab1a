"""A program for tests/loader/test_damaged_images.py: loaders meet a folder full of damaged images.

The files are damaged after they were indexed. Half of the time the index is made to believe that
they have not changed, so that DALI meets them. Good images must give the pixels that they give in
a healthy folder, and a bad one must be named once.

    python damaged_folder.py FOLDER FIRST_SEED LAST_SEED [quick]

damages 32 of 96 images, each in another way; quick tries a quarter of the settings with each seed.

    python damaged_folder.py FOLDER cut STEP

cuts one of 320 JPEGs at every STEPth byte of its header.
"""

import collections
import importlib
import itertools
import logging
import os
import re
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from damage import damaged, encoded

from dali_rsb import DaliLoader
from dali_rsb.dataset import open_index

torch.set_num_threads(1)
# Once for all forks, which would spend most of their time on it.
importlib.import_module("dali_rsb.kernels.resize_numba")


class Named(logging.Handler):
    """Counts how often each file is named as bad."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.times = collections.Counter()

    def emit(self, record):
        if found := re.match(
            r"(\S+) (cannot be decoded|has \d+ x \d+ pixels)", record.getMessage()
        ):
            self.times[Path(found[1]).name] += 1


NAMED = Named()
logging.getLogger("dali_rsb").addHandler(NAMED)


def images_of_an_epoch(index, batch, train, size_px, seed, epochs=1, world=(1, 0)):
    """uint8 [epochs x N, 3, size_px, size_px] in the order of the dataset.

    `world` is the number of processes and the rank of this one, which gets every so-manyth image.
    """
    with DaliLoader(
        index,
        batch,
        train=train,
        shuffle=False,
        drop_last=False,
        size_px=size_px,
        dtype=torch.uint8,
        device="cpu",
        num_threads=2,
        seed=seed,
        num_replicas=world[0],
        rank=world[1],
        on_bad_image="substitute",
        max_bad_fraction=0.9,
    ) as loader:
        return torch.cat([images for _ in range(epochs) for images, _ in loader])


def write(root, name, data):
    path = root / "data" / "ab"[int(name) % 2] / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def believe_unchanged(index, rows):
    for row in rows:
        status = index.path(row).stat()
        index.stamps[row] = (status.st_mtime_ns, status.st_size)


def check(index, healthy, bad_rows, batch, train, size_px, seed, world=(1, 0)):
    """Two epochs of a damaged folder beside one of the healthy one; which files were named.

    `healthy` holds the images of all processes.
    """
    NAMED.times.clear()
    rows = np.arange(world[1], len(index), world[0])
    images = images_of_an_epoch(index, batch, train, size_px, seed, epochs=2, world=world)
    epochs = images.split(len(rows))
    is_good = ~np.isin(rows, bad_rows)
    assert torch.equal(epochs[0][is_good], healthy[rows[is_good]]), "a good image has changed"
    assert [len(images) for images in epochs] == [len(rows)] * 2
    assert set(NAMED.times.values()) <= {1}, NAMED.times
    assert set(NAMED.times) <= {index.path(row).name for row in bad_rows}, NAMED.times
    return set(NAMED.times)


def fork(work, path):
    """Run `work` in a fork, which stores what it returns."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            torch.save(work(), path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return process


def results(forks):
    """What some forks returned, and the largest peak of their memory in bytes.

    Args:
        forks: their process ids, by the paths that they stored it at.
    """
    peak_bytes = 0
    for process in forks.values():
        _, status, usage = os.wait4(process, 0)
        assert status == 0, f"exit code {os.waitstatus_to_exitcode(status)}"
        peak_bytes = max(peak_bytes, 1024 * usage.ru_maxrss)
    return [torch.load(path) for path in forks], peak_bytes


def sweep(root, first_seed, last_seed, is_quick):
    """Folders with 32 kinds of damage; with all settings, or with some of them in turn."""
    files = [f"{i:03d}" for i in range(64 + len(damaged()))]
    all_settings = [*itertools.product((True, False), (32, 224), (1, 2))]
    most_bytes, begun_s = 0, time.monotonic()
    for seed in range(first_seed, last_seed + 1):
        for name in files:
            write(root, name, encoded(48, 40, seed=int(name)))
        bad_names = np.random.default_rng(seed).choice(files, len(damaged()), replace=False)
        settings = all_settings[seed % 4 :: 4] if is_quick else all_settings
        for train, size_px, num_processes in settings:
            unnoticed = (seed // 4 + train) % 2
            more_bytes = one(root, bad_names, seed, train, size_px, num_processes, unnoticed)
            most_bytes = max(most_bytes, more_bytes)
        if seed % 10 == 0:
            print(
                f"seed {seed}: at most {most_bytes / 1e6:.0f} MB above the clean run, "
                f"{time.monotonic() - begun_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )


def one(root, bad_names, seed, train, size_px, num_processes, unnoticed):
    """A damaged folder beside the healthy one; returns by how many bytes its peak is higher."""
    for name in bad_names:
        write(root, name, encoded(48, 40, seed=int(name)))
    index = open_index(root / "data", progress=False)
    rows = {index.path(row).stem: row for row in range(len(index))}
    bad_rows = [rows[name] for name in bad_names]
    believe_unchanged(index, bad_rows)
    settings, result = (64, train, size_px, seed), root / "result.pt"
    clean = fork(lambda: images_of_an_epoch(index, *settings), result)
    (healthy,), clean_bytes = results({result: clean})
    for name, data in zip(bad_names, damaged(seed).values(), strict=True):
        write(root, name, data)
    if unnoticed:
        believe_unchanged(index, bad_rows)
    forks = {}
    for rank in range(num_processes):
        world, path = (num_processes, rank), root / f"result-{rank}.pt"
        forks[path] = fork(partial(check, index, healthy, bad_rows, *settings, world), path)
    named, peak_bytes = results(forks)
    # Most kinds are beyond repair: those that are not are used as they are.
    assert len(set().union(*named)) == sum(map(len, named)) >= 24, named
    assert peak_bytes - clean_bytes < 1e9, f"{peak_bytes / 1e6:.0f} MB"
    return peak_bytes - clean_bytes


def cuts(root, step):
    for i in range(320):
        write(root, f"{i:03d}", encoded(48, 40, seed=i))
    index = open_index(root / "data", progress=False)
    whole = index.path(77).read_bytes()
    header = whole.index(b"\xff\xda") + 14
    healthy = images_of_an_epoch(index, 64, True, 32, 0)
    for length in range(0, header + 1, step):
        for unnoticed in (False, True):
            index.path(77).write_bytes(whole[:length])
            index = open_index(root / "data", progress=False)
            if unnoticed:
                believe_unchanged(index, [77])
            assert check(index, healthy, [77], 64, True, 32, 0) == {"154.jpg"}, length
    print(f"{header + 1} bytes of header", file=sys.stderr)


def main():
    root = Path(sys.argv[1])
    if sys.argv[2] == "cut":
        cuts(root, int(sys.argv[3]))
    else:
        sweep(root, int(sys.argv[2]), int(sys.argv[3]), "quick" in sys.argv)
    print("survived")


if __name__ == "__main__":
    main()

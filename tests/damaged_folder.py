"""A program for tests/loader/test_damaged_images.py: loaders meet a folder full of damaged images.

The files are damaged after they were indexed. Half of the time the index is made to believe that
they have not changed, so that DALI meets them. Good images must give the pixels that they give in
a healthy folder, and a bad one must be named once.

    python damaged_folder.py FOLDER FIRST_SEED LAST_SEED    32 kinds of damage, 64 good images
    python damaged_folder.py FOLDER cut STEP    a JPEG cut at every STEPth byte, 319 good images
"""

import collections
import logging
import re
import sys
from pathlib import Path

import numpy as np
import torch
from damage import damaged, encoded

from dali_rsb import DaliLoader
from dali_rsb.dataset import open_index

torch.set_num_threads(1)


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


def images_of_an_epoch(index, batch, train, size_px, seed, epochs=1):
    """uint8 [epochs x N, 3, size_px, size_px] in the order of the dataset."""
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


def check(index, healthy, bad_rows, batch, train, size_px, seed):
    """Two epochs of a damaged folder beside one of the healthy one."""
    NAMED.times.clear()
    epochs = images_of_an_epoch(index, batch, train, size_px, seed, epochs=2).split(len(index))
    good = np.setdiff1d(np.arange(len(index)), bad_rows)
    assert torch.equal(epochs[0][good], healthy[good]), "a good image has changed"
    assert all(len(images) == len(index) for images in epochs)
    assert set(NAMED.times.values()) <= {1}, NAMED.times
    assert set(NAMED.times) <= {index.path(row).name for row in bad_rows}, NAMED.times
    return len(NAMED.times)


def sweep(root, first_seed, last_seed):
    num_bad = len(damaged())
    numbers = [f"{i:03d}" for i in range(64 + num_bad)]
    for seed in range(first_seed, last_seed + 1):
        rng = np.random.default_rng(seed)
        bad_names = rng.choice(numbers, num_bad, replace=False)
        for i, name in enumerate(numbers):
            write(root, name, encoded(48, 40, seed=i))
        for train in (True, False):
            for size_px in (32, 224):
                index = open_index(root / "data", progress=False)
                rows = {index.path(row).stem: row for row in range(len(index))}
                bad_rows = [rows[name] for name in bad_names]
                for name in bad_names:
                    write(root, name, encoded(48, 40, seed=int(name)))
                believe_unchanged(index, bad_rows)
                healthy = images_of_an_epoch(index, 64, train, size_px, seed)
                for name, data in zip(bad_names, damaged(seed).values(), strict=True):
                    write(root, name, data)
                if (seed + train) % 2:
                    believe_unchanged(index, bad_rows)
                num_named = check(index, healthy, bad_rows, 64, train, size_px, seed)
                # Most kinds are beyond repair: those that are not are used as they are.
                assert num_named >= 24, NAMED.times
        if seed % 20 == 0:
            print(f"seed {seed}: {num_named} of {num_bad} named", file=sys.stderr, flush=True)


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
            assert check(index, healthy, [77], 64, True, 32, 0) == 1, length
    print(f"{header + 1} bytes of header", file=sys.stderr)


def main():
    root = Path(sys.argv[1])
    if sys.argv[2] == "cut":
        cuts(root, int(sys.argv[3]))
    else:
        sweep(root, int(sys.argv[2]), int(sys.argv[3]))
    print("survived")


if __name__ == "__main__":
    main()

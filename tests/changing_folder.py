"""A program for test_changed_images.py: files are written to while a loader reads them.

A thread overwrites sixteen of 80 files, again and again: by smaller and larger images, and by parts
of images. The others must come through unchanged.

    python changing_folder.py FOLDER SECONDS
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from damage import encoded

from dali_rsb import DaliLoader
from dali_rsb.dataset import open_index

torch.set_num_threads(1)
NUM_IMAGES, NUM_CHANGING, BATCH = 80, 16, 40


def write_to_all(paths, is_over):
    rng = np.random.default_rng(0)
    images = [encoded(*size) for size in ((48, 40), (9, 400), (400, 9), (300, 300), (1, 1))]
    while not is_over.is_set():
        image = images[rng.integers(len(images))]
        end = len(image) if rng.random() < 0.5 else int(rng.integers(len(image)))
        paths[rng.integers(len(paths))].write_bytes(image[:end])
        time.sleep(0.0005)


def main():
    root, seconds = Path(sys.argv[1]) / "data", float(sys.argv[2])
    for i in range(NUM_IMAGES):
        path = root / "ab"[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(300, 200, seed=i))
    index = open_index(root, progress=False)
    changing = np.random.default_rng(1).choice(NUM_IMAGES, NUM_CHANGING, replace=False)
    others = np.setdiff1d(np.arange(NUM_IMAGES), changing)
    is_over = threading.Event()
    writer = threading.Thread(
        target=write_to_all, args=([index.path(row) for row in changing], is_over)
    )
    with DaliLoader(
        index,
        BATCH,
        train=True,
        shuffle=False,
        size_px=96,
        dtype=torch.uint8,
        device="cpu",
        num_threads=2,
        max_bad_fraction=0.9,
    ) as loader:

        def epoch():
            loader.set_epoch(0)
            return torch.cat([images for images, _ in loader])[others]

        expected = epoch()
        writer.start()
        try:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                assert torch.equal(epoch(), expected), "a good image has changed"
        finally:
            is_over.set()
            writer.join()
    print("survived")


if __name__ == "__main__":
    main()

"""A program for tests/loader/test_damaged_images.py: pipelines meet images that DALI refuses.

Every round builds a new pipeline and lets the middle one of three batches in flight fail, with one
to three of its images refused.

    python refused_by_decoder.py ROUNDS
"""

import itertools
import sys

import numpy as np
from damage import encoded, unreadable_headers

from pipelines import eval_pipeline, train_pipeline
from pipelines.arguments import EvalArguments, TrainArguments

BATCH = 64  # DALI reads 32 headers or more on several threads
HEIGHT, WIDTH = 40, 48


def inputs(mode, images):
    """A batch of a graph: whole images, neither mirrored nor mixed."""
    rows = len(images)
    size = np.tile(np.array([HEIGHT, WIDTH], np.int32), (rows, 1))
    batch = {
        "encoded": [np.frombuffer(image, np.uint8) for image in images],
        "size": np.pad(size, ((0, 0), (0, 1)), constant_values=3),
        "start": np.zeros((rows, 2), np.float32),
        "end": size.astype(np.float32),
    }
    if mode != "eval":
        batch["interpolation"] = np.ones(rows, np.int32)
    if mode == "roi":
        batch |= {"anchor": np.zeros_like(size), "shape": size}
    if mode == "shared":
        batch |= {"is_first": np.ones(rows, bool), "source": np.arange(rows, dtype=np.int32)}
    return batch


def build(mode):
    options = {
        "size_px": 32,
        "batch_size": BATCH,
        "num_threads": 1,
        "device_id": None,
        "prefetch": 3,
        "source": "encoded",
    }
    if mode == "eval":
        return eval_pipeline(EvalArguments(**options))
    return train_pipeline(TrainArguments(**options, decode_mode=mode))


def outcomes(mode, batches):
    """Of each of three batches, its output or None if it failed."""
    pipeline = build(mode)
    pipeline.build()
    fed = [inputs(mode, images) for images in batches]
    for batch in fed:
        for name, data in batch.items():
            pipeline.feed_input(name, data)
    pipeline.schedule_run()  # the first one starts as many batches as are fed ahead
    for _ in fed:
        try:
            (output,) = pipeline.share_outputs()
            yield np.array(output.as_array())
            pipeline.release_outputs()
        except RuntimeError:
            yield None


def main():
    rng = np.random.default_rng(0)
    refused = unreadable_headers() | {
        "smaller than expected": encoded(16, 16),
        "larger than expected": encoded(480, 400),
        "turned by a quarter": encoded(HEIGHT, WIDTH),
        "empty windows": encoded(1, 1),
    }
    good = [encoded(WIDTH, HEIGHT, seed=i) for i in range(BATCH)]
    modes = ("roi", "full", "shared", "eval")
    expected = {mode: next(outcomes(mode, [good] * 3)) for mode in modes}
    for _, (mode, image) in itertools.product(
        range(int(sys.argv[1])), itertools.product(expected, refused.values())
    ):
        bad = list(good)
        for row in rng.integers(0, BATCH, rng.integers(1, 4)):
            bad[row] = image
        first, second, third = outcomes(mode, [good, bad, good])
        assert (first == expected[mode]).all()
        assert second is None
        assert third is None or (third == expected[mode]).all()
    print("survived")


if __name__ == "__main__":
    main()

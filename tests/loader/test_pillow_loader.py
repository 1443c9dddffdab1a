"""Evaluation batches by Pillow: the reference transform of each image, in order, or one line."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.order import EvalLayout
from dali_rsb.draws.samples import EvalSamples
from dali_rsb.errors import UserError
from dali_rsb.loader.pillow import PillowLoader, eval_transform

GEOMETRY = EvalGeometry(24, 0.875)


def samples_of(folder, rank=0):
    index = open_index(folder)
    return EvalSamples(index, EvalLayout(len(index), 4, 2, rank), GEOMETRY)


def test_each_process_has_its_images_in_order(photo_folder):
    found = []
    for rank in range(2):
        samples = samples_of(photo_folder, rank)
        loader = PillowLoader(samples, "bilinear", torch.device("cpu"), num_threads=2)
        for batch in loader.batches(samples.specs()):
            assert batch.images.shape == (4, 24, 24, 3)
            found += zip(batch.images[: batch.num_valid], batch.labels.tolist(), strict=False)
    index = open_index(photo_folder)
    assert len(found) == len(index) == 14
    for i, (pixels, label) in enumerate(found):
        image = Image.open(index.path(i)).convert("RGB")
        assert np.array_equal(pixels, eval_transform(image, GEOMETRY, "bilinear"))
        assert label == index.labels[i]


def test_an_image_that_pillow_cannot_decode_is_named(photo_folder, tmp_path):
    whole = (photo_folder / "n00000000" / "photo_0.JPEG").read_bytes()
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for number, content in enumerate([whole, whole[: len(whole) // 2], whole]):
        (tmp_path / "data" / "cat" / f"{number}.jpg").write_bytes(content)
    samples = samples_of(tmp_path / "data")
    loader = PillowLoader(samples, "bicubic", torch.device("cpu"), num_threads=1)
    with pytest.raises(UserError, match=r"Pillow cannot decode .*cat/1\.jpg: repair or remove"):
        list(loader.batches(samples.specs()))


def test_who_stops_early_waits_for_no_image_that_is_not_begun(photo_folder, monkeypatch):
    samples = samples_of(photo_folder)
    loader = PillowLoader(samples, "bicubic", torch.device("cpu"), num_threads=1)
    decode, decoded, closing = loader._pixels, [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *arguments, **options):
            closing.set()
            super().shutdown(*arguments, **options)

    def decode_after_the_first_batch_once_it_closes(row):
        decoded.append(row)
        if len(decoded) > 4:
            closing.wait(60)
        return decode(row)

    monkeypatch.setattr("dali_rsb.loader.pillow.ThreadPoolExecutor", Pool)
    monkeypatch.setattr(loader, "_pixels", decode_after_the_first_batch_once_it_closes)
    batches = loader.batches(samples.specs())
    next(batches)
    batches.close()
    assert len(decoded) <= 5  # of eight: the batch, and what the thread was at
    assert len(list(loader.batches(samples.specs()))) == 2

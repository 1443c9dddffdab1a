"""The warm-up: which batches it feeds, and that a run is the same bits with it and without."""

import logging

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from dali_rsb.config import load_config
from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.order import BatchLayout, EvalLayout
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import BatchSpec, EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import eval_loader, train_loader
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.loader.warm_up import (
    WholeImages,
    largest_batches,
    warm_up_evaluation,
    warm_up_training,
)
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer

CPU = torch.device("cpu")
BATCH = 8
NUM_IMAGES = 40
LARGEST = 17  # number of the largest image, which stands in the middle
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def _write_images(root, bad=()):
    """Images of rising size; one is much larger than all; those in `bad` lose their second half."""
    draw = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        folder = root / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shape = (300, 400, 3) if i == LARGEST else (20 + i, 30 + i, 3)
        path = folder / f"{i:03d}.jpg"
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(path)
        if i in bad:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return root


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(_write_images(tmp_path_factory.mktemp("sizes")), progress=False)


def _samples(index, decode_mode="roi", repeats=1):
    policy = RandAugmentPolicy.parse("rand-m6-mstd0.5-inc1")
    transform = TrainTransform(24, randaugment=policy, decode_mode=decode_mode)
    return TrainSamples(index, BatchLayout(BATCH, BATCH), transform, repeats=repeats)


def _loader(samples, policy="substitute"):
    bad_images = BadImages(samples.index, policy, max_fraction=0.1)
    return train_loader(samples, LoaderSettings(threads=1, prefetch=2), CPU, bad_images)


def _number(index, i):
    return int(index.path(i).stem)


def _pixels(index):
    return index.widths.astype(np.int64) * index.heights


def test_the_largest_batches_of_the_stream_and_the_largest_image_are_fed(index):
    samples, pixels = _samples(index), _pixels(index)
    specs = [spec for epoch in range(6) for spec in samples.specs(epoch)]
    without = np.where(pixels == pixels.max(), 0, pixels)  # so that it joins a batch it is not in
    sums = sorted((int(without[spec.indices].sum()) for spec in specs), reverse=True)
    got = largest_batches(iter(specs), without, 3)
    assert [int(without[spec.indices].sum()) for spec in got[1:]] == sums[1:3]
    (first,) = largest_batches(iter(specs), pixels, 1)
    assert LARGEST in [_number(index, i) for i in first.indices]
    spec = BatchSpec(np.flatnonzero(pixels < pixels.max())[:BATCH], BATCH)
    (joined,) = largest_batches([spec], pixels, 2)
    assert LARGEST in [_number(index, i) for i in joined.indices]
    assert len(np.intersect1d(joined.indices, spec.indices)) == BATCH - 1
    assert np.array_equal(spec.indices, np.flatnonzero(pixels < pixels.max())[:BATCH])


def test_the_largest_image_joins_the_largest_batch_and_no_other():
    pixels = np.array([100, 70, 60, 55, 50, 2, 1])
    specs = [BatchSpec(np.array(rows), 2) for rows in ([5, 6], [3, 4], [1, 2])]
    got = largest_batches(iter(specs), pixels, 2)
    assert [spec.indices.tolist() for spec in got] == [[1, 0], [3, 4]]


@pytest.mark.parametrize("decode_mode", ["roi", "full", "shared"])
def test_windows_of_the_warm_up_are_whole_images(index, decode_mode):
    samples = _samples(index, decode_mode)
    spec = next(samples.specs(0))
    inputs = WholeImages(samples).prepare(spec).inputs
    size = np.stack([index.heights[spec.indices], index.widths[spec.indices]], axis=1)
    assert not inputs["start"].any()
    assert np.array_equal(inputs["end"], size)
    assert ("anchor" in inputs) == (decode_mode == "roi")
    if decode_mode == "roi":
        assert not inputs["anchor"].any()
        assert np.array_equal(inputs["shape"], size)
    plain = samples.prepare(spec).inputs
    assert inputs.keys() == plain.keys()
    assert all(inputs[name].dtype == plain[name].dtype for name in ("start", "end"))


class _Recorder:
    """Stands before samples and keeps the specifications that a loader asks for."""

    def __init__(self, samples):
        self.samples = samples
        self.specs = []

    def prepare(self, *specs):
        self.specs.extend(specs)
        return self.samples.prepare(*specs)


@pytest.mark.parametrize("decode_mode", ["roi", "full"])
def test_batches_are_the_same_after_a_warm_up(index, decode_mode):
    samples = _samples(index, decode_mode)
    expected = [batch.images.clone() for batch in _loader(samples).batches(samples.specs(1))]
    loader = _loader(samples)
    pixels = warm_up_training(loader, samples, epoch=0, end_epoch=3)
    assert pixels >= max(int(_pixels(index)[spec.indices].sum()) for spec in samples.stream(0, 3))
    got = [batch.images.clone() for batch in loader.batches(samples.specs(1))]
    assert len(got) == len(expected) == NUM_IMAGES // BATCH
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_undecodable_images_among_the_largest_are_replaced_as_in_training(tmp_path, caplog):
    index = open_index(_write_images(tmp_path / "images", bad=[LARGEST]), progress=False)
    samples = _samples(index)
    expected = [batch.images.clone() for batch in _loader(samples).batches(samples.specs(0))]
    loader = _loader(samples)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warm_up_training(loader, samples, epoch=0, end_epoch=2)
        assert f"{LARGEST:03d}.jpg cannot be decoded" in caplog.text
        got = [batch.images.clone() for batch in loader.batches(samples.specs(0))]
    assert len(caplog.records) == 1
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with pytest.raises(UserError, match=f"{LARGEST:03d}.jpg"):
        warm_up_training(_loader(samples, "raise"), samples, epoch=0, end_epoch=2)


def test_an_evaluation_is_the_same_after_a_warm_up(index):
    samples = EvalSamples(index, EvalLayout(NUM_IMAGES, 16), EvalGeometry(24, 0.9))
    settings = LoaderSettings(threads=1, prefetch=2)
    loader = eval_loader(samples, settings, CPU, BadImages(index, "raise"))
    before = [batch.images.clone() for batch in loader.batches(samples.specs())]
    recorder = _Recorder(samples)
    warm_up_evaluation(loader.with_samples(recorder), samples)
    numbers = {_number(index, i) for spec in recorder.specs for i in spec.indices}
    assert len(recorder.specs) == 2
    assert LARGEST in numbers
    after = [batch.images.clone() for batch in loader.batches(samples.specs())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class _FailingLoader:
    batches_in_flight = 2

    def __init__(self, message):
        self._message = message

    def with_samples(self, samples):
        return self

    def batches(self, specs):
        raise RuntimeError(self._message)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory",
        "Error in CPU operator: std::bad_alloc",
    ],
)
def test_too_little_memory_is_a_user_error(index, message):
    samples = _samples(index)
    with pytest.raises(UserError, match=r"do not fit .* lower run\.batch_per_device"):
        warm_up_training(_FailingLoader(message), samples, epoch=0, end_epoch=1)


def test_other_failures_stay_what_they_are(index):
    with pytest.raises(RuntimeError, match="something else"):
        warm_up_training(_FailingLoader("something else"), _samples(index), 0, 1)


def test_a_run_has_the_same_bits_with_and_without(digits, tmp_path, caplog):
    weights = []
    for warm_up in ("true", "false"):
        overrides = [
            f"data.digits={digits}",
            *("augment.size=16", "evaluation.size=16", "evaluation.batch_per_device=128"),
            *("optimizer.batch_size=96", "run.batch_per_device=96", "run.max_steps=2"),
            *("data.threads=1", "run.device=cpu", f"run.warm_up={warm_up}"),
        ]
        trainer = build_trainer(load_config(QUICKSTART, overrides), Processes(CPU))
        folder = tmp_path / warm_up
        folder.mkdir()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            trainer.run(folder)
        assert ("warm-up: the largest batches" in caplog.text) == (warm_up == "true")
        weights.append(trainer.step.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.gpu
@pytest.mark.parametrize("decode_mode", ["roi", "full"])
def test_the_memory_of_a_gpu_does_not_grow_after_a_warm_up(index, decode_mode):
    device = torch.device("cuda", 0)
    samples = _samples(index, decode_mode)
    loader = train_loader(samples, LoaderSettings(2, prefetch=2), device, BadImages(index))
    warm_up_training(loader, samples, epoch=0, end_epoch=8)
    torch.cuda.synchronize()
    free_after_warm_up, _ = torch.cuda.mem_get_info()
    for _ in loader.batches(samples.stream(0, 8)):
        pass
    torch.cuda.synchronize()
    free_after_training, _ = torch.cuda.mem_get_info()
    assert free_after_warm_up - free_after_training < 2**26  # torch's own, of batches in hand

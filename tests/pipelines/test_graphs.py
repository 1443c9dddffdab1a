"""The CPU graphs against PIL and timm: decode + crop + resize + flip, and the eval transform."""

import numpy as np
import pytest
from PIL import Image

from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.order import BatchLayout, EvalLayout
from dali_rsb.draws.samples import BatchSpec, EvalSamples, TrainSamples, TrainTransform
from dali_rsb.loader.cpu_resize import CpuResize
from dali_rsb.loader.executor import GraphRunner
from pipelines import eval_pipeline, train_pipeline
from pipelines.decoding import INTERPOLATIONS

NUM_EPOCHS = 6
FILTERS = {
    int(INTERPOLATIONS["bilinear"]): Image.Resampling.BILINEAR,
    int(INTERPOLATIONS["bicubic"]): Image.Resampling.BICUBIC,
}


@pytest.fixture(scope="module")
def index(photo_folder):
    return open_index(photo_folder, progress=False)


def _run(build, batches):
    runner = GraphRunner(build, prefetch=2)
    outputs = []
    for prepared in batches:
        runner.submit(prepared.inputs)
        outputs.append(runner.take().numpy())
    return np.concatenate(outputs)


# Mean difference to PIL: `fn.resize`, which GPUs have, and the resize of the CPU graph.
LIMITS = {"dali": 0.3, "host": 0.05}


@pytest.mark.parametrize("resize", LIMITS)
@pytest.mark.parametrize("decode_mode", ["roi", "full", "shared"])
@pytest.mark.parametrize("size_px", [160, 224])
def test_training_crops_are_pils(index, decode_mode, size_px, resize):
    transform = TrainTransform(size_px, decode_mode=decode_mode)
    samples = TrainSamples(index, BatchLayout(14, 14), transform, seed=1)
    specs = [next(samples.specs(epoch)) for epoch in range(NUM_EPOCHS)]
    prepared = [samples.prepare(spec) for spec in specs]

    got = _run(
        lambda: train_pipeline(
            size_px=size_px,
            batch_size=14,
            num_threads=1,
            device_id=None,
            decode_mode=decode_mode,
            host_resize=CpuResize(size_px, 2) if resize == "host" else None,
        ),
        prepared,
    )

    # Only this mode's inputs hold the window in whole pixels.
    reference_samples = TrainSamples(index, BatchLayout(14, 14), TrainTransform(size_px), seed=1)
    expected = [
        _pil_crop(index, spec, row, reference_samples.prepare(spec).inputs, size_px)
        for spec in specs
        for row in range(14)
    ]
    difference = np.abs(got.astype(int) - np.stack(expected))
    assert difference.mean() < LIMITS[resize]
    assert (difference <= 2).mean() > 0.995


def test_copies_of_one_decoded_image_equal_images_decoded_one_by_one(index):
    got = {}
    for decode_mode in ("shared", "full"):
        transform = TrainTransform(96, decode_mode=decode_mode)
        samples = TrainSamples(index, BatchLayout(12, 12), transform)
        indices = np.array([3, 3, 3, 1, 5, 1, 0, 7, 7, 7, 2, 3])
        spec = BatchSpec(indices, 12, epoch=0, positions=range(12))
        got[decode_mode] = _run(
            lambda mode=decode_mode: train_pipeline(
                size_px=96, batch_size=12, num_threads=1, device_id=None, decode_mode=mode
            ),
            [samples.prepare(spec)],
        )
    assert (got["shared"] == got["full"]).all()
    assert (got["shared"][0] != got["shared"][1]).any()  # copies have windows of their own


def _pil_crop(index, spec, row, inputs, size_px):
    top, left = inputs["anchor"][row]
    height, width = inputs["shape"][row]
    image = Image.open(index.path(spec.indices[row])).convert("RGB")
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((size_px, size_px), FILTERS[inputs["interpolation"][row]])
    if inputs["start"][row, 1] > inputs["end"][row, 1]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


@pytest.mark.parametrize(("size_px", "crop_ratio"), [(224, 0.95), (224, 0.875), (160, 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval_graph_is_timms_transform(index, size_px, crop_ratio, interpolation):
    from timm.data.transforms_factory import transforms_imagenet_eval

    samples = EvalSamples(index, EvalLayout(14, 14), EvalGeometry(size_px, crop_ratio))
    got = _run(
        lambda: eval_pipeline(
            size_px=size_px,
            batch_size=14,
            num_threads=1,
            device_id=None,
            interpolation=interpolation,
        ),
        [samples.prepare(next(samples.specs()))],
    )

    transform = transforms_imagenet_eval(
        size_px, crop_pct=crop_ratio, interpolation=interpolation, use_prefetcher=True
    )
    expected = np.stack(
        [np.asarray(transform(Image.open(index.path(i)).convert("RGB"))) for i in range(14)]
    )
    difference = np.abs(got.astype(int) - expected.transpose(0, 2, 3, 1))
    assert difference.mean() < 0.3
    assert (difference <= 2).mean() > 0.995


def test_interpolation_and_flip_are_drawn_half_and_half(index):
    samples = TrainSamples(index, BatchLayout(14, 14), TrainTransform(32))
    inputs = [samples.prepare(next(samples.specs(epoch))).inputs for epoch in range(300)]
    flips = np.concatenate([i["start"][:, 1] > i["end"][:, 1] for i in inputs])
    cubic = np.concatenate([i["interpolation"] == int(INTERPOLATIONS["bicubic"]) for i in inputs])
    assert flips.mean() == pytest.approx(0.5, abs=0.03)
    assert cubic.mean() == pytest.approx(0.5, abs=0.03)
    assert np.corrcoef(flips, cubic)[0, 1] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("build", [train_pipeline, eval_pipeline])
def test_the_gpu_graph_is_accepted_by_every_operator(build):
    # Without a GPU a graph can be defined, which checks all names and types of arguments.
    from nvidia.dali import Pipeline

    options = {"randaugment_layers": 2} if build is train_pipeline else {}
    graph = build(size_px=64, batch_size=2, num_threads=1, device_id=0, **options)
    assert isinstance(graph, Pipeline)

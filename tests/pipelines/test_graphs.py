"""The CPU graphs against PIL and timm: decode + crop + resize + flip, and the eval transform."""

import re
import subprocess
import sys

import numpy as np
import nvidia.dali
import pytest
from PIL import Image

from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.order import BatchLayout, EvalLayout
from dali_rsb.draws.samples import BatchSpec, EvalSamples, TrainSamples, TrainTransform
from dali_rsb.loader.cpu_resize import CpuResize
from dali_rsb.loader.executor import PipelineRunner
from pipelines import EvalArguments, TrainArguments, eval_pipeline, train_pipeline
from pipelines.types import HW_DECODER_LOAD, INTERPOLATIONS

NUM_EPOCHS = 6
FILTERS = {
    INTERPOLATIONS["bilinear"]: Image.Resampling.BILINEAR,
    INTERPOLATIONS["bicubic"]: Image.Resampling.BICUBIC,
}


@pytest.fixture(scope="module")
def index(photo_folder):
    return open_index(photo_folder, progress=False)


def _run(build, batches):
    runner = PipelineRunner(build, prefetch=2)
    outputs = []
    for prepared in batches:
        runner.submit(prepared.inputs)
        outputs.append(runner.take().numpy())
    return np.concatenate(outputs)


# Mean difference to PIL: `fn.resize`, which GPUs have, and the resize of the CPU graph.
LIMITS = {"dali": 0.3, "host": 0.05}


@pytest.mark.parametrize("resize", LIMITS)
@pytest.mark.parametrize("decode_mode", ["roi", "full", "shared", "hybrid"])
@pytest.mark.parametrize("size_px", [160, 224])
def test_training_crops_are_pils(index, decode_mode, size_px, resize):
    transform = TrainTransform(size_px, decode_mode=decode_mode, gpu_share=0.5)
    samples = TrainSamples(index, BatchLayout(14, 14), transform, seed=1)
    specs = [next(samples.specs(epoch)) for epoch in range(NUM_EPOCHS)]
    prepared = [samples.prepare(spec) for spec in specs]

    got = _run(
        lambda: train_pipeline(
            TrainArguments(
                size_px=size_px,
                batch_size=14,
                num_threads=1,
                device_id=None,
                decode_mode=decode_mode,
                host_resize=CpuResize(size_px, 2) if resize == "host" else None,
            )
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
                TrainArguments(
                    size_px=96, batch_size=12, num_threads=1, device_id=None, decode_mode=mode
                )
            ),
            [samples.prepare(spec)],
        )
    assert (got["shared"] == got["full"]).all()
    assert (got["shared"][0] != got["shared"][1]).any()  # copies have windows of their own


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_hybrid_batch_has_rows_of_windows_and_rows_of_whole_images(index, share):
    """Each row equals that of its own mode, also where one of the two has no row."""
    got, specs = {}, []
    for mode in ("hybrid", "roi", "full"):
        transform = TrainTransform(96, decode_mode=mode, gpu_share=share)
        samples = TrainSamples(index, BatchLayout(14, 14), transform, seed=3)
        specs = [next(samples.specs(epoch)) for epoch in range(NUM_EPOCHS)]
        prepared = [samples.prepare(spec) for spec in specs]
        if mode == "hybrid":
            is_on_gpu = np.concatenate([run.inputs["is_on_gpu"] for run in prepared])
        arguments = TrainArguments(
            size_px=96, batch_size=14, num_threads=1, device_id=None, decode_mode=mode
        )
        got[mode] = _run(lambda arguments=arguments: train_pipeline(arguments), prepared)
    assert is_on_gpu.mean() == pytest.approx(share, abs=0.15)
    assert (
        got["hybrid"] == np.where(is_on_gpu[:, None, None, None], got["full"], got["roi"])
    ).all()
    assert (got["full"] != got["roi"]).any()


def test_which_rows_the_gpu_decodes_depends_on_the_position_alone(index):
    """Two processes, or one that goes on in the middle, give each position to the same decoder."""
    transform = TrainTransform(96, decode_mode="hybrid", gpu_share=0.5)

    def rows(world_size, rank, copies="together"):
        layout = BatchLayout(8, 8 // world_size, world_size, rank, copies)
        spec = next(TrainSamples(index, layout, transform, seed=5).specs(1))
        samples = TrainSamples(index, layout, transform, seed=5)
        return dict(zip(spec.positions, samples.prepare(spec).inputs["is_on_gpu"], strict=True))

    alone = rows(1, 0)
    assert len(set(alone.values())) == 2
    for copies in ("together", "spread"):
        assert rows(2, 0, copies) | rows(2, 1, copies) == alone


def _decoders(**options):
    """(operator, device) of each decoder in a training pipeline for a GPU, which is only traced."""
    of_a_gpu = {"size_px": 160, "batch_size": 8, "num_threads": 2, "device_id": 0}
    pipeline = train_pipeline(TrainArguments(**of_a_gpu, **options))
    pipeline._build_graph()
    specs = [str(operator.spec) for operator in pipeline._ops]
    return {
        (found[1], re.search(r"device: (\w+)", spec)[1])
        for spec in specs
        if (found := re.match(r"OpSpec for decoders__(\w+):", spec))
    }


@pytest.mark.parametrize(
    ("mode", "decoder", "expected"),
    [
        ("roi", "host", {("ImageSlice", "cpu")}),
        ("full", "gpu", {("Image", "mixed")}),
        ("hybrid", "host", {("Image", "mixed"), ("ImageSlice", "cpu")}),
        ("roi", "gpu", {("ImageSlice", "mixed")}),
        ("shared", "host", {("Image", "cpu")}),
        ("shared", "gpu", {("Image", "mixed")}),
    ],
)
def test_a_gpu_pipeline_decodes_where_it_is_told(mode, decoder, expected):
    assert _decoders(decode_mode=mode, decoder=decoder) == expected


@pytest.mark.parametrize("decode_mode", ["roi", "shared"])
def test_the_host_half_of_a_gpu_pipeline_is_the_cpu_pipelines(index, decode_mode):
    """Up to the copy to the GPU: the same operators with the same arguments, so the same pixels."""

    def until_the_copy(device_id):
        options = {"size_px": 96, "batch_size": 8, "num_threads": 2, "device_id": device_id}
        pipeline = train_pipeline(TrainArguments(**options, decode_mode=decode_mode))
        pipeline._build_graph()
        specs = [str(operator.spec) for operator in pipeline._ops]
        decoder = next(i for i, spec in enumerate(specs) if "for decoders__" in spec)
        return [re.sub(r"__\w+_\d+|_\d+\b", "", spec) for spec in specs[: decoder + 1]]

    assert until_the_copy(0) == until_the_copy(None)


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
            EvalArguments(
                size_px=size_px,
                batch_size=14,
                num_threads=1,
                device_id=None,
                interpolation=interpolation,
            )
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
    cubic = np.concatenate([i["interpolation"] == INTERPOLATIONS["bicubic"] for i in inputs])
    assert flips.mean() == pytest.approx(0.5, abs=0.03)
    assert cubic.mean() == pytest.approx(0.5, abs=0.03)
    assert np.corrcoef(flips, cubic)[0, 1] == pytest.approx(0, abs=0.05)


def test_the_gpu_pipelines_are_accepted_by_every_operator():
    # Without a GPU a pipeline can be defined, which checks all names and types of arguments.
    parts = {"size_px": 64, "batch_size": 2, "num_threads": 1, "device_id": 0}
    assert isinstance(
        train_pipeline(TrainArguments(**parts, randaugment_layers=2)), nvidia.dali.Pipeline
    )
    assert isinstance(eval_pipeline(EvalArguments(**parts)), nvidia.dali.Pipeline)


def test_codes_and_defaults_are_dalis():
    interpolations = nvidia.dali.types.DALIInterpType
    assert {
        "bilinear": interpolations.INTERP_LINEAR.value,
        "bicubic": interpolations.INTERP_CUBIC.value,
    } == INTERPOLATIONS
    schema = nvidia.dali.backend.GetSchema("decoders__Image")
    assert float(schema.GetArgumentDefaultValueString("hw_decoder_load")) == HW_DECODER_LOAD


def test_arguments_and_codes_load_no_dali():
    program = (
        "import sys, pipelines, pipelines.types; pipelines.TrainArguments; "
        "print([m for m in sys.modules if m.startswith(('nvidia', 'torch', 'dali_rsb'))]); "
        "pipelines.train_pipeline; print('nvidia.dali' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split("\n") == ["[]", "True", ""]

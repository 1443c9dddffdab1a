"""What only a GPU can show: its graph against the CPU's, and a run in every precision."""

import contextlib

import numpy as np
import pytest
import torch
from conftest import ROOT

from dali_rsb.config import load_config
from dali_rsb.dataset import open_index
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import TrainSamples, TrainTransform
from dali_rsb.kernels.bce import mixed_bce_plain
from dali_rsb.kernels.mix import normalize_mix, normalize_mix_plain
from dali_rsb.kernels.triton_support import triton_obstacle
from dali_rsb.loader.executor import PipelineRunner
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer
from dali_rsb.training.losses import MixedBinaryCrossEntropy
from pipelines import TrainArguments, train_pipeline

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("decode_mode", ["roi", "full", "shared"])
@pytest.mark.parametrize("policy", [None, "rand-m6-mstd0.5-inc1"])
def test_the_gpu_graph_gives_the_cpu_graphs_pixels(photo_folder, decode_mode, policy):
    index = open_index(photo_folder, progress=False)
    randaugment = None if policy is None else RandAugmentPolicy.parse(policy)
    transform = TrainTransform(160, randaugment=randaugment, decode_mode=decode_mode)
    samples = TrainSamples(index, BatchLayout(14, 14), transform)
    prepared = samples.prepare(next(samples.specs(0)))

    def pixels(device_id):
        def build():
            return train_pipeline(
                TrainArguments(
                    size_px=160,
                    batch_size=14,
                    num_threads=2,
                    device_id=device_id,
                    decode_mode=decode_mode,
                    randaugment_layers=transform.randaugment_layers,
                )
            )

        runner = PipelineRunner(build, prefetch=2)
        runner.submit(prepared.inputs)
        return runner.take().cpu().numpy().astype(int)

    difference = np.abs(pixels(0) - pixels(None))
    # The decoders differ by rounding; operations with thresholds can blow single levels up.
    assert np.median(difference) <= 1
    assert difference.mean() < (1.0 if policy is None else 3.0)


def test_images_that_are_dropped_at_once_are_read_before_they_are_overwritten(photo_folder):
    # The GPU is kept behind the host, so that DALI has long been told that it may have its memory.
    index = open_index(photo_folder, progress=False)
    transform = TrainTransform(160, decode_mode="full")
    samples = TrainSamples(index, BatchLayout(14, 14), transform)
    prepared = [samples.prepare(next(samples.specs(epoch))) for epoch in range(12)]

    def build():
        return train_pipeline(
            TrainArguments(
                size_px=160, batch_size=14, num_threads=2, device_id=0, decode_mode="full"
            )
        )

    def read(delay_cycles):
        runner = PipelineRunner(build, prefetch=2)
        batches = []
        runner.submit(prepared[0].inputs)
        for following in [*prepared[1:], None]:
            if following is not None:
                runner.submit(following.inputs)
            torch.cuda._sleep(delay_cycles)
            batches.append(runner.take().clone())
        torch.cuda.synchronize()
        return torch.stack(batches)

    assert torch.equal(read(delay_cycles=20_000_000), read(delay_cycles=0))


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_run_in_every_precision(digits, tmp_path, amp):
    if amp == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        [f"data.digits={digits}", "run.device=cuda", f"run.amp={amp}", "schedule.epochs=8"],
    )
    trainer = build_trainer(config, Processes(torch.device("cuda", 0)))
    trainer.run(tmp_path)
    accuracy = torch.load(tmp_path / "best.pt", weights_only=True)["best_top1"]
    assert accuracy > 90  # over 99 on a CPU


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def waiting_is_an_error():
    """A context in which whatever waits for the GPU raises an error."""

    @contextlib.contextmanager
    def strict():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return strict


def test_triton_can_be_used():
    assert triton_obstacle() is None


def random_images(*shape):
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda", generator=generator)


def random_mixing(batch, height, width):
    """Partner, lambda and box of each image: no box, all of the image, at a border, inside."""
    rng = np.random.default_rng(0)
    rows, columns = (np.sort(rng.integers(0, end + 1, (batch, 2))) for end in (height, width))
    box = np.concatenate([rows, columns], 1)
    box[0], box[1 % batch] = 0, (0, height, 0, width)
    lam = rng.uniform(0, 1, batch)
    lam[::3] = 1
    lam[2 % batch] = 0
    return (
        torch.from_numpy(rng.permutation(batch)).cuda(),
        torch.from_numpy(lam).float().cuda(),
        torch.from_numpy(box).int().cuda(),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(12, 160, 160), (5, 61, 37), (9, 1, 1), (6, 5, 2), (4, 30, 44)])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_mix_kernel_equals_its_reference(dtype, shape, offset):
    numel = int(np.prod(shape)) * 3
    images = random_images(offset + numel)[offset:].view(*shape, 3)
    constants = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), dtype
    for mixing in ((), random_mixing(*shape)):
        expected = normalize_mix_plain(images, *constants, *mixing)
        got = normalize_mix(images, *constants, *mixing)
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(
            got.double(), expected.double(), rtol=torch.finfo(dtype).eps, atol=2e-6
        )


def test_mix_kernel_beyond_two_to_the_31st_byte():
    if torch.cuda.get_device_properties(0).total_memory < 10 * 2**30:
        pytest.skip("needs 10 GiB")
    batch = 2**31 // (512 * 512 * 3) + 2
    images = random_images(batch, 512, 512, 3)
    ends = torch.tensor([0, batch - 1], device="cuda")
    partner, lam, box = random_mixing(batch, 512, 512)
    partner[ends] = ends.flip(0)
    got = normalize_mix(images, dtype=torch.float16, partner=partner, pixel_lam=lam, box=box)[ends]
    mixing = {"partner": torch.tensor([1, 0], device="cuda"), "pixel_lam": lam[ends]}
    expected = normalize_mix_plain(images[ends], dtype=torch.float16, box=box[ends], **mixing)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [1, 10, 1000, 21841])
@pytest.mark.parametrize(("smoothing", "threshold"), [(0.1, None), (0.0, 0.2), (0.1, 0.2)])
def test_bce_kernel_equals_its_reference(dtype, num_classes, smoothing, threshold):
    generator = torch.Generator("cuda").manual_seed(0)
    stored = torch.randn(64, num_classes + 1, device="cuda", generator=generator) * 4 - 4
    labels = torch.randint(num_classes, (64,), device="cuda", generator=generator)
    lam = torch.rand(64, device="cuda", generator=generator)
    lam[:3] = torch.tensor([0.0, 0.2, 1.0])
    loss_scale = 65536.0  # more than float16 holds

    def loss_and_gradient(function):
        logits = stored.to(dtype)[:, 1:].requires_grad_()  # rows at odd addresses
        loss = function(logits, labels, labels.flip(0), lam)
        (gradient,) = torch.autograd.grad(loss * loss_scale, logits)
        return loss.detach(), gradient.double() * logits.numel() / loss_scale

    def reference(*batch):
        return mixed_bce_plain(*batch, smoothing, threshold)

    loss, gradient = loss_and_gradient(MixedBinaryCrossEntropy(smoothing, threshold))
    expected, expected_gradient = loss_and_gradient(reference)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    numbers = torch.finfo(dtype)
    # Between the smallest numbers of the type, as far as the scaling above has moved them.
    gap = numbers.smallest_normal * numbers.eps * stored[:, 1:].numel() / loss_scale
    rtol = 2 * numbers.eps + 1e-5
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=1e-6 + 2 * gap)


def test_bce_targets_at_the_threshold_fall_on_the_references_side():
    lam = torch.linspace(0, 1, 4096, device="cuda")
    labels = torch.zeros(4096, dtype=torch.int64, device="cuda")

    def signs(function):
        logits = torch.zeros(4096, 4, device="cuda", requires_grad=True)
        function(logits, labels, labels + 1, lam).backward()
        return logits.grad < 0

    for index in (100, 1000, 2222, 4000):
        threshold = (0.925 * lam + 0.025 * (1 - lam))[index].item()
        expected = signs(lambda *batch, t=threshold: mixed_bce_plain(*batch, 0.1, t))
        assert torch.equal(signs(MixedBinaryCrossEntropy(0.1, threshold)), expected)


def test_mix_and_loss_wait_for_nothing_and_can_be_captured(waiting_is_an_error):
    images, mixing = random_images(8, 32, 32, 3), random_mixing(8, 32, 32)
    weight = torch.randn(3 * 32 * 32, 10, device="cuda", requires_grad=True)
    labels = torch.arange(8, device="cuda")
    criterion = MixedBinaryCrossEntropy(target_threshold=0.2)

    def step():
        inputs = normalize_mix(images, (0.5,) * 3, (0.2,) * 3, torch.float16, *mixing)
        with torch.autocast("cuda", torch.float16):
            loss = criterion(inputs.flatten(1) @ weight, labels, labels.flip(0), mixing[1])
        return loss.detach(), *torch.autograd.grad(loss * 1024, weight)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    with waiting_is_an_error():
        expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for got, wanted in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, wanted)

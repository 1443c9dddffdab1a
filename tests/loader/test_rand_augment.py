"""RandAugment by the kernels behind the pipeline: whole epochs against DALI's, and its backends."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

import dali_rsb
from dali_rsb.dataset import open_index
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.kernels.rand_augment import rand_augment_plain
from dali_rsb.loader import rand_augment as behind_the_pipeline
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import train_loader
from dali_rsb.loader.rand_augment import describe_randaugment, with_backend
from dali_rsb.loader.settings import LoaderSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
POLICY = "rand-m7-mstd0.5-inc1"
TRANSFORM = TrainTransform(64, randaugment=RandAugmentPolicy.parse(POLICY))
FILL = (10, 200, 90)


@pytest.fixture(autouse=True)
def obstacle(monkeypatch):
    """What keeps Triton and Numba from working: nothing, unless a test says otherwise."""
    obstacles = [None]
    for name in ("triton_obstacle", "numba_obstacle"):
        monkeypatch.setattr(behind_the_pipeline, name, lambda: obstacles[-1])
    return obstacles


def _epochs(index, transform, number):
    """The images of some epochs: uint8 [epochs, batches, 4, 64, 64, 3]."""
    samples = TrainSamples(index, BatchLayout(4, 4), transform, seed=5)
    settings = LoaderSettings(threads=1, prefetch=2, batches_per_run=2)
    loader = train_loader(samples, settings, CPU, BadImages(index), FILL)
    epochs = [loader.batches(samples.specs(epoch)) for epoch in range(number)]
    images = [torch.stack([batch.images for batch in batches]) for batches in epochs]
    loader.close()
    return torch.stack(images)


def test_epochs_by_the_kernels_equal_those_by_dali(photo_folder):
    """The plain version stands in for the kernels, which equal it."""
    index = open_index(photo_folder, progress=False)
    by_kernels = replace(TRANSFORM, randaugment_by="kernels")
    plain = replace(TRANSFORM, randaugment=None)
    expected = _epochs(index, TRANSFORM, 4).short()
    got = _epochs(index, by_kernels, 4).short()
    assert got.shape == expected.shape == (4, 3, 4, 64, 64, 3)
    # Per image: a level that the first layer is off by grows in a steep second one.
    difference = (got - expected).abs().float().flatten(3)
    assert (difference <= 2).float().mean() > 0.998
    assert difference.mean() < 0.25
    assert difference.mean(3).max() < 1.2
    changed = (_epochs(index, plain, 4) != expected).flatten(3).any(3)
    assert changed.sum() > 24, "RandAugment acts on three quarters of the images"


def test_loaders_of_the_public_choose_by_device(photo_folder, obstacle):
    options = {"train": True, "size_px": 64, "randaugment": POLICY, "dtype": torch.uint8}
    obstacle.append("the package numba is not installed")
    with dali_rsb.DaliLoader(photo_folder, 7, device="cpu", seed=3, **options) as loader:
        assert loader._preprocessing.transform.randaugment_by == "pipeline"
        expected = torch.cat([images for images, _ in loader])
    obstacle.append(None)
    with dali_rsb.DaliLoader(photo_folder, 7, device="cpu", seed=3, **options) as loader:
        assert loader._preprocessing.transform.randaugment_by == "kernels"
        by_numba = torch.cat([images for images, _ in loader])

    def on_a_gpu(transform, backend, device):
        return with_backend(transform, backend, GPU)

    with (
        patch("dali_rsb.dropin.epoch_loader.with_backend", on_a_gpu),
        dali_rsb.DaliLoader(photo_folder, 7, device="cpu", seed=3, **options) as loader,
    ):
        assert loader._preprocessing.transform.randaugment_by == "kernels"
        got = torch.cat([images for images, _ in loader])
    difference = (got.short() - expected.short()).abs().float()
    assert difference.mean() < 0.25
    assert got.shape == expected.shape
    assert torch.equal(got, by_numba)


@pytest.mark.parametrize(
    ("backend", "device", "why_not", "chosen"),
    [
        ("auto", GPU, None, "kernels"),
        ("auto", GPU, "no C compiler", "pipeline"),
        ("auto", CPU, None, "kernels"),
        ("auto", CPU, "no numba", "pipeline"),
        ("dali", CPU, None, "pipeline"),
        ("numba", CPU, None, "kernels"),
        ("numba", CPU, "no numba", r"augment\.backend=numba cannot run: no numba"),
        ("numba", GPU, None, r"augment\.backend=numba cannot run: it needs run.device=cpu"),
        ("dali", GPU, None, "pipeline"),
        ("triton", GPU, None, "kernels"),
        ("triton", GPU, "no C compiler", r"augment\.backend=triton cannot run: no C compiler"),
        ("triton", CPU, None, r"augment\.backend=triton cannot run: it needs a GPU"),
    ],
)
def test_backend_is_chosen_by_device_and_triton(obstacle, backend, device, why_not, chosen):
    obstacle.append(why_not)
    if chosen not in ("kernels", "pipeline"):
        with pytest.raises(UserError, match=chosen + "; set augment.backend=auto"):
            with_backend(TRANSFORM, backend, device)
        return
    transform = with_backend(TRANSFORM, backend, device)
    assert transform.randaugment_by == chosen
    assert transform.randaugment_layers == (2 if chosen == "pipeline" else 0)
    described = describe_randaugment(transform, device)
    assert (described is None) == (chosen == "pipeline")
    assert described is None or ("Triton" if device is GPU else "Numba") in described


def test_public_function_equals_the_plain_version():
    policy = dali_rsb.RandAugmentPolicy.parse("rand-m7-n3-p1-inc1")
    draws = policy.draw(np.random.default_rng(0).random((20, policy.num_uniforms)))
    images = torch.randint(0, 256, (20, 3, 30, 41), dtype=torch.uint8).permute(0, 2, 3, 1)
    got = dali_rsb.rand_augment(images, draws, FILL)
    operands = draws.operands((30, 41))
    arrays = (operands.branch, operands.value, operands.matrix)
    assert torch.equal(got, rand_augment_plain(images, *map(torch.from_numpy, arrays), FILL))
    assert got.is_contiguous()
    assert not torch.equal(got, images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 8, 8, 3), r"must be uint8 \[B, H, W, 3\], not float32 \[4, 8, 8, 3\]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"give .* as images\.permute\(0, 2, 3, 1\)"),
        (torch.zeros(5, 8, 8, 3, dtype=torch.uint8), "5 images, but draws of 4"),
    ],
)
def test_public_function_refuses_other_images_in_one_line(images, message):
    policy = RandAugmentPolicy.parse(POLICY)
    draws = policy.draw(np.random.default_rng(0).random((4, policy.num_uniforms)))
    with pytest.raises(UserError, match=message) as raised:
        dali_rsb.rand_augment(images, draws)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300

"""Normalise + mix + cast: against the formula and timm; kernel and CPU code against the twin."""

import re
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx import interpreted
from triton.runtime.interpreter import InterpreterBuilder

from dali_rsb.kernels import mix, mix_triton, triton_support
from dali_rsb.kernels.mix import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalize_mix,
    normalize_mix_plain,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), np.uint8))


def _mixing(pixel_lam, box):
    partner = torch.arange(7, -1, -1)
    lam = torch.full((8,), pixel_lam, dtype=torch.float32)
    return {
        "partner": partner,
        "pixel_lam": lam,
        "box": torch.tensor([box] * 8, dtype=torch.int32),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_normalisation(dtype):
    got = normalize_mix(IMAGES, dtype=dtype)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = ((IMAGES.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert got.dtype == dtype
    assert got.shape == (8, 3, 20, 20)
    assert got.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("pixel_lam", "box", "lam"),
    [
        (0.3, (0, 0, 0, 0), 0.3),
        (1.0, (3, 12, 0, 9), 1 - 81 / 400),
        (1.0, (0, 20, 0, 20), 0.0),
        (1.0, (0, 0, 0, 0), 1.0),
        (0.0, (0, 0, 0, 0), 0.0),
    ],
)
def test_mixing_equals_timms_mixup_with_the_same_lambda_and_box(pixel_lam, box, lam):
    from timm.data.mixup import Mixup

    top, bottom, left, right = box
    is_cutmix = bottom > top
    theirs = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=10)
    images = normalize_mix(IMAGES).clone(memory_format=torch.contiguous_format)
    target = torch.arange(8)
    with (
        patch.object(theirs, "_params_per_batch", return_value=(lam, is_cutmix)),
        patch(
            "timm.data.mixup.cutmix_bbox_and_lam",
            return_value=((top, bottom, left, right), lam),
        ),
    ):
        expected, _ = theirs(images, target)
    got = normalize_mix(IMAGES, **_mixing(pixel_lam, box))
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_lambda_1_without_a_box_changes_nothing():
    assert torch.equal(normalize_mix(IMAGES, **_mixing(1.0, (0, 0, 0, 0))), normalize_mix(IMAGES))


def run_kernel(
    images, mean=IMAGENET_MEAN, std=IMAGENET_STD, dtype=torch.float32, block=None, **mixing
):
    """The Triton kernel, by Triton's interpreter; `block` shrinks its programs."""
    drawn = [mixing.get(name) for name in ("partner", "pixel_lam", "box")]
    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(mix_triton, "_mix_kernel", interpreted(mix_triton._mix_kernel))
        if block is not None:
            replaced.setattr(mix_triton, "BLOCK", block)
            replaced.setattr(mix_triton, "CUT_BLOCK", block)
        constants = mix._scale_and_shift(mean, std)
        return mix_triton.normalize_mix_triton(images, *constants, dtype, *drawn)


def assert_equal_but_for_rounding(got, expected):
    """Equal to one unit in the last place, or to the rounding of the mixed level in float32."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected.double(), rtol=eps, atol=1e-6)


@st.composite
def batches(draw):
    """Images, in a view that starts at any address, and what they are mixed with, or nothing."""
    size = draw(st.integers(1, 4))
    height = draw(st.integers(1, 9))
    width = draw(st.one_of(st.integers(1, 11), st.sampled_from([8, 16, 24])))
    offset = draw(st.sampled_from([0, 0, 0, 1, 4, 8, 16]))
    numel = size * height * width * 3
    noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, numel, np.uint8)
    storage = torch.zeros(offset + numel, dtype=torch.uint8)
    storage[offset:] = torch.from_numpy(noise)
    images = storage[offset:].view(size, height, width, 3)
    if draw(st.booleans()):
        return images, {}

    def rows_of(values):
        return draw(st.lists(values, min_size=size, max_size=size))

    def interval(end):
        return st.one_of(
            st.lists(st.integers(0, end), min_size=2, max_size=2).map(sorted),
            st.sampled_from([[0, 0], [0, end], [end, end]]),
        )

    boxes = st.tuples(interval(height), interval(width)).map(lambda pair: pair[0] + pair[1])
    lams = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
    return images, {
        "partner": torch.tensor(rows_of(st.integers(0, size - 1))),
        "pixel_lam": torch.tensor(rows_of(lams), dtype=torch.float32),
        "box": torch.tensor(rows_of(boxes), dtype=torch.int32),
    }


@settings(max_examples=60)
@given(
    batch=batches(),
    dtype=st.sampled_from(DTYPES),
    block=st.sampled_from([4, 16, None]),
    normalization=st.sampled_from(
        [(IMAGENET_MEAN, IMAGENET_STD), ((0.5, 0.1, 0.9), (1.0, 0.3, 0.5))]
    ),
)
def test_kernel_equals_the_twin(batch, dtype, block, normalization):
    images, mixing = batch
    expected = normalize_mix_plain(images, *normalization, dtype, **mixing)
    got = run_kernel(images, *normalization, dtype, block, **mixing)
    assert_equal_but_for_rounding(got, expected)


@settings(max_examples=100)
@given(
    batch=batches(),
    dtype=st.sampled_from(DTYPES),
    band_values=st.sampled_from([1, 50, 100, mix._SERIAL_NUMEL]),
)
def test_cpu_code_equals_the_twin(batch, dtype, band_values):
    images, mixing = batch
    expected = normalize_mix_plain(images, dtype=dtype, **mixing)
    with patch.object(mix, "_SERIAL_NUMEL", band_values):
        got = normalize_mix(images, dtype=dtype, **mixing)
    assert_equal_but_for_rounding(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_px", [(40, 48), (37, 35)])
def test_kernel_on_several_programs_an_image(dtype, size_px):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, *size_px, 3), dtype=torch.uint8, generator=generator)
    mixing = {
        "partner": torch.tensor([2, 1, 0]),
        "pixel_lam": torch.tensor([1.0, 0.3, 0.6]),
        "box": torch.tensor([[5, 30, 0, 35], [0, 0, 0, 0], [12, 37, 8, 33]], dtype=torch.int32),
    }
    for drawn in ({}, mixing):
        expected = normalize_mix_plain(images, dtype=dtype, **drawn)
        assert_equal_but_for_rounding(run_kernel(images, dtype=dtype, **drawn), expected)


@pytest.mark.parametrize(
    ("pixel_lam", "box", "most"),
    [
        (None, None, 1.0),
        (1.0, (0, 0, 0, 0), 1.0),
        (0.0, (0, 0, 0, 0), 1.0),
        (1.0, (0, 20, 0, 20), 1.0),
        (0.5, (0, 0, 0, 0), 2.0),
        # On each of nine rows at most one group of four bytes on each side is read twice.
        (1.0, (3, 12, 5, 9), 1.0 + 9 * 2 * 4 / 1200),
    ],
)
def test_kernel_reads_only_what_counts(pixel_lam, box, most):
    num_read = 0
    load = InterpreterBuilder.create_masked_load

    def counted_load(self, pointers, mask, *others):
        nonlocal num_read
        if mask.data.size > 1:  # not the scalars
            num_read += np.broadcast_to(mask.data, pointers.data.shape).sum()
        return load(self, pointers, mask, *others)

    mixing = {} if box is None else _mixing(pixel_lam, box)
    with patch.object(InterpreterBuilder, "create_masked_load", counted_load):
        run_kernel(IMAGES, block=64, **mixing)
    assert IMAGES.numel() <= num_read <= most * IMAGES.numel()


def test_other_devices_get_the_twin():
    assert normalize_mix(IMAGES.to("meta"), dtype=torch.float16).shape == (8, 3, 20, 20)


@pytest.mark.parametrize(
    ("target", "replacement", "message"),
    [
        ("importlib.util.find_spec", lambda name: None, "triton is not installed"),
        ("shutil.which", lambda name: None, "no C compiler"),
        ("sysconfig.get_paths", lambda: {"include": "/nowhere"}, r"Python\.h"),
    ],
)
def test_a_gpu_without_triton_is_warned_about_once(
    monkeypatch, recwarn, target, replacement, message
):
    class OnGpu:
        is_cuda = True

    caches = triton_support.triton_obstacle, triton_support._warn_once
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(target, replacement)
    for cache in caches:
        cache.cache_clear()
    assert not triton_support.runs_triton(OnGpu())
    assert not triton_support.runs_triton(OnGpu())
    for cache in caches:
        cache.cache_clear()
    (warning,) = recwarn
    warning_text = str(warning.message)
    assert warning_text.startswith("plain PyTorch")
    assert re.search(message, warning_text)

"""Normalise + mix + cast: the plain version against the formula and against timm."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from dali_rsb.kernels.mix import IMAGENET_MEAN, IMAGENET_STD, normalize_mix

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), np.uint8))


def _mixing(pixel_lam, box):
    partner = torch.arange(7, -1, -1)
    lam = torch.full((8,), pixel_lam, dtype=torch.float32)
    return {
        "partner": partner,
        "pixel_lam": lam,
        "box": torch.tensor([box] * 8, dtype=torch.int32),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
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

"""Random numbers, crop windows and mixing draws as pure functions of the position."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dali_rsb.constants import PAIR_BLOCK
from dali_rsb.draws.crops import CROP_UNIFORMS, EvalGeometry, random_resized_crop
from dali_rsb.draws.mixing import MixPolicy, cutmix_box
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.philox import Stream, uniforms

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10_000),
    start=st.integers(0, 2**40),
    width=st.integers(1, 50),
    step=st.integers(1, 8),
)
@settings(max_examples=50)
def test_numbers_depend_on_the_position_alone(seed, epoch, start, width, step):
    whole = uniforms(seed, epoch, Stream.CROP, range(start, start + 24), width)
    part = uniforms(seed, epoch, Stream.CROP, range(start + 5, start + 24, step), width)
    assert (whole[5::step] == part).all()


def test_streams_epochs_and_seeds_differ():
    def numbers(seed=1, epoch=1, stream=Stream.CROP):
        return uniforms(seed, epoch, stream, range(100), 8)

    base = numbers()
    for other in (numbers(seed=2), numbers(epoch=2), numbers(stream=Stream.RANDAUGMENT)):
        assert not np.intersect1d(base, other).size


def test_numbers_are_uniform_and_independent_of_each_other():
    numbers = uniforms(0, 0, Stream.CROP, range(20_000), 6)
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    correlation = np.corrcoef(numbers.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.03


class _Replay:
    """Stands in for Python's `random`: attempts and corners from a row of given uniforms."""

    def __init__(self, row):
        self.attempts, self.corners = iter(row[:-2]), iter(row[-2:])

    def uniform(self, low, high):
        return low + next(self.attempts) * (high - low)

    def randint(self, low, high):
        return low + math.floor(next(self.corners) * (high - low + 1))


@pytest.mark.parametrize("size", [(500, 375), (160, 160), (90, 1200), (1500, 70), (7, 5)])
def test_crop_windows_equal_timms(size, monkeypatch):
    from PIL import Image
    from timm.data import transforms

    width, height = size
    numbers = uniforms(5, 0, Stream.CROP, range(500), CROP_UNIFORMS)
    windows = random_resized_crop(np.full(500, width), np.full(500, height), numbers, SCALE, RATIO)
    image = Image.new("RGB", size)
    fallbacks = 0
    for i, row in enumerate(numbers):
        replay = _Replay(row)
        monkeypatch.setattr(transforms, "random", replay)
        expected = transforms.RandomResizedCropAndInterpolation.get_params(image, SCALE, RATIO)
        fallbacks += next(replay.corners, None) is not None
        got = (windows.top[i], windows.left[i], windows.height[i], windows.width[i])
        assert got == tuple(expected), i
    if size == (1500, 70):
        assert fallbacks > 50  # this shape is there to reach the fallback


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    position=st.integers(0, 1000),
)
def test_crop_windows_lie_in_the_image(width, height, position):
    numbers = uniforms(0, 0, Stream.CROP, range(position, position + 4), CROP_UNIFORMS)
    w = random_resized_crop(np.full(4, width), np.full(4, height), numbers, SCALE, RATIO)
    assert (w.height >= 1).all()
    assert (w.width >= 1).all()
    assert (w.top >= 0).all()
    assert (w.left >= 0).all()
    assert (w.top + w.height <= height).all()
    assert (w.left + w.width <= width).all()


@pytest.mark.parametrize(
    ("size", "ratio", "resize"),
    [(224, 0.95, 235), (224, 0.875, 256), (160, 0.95, 168), (288, 1.0, 288), (160, 0.91, 175)],
)
def test_eval_resize_golden_values(size, ratio, resize):
    assert EvalGeometry(size, ratio).resize_px == resize


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (500, 333), (224, 224), (90, 1200)])
def test_eval_window_is_timms_resize_and_centre_crop(size):
    width, height = size
    start, end = EvalGeometry(224, 0.95).source_windows(np.array([width]), np.array([height]))
    scale = 235 / min(size)
    resized = (int(235 * height / min(size)), int(235 * width / min(size)))
    first = [round((edge - 224) / 2.0) for edge in resized]
    for axis, edge in enumerate((height, width)):
        assert start[0, axis] == pytest.approx(first[axis] * edge / resized[axis], rel=1e-6)
        assert end[0, axis] == pytest.approx((first[axis] + 224) * edge / resized[axis], rel=1e-6)
    assert scale > 0


POLICY = MixPolicy(mixup=0.2, cutmix=1.0, prob=0.9, switch_prob=0.5, group_size=64)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_of_a_position_is_the_same_for_any_number_of_processes(mode):
    policy = MixPolicy(0.2, 1.0, 0.9, 0.5, mode, 64)
    alone = policy.draw(1, 3, np.arange(256, 512), 160)
    for processes in (2, 4):
        batch = 256 // processes
        for process in range(processes):
            layout = BatchLayout(256, batch, processes, process)
            positions = np.asarray(layout.positions(1, 0))
            part = policy.draw(1, 3, positions, 160)
            rows = positions - 256
            for name in ("pixel_lam", "box", "lam"):
                assert (getattr(part, name) == getattr(alone, name)[rows]).all()
            assert (positions[part.partner] - 256 == alone.partner[rows]).all()


def test_partners_are_mutual_and_never_copies_of_one_image():
    draws = POLICY.draw(0, 0, np.arange(96), 224)
    assert (draws.partner[draws.partner] == np.arange(96)).all()
    assert (np.abs(draws.partner - np.arange(96)) == PAIR_BLOCK // 2).all()


# Beta(0.5, 0.5) seldom rounds two draws to the same float32.
@pytest.mark.parametrize(("mode", "distinct"), [("batch", 4), ("pair", 128), ("elem", 256)])
def test_modes_share_draws_as_they_say(mode, distinct):
    draws = MixPolicy(0.5, 0.0, mode=mode, group_size=64).draw(0, 0, np.arange(256), 64)
    assert len(np.unique(draws.lam)) == distinct
    if mode == "pair":
        assert (draws.lam == draws.lam[draws.partner]).all()


def test_mixing_distributions_are_those_of_the_policy():
    draws = MixPolicy(0.2, 1.0, 0.8, 0.3, "elem").draw(0, 0, np.arange(8000), 64)
    untouched = (draws.pixel_lam == 1) & (draws.lam == 1)
    has_box = draws.box[:, 1] > draws.box[:, 0]
    is_mixup = draws.pixel_lam < 1
    assert untouched.mean() == pytest.approx(0.2, abs=0.02)
    assert is_mixup.mean() == pytest.approx(0.8 * 0.7, abs=0.02)
    assert not (has_box & is_mixup).any()
    assert stats.kstest(draws.lam[is_mixup], stats.beta(0.2, 0.2).cdf).pvalue > 0.001
    assert (draws.lam[is_mixup] == draws.pixel_lam[is_mixup]).all()


@given(lam=st.floats(0, 1), y=st.integers(0, 159), x=st.integers(0, 159))
def test_cutmix_box_and_lambda_equal_timms(lam, y, x):
    from timm.data import mixup

    ours, our_lam = cutmix_box(lam, 160, y, x)
    side = int(160 * math.sqrt(1 - lam))
    assert ours[1] - ours[0] <= side - side % 2
    if side % 2 == 0:  # newer timm releases keep an odd side's last pixel
        with patch.object(mixup.np.random, "randint", side_effect=[y, x]):
            box, corrected = mixup.cutmix_bbox_and_lam((1, 3, 160, 160), lam)
        assert ours == tuple(int(edge) for edge in box)
        assert our_lam == pytest.approx(corrected, abs=1e-12)


def test_crop_areas_and_ratios_are_distributed_as_timms():
    import random

    from PIL import Image
    from timm.data.transforms import RandomResizedCropAndInterpolation

    count, width, height = 100_000, 500, 375
    numbers = uniforms(11, 0, Stream.CROP, range(count), CROP_UNIFORMS)
    ours = random_resized_crop(np.full(count, width), np.full(count, height), numbers, SCALE, RATIO)
    random.seed(11)
    image = Image.new("RGB", (width, height))
    theirs = np.array(
        [RandomResizedCropAndInterpolation.get_params(image, SCALE, RATIO) for _ in range(count)]
    )
    for mine, timms in (
        (ours.height * ours.width, theirs[:, 2] * theirs[:, 3]),
        (ours.width / ours.height, theirs[:, 3] / theirs[:, 2]),
        (ours.top, theirs[:, 0]),
        (ours.left, theirs[:, 1]),
    ):
        assert stats.ks_2samp(mine, timms).pvalue > 0.001

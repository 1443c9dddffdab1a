"""What batches are made of: each purpose's numbers are its own, and change with the epoch."""

from types import SimpleNamespace

import numpy as np
import pytest

from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.philox import Stream, uniforms
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import FLIP, INTERPOLATION, BatchSpec, TrainSamples, TrainTransform
from pipelines.types import INTERPOLATIONS

SEED, ROWS = 5, range(8, 40)
WIDTHS, HEIGHTS = np.full(len(ROWS), 60), np.full(len(ROWS), 40)


class _Index(SimpleNamespace):
    def __len__(self):
        return len(self.labels)


def _samples(**options):
    index = _Index(labels=np.arange(48) % 3)
    layout = BatchLayout(global_batch=8, batch_per_device=4)
    return TrainSamples(index, layout, TrainTransform(32), seed=SEED, **options)


def _draw(stream, width):
    return uniforms(SEED, 1, stream, ROWS, width)


def test_each_purpose_has_the_numbers_that_it_always_had():
    """They are those of published runs: a stream that moves changes every result."""
    assert {stream.name: stream.value for stream in Stream} == {
        "CROP": 1,
        "RANDAUGMENT": 2,
        "MIXING": 3,
        "VERTICAL_FLIP": 4,
        "ERASING": 5,
        "ERASING_NOISE": 6,
        "DECODER": 7,
    }


@pytest.mark.parametrize("epoch", [0, 3])
def test_lambda_is_that_of_the_groups_own_generator(epoch):
    samples = _samples(mixing=MixPolicy(0.4, 0.0, prob=0.8, mode="elem"))
    drawn = samples.mix_draws(BatchSpec(np.arange(len(ROWS)), len(ROWS), epoch, ROWS))
    for position, lam in zip(ROWS, drawn.lam, strict=True):
        key = np.array([SEED, epoch], np.uint64)
        counter = np.array([0, 3, position, 0], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        mixes = generator.random() < 0.8
        assert lam == np.float32(generator.beta(0.4, 0.4) if mixes else 1.0)


def test_mixing_and_erasing_change_with_the_epoch():
    mixing, erasing = MixPolicy(0.5, 0.0, mode="elem"), ErasingPolicy(0.7, mode="pixel")
    samples = _samples(mixing=mixing, erasing=erasing)
    specs = [BatchSpec(np.arange(len(ROWS)), len(ROWS), epoch, ROWS) for epoch in (2, 3)]
    mixes = [samples.mix_draws(spec) for spec in specs]
    assert not np.isin(mixes[0].lam, mixes[1].lam).any()
    erased = [samples.erasing_draws(spec) for spec in specs]
    assert not np.isin(erased[0].seeds, erased[1].seeds).any()
    assert not np.array_equal(erased[0].rows, erased[1].rows)


def test_noise_has_all_bits_of_its_number_as_a_seed():
    """As in published runs: what fills a box changes with any other factor."""
    samples = _samples(erasing=ErasingPolicy(1.0, mode="pixel"))
    drawn = samples.erasing_draws(BatchSpec(np.arange(len(ROWS)), len(ROWS), 1, ROWS))
    numbers = _draw(Stream.ERASING_NOISE, 1)[drawn.rows, 0]
    assert drawn.seeds.tolist() == [int(number * 2**53) for number in numbers]
    assert (drawn.seeds % 2).any()


@pytest.mark.parametrize(("off_epoch", "mixing_epochs"), [(0, [0, 1, 2]), (1, [0]), (2, [0, 1])])
def test_mixing_ends_with_its_last_epoch(off_epoch, mixing_epochs):
    samples = _samples(mixing=MixPolicy(0.5, 0.0, mode="elem"), mixing_off_epoch=off_epoch)
    specs = [BatchSpec(np.arange(len(ROWS)), len(ROWS), epoch, ROWS) for epoch in range(3)]
    mixes = [(samples.mix_draws(spec).lam < 1).any() for spec in specs]
    assert np.flatnonzero(mixes).tolist() == mixing_epochs
    assert _samples().mix_draws(specs[0]) is None


def test_a_stream_enters_its_first_epoch_alone_at_an_update():
    samples = _samples()
    specs = list(samples.stream(1, 4, first_update=4))
    assert [(spec.epoch, spec.positions.start) for spec in specs] == [
        *((1, start) for start in range(32, 48, 4)),
        *((epoch, start) for epoch in (2, 3) for start in range(0, 48, 4)),
    ]
    for spec in specs:
        order = samples.order(spec.epoch)
        assert np.array_equal(spec.indices, order[spec.positions.start : spec.positions.stop])
        assert spec.num_valid == 4


def test_windows_are_mirrored_and_turned_with_their_probabilities():
    plain = TrainTransform(32, hflip=0.0).graph_inputs(_draw, WIDTHS, HEIGHTS)
    turned = TrainTransform(32, hflip=0.3, vflip=0.6).graph_inputs(_draw, WIDTHS, HEIGHTS)
    by = {
        1: _draw(Stream.CROP, FLIP + 1)[:, FLIP] < 0.3,
        0: _draw(Stream.VERTICAL_FLIP, 1)[:, 0] < 0.6,
    }
    for axis, is_swapped in by.items():
        assert 0 < is_swapped.sum() < len(ROWS)
        for mine, other in (("start", "end"), ("end", "start")):
            expected = np.where(is_swapped, plain[other][:, axis], plain[mine][:, axis])
            assert np.array_equal(turned[mine][:, axis], expected)
    assert not np.array_equal(by[0], by[1])


def test_no_purpose_draws_what_another_draws():
    asked = []

    def draw(stream, width):
        asked.append(stream)
        return _draw(stream, width)

    policy = RandAugmentPolicy.parse("rand-m9-mstd0.5")
    options = {"decode_mode": "hybrid", "gpu_share": 0.5, "vflip": 0.5, "randaugment": policy}
    inputs = TrainTransform(32, **options).graph_inputs(draw, WIDTHS, HEIGHTS)
    assert sorted(asked) == [
        Stream.CROP,
        Stream.RANDAUGMENT,
        Stream.VERTICAL_FLIP,
        Stream.DECODER,
    ]
    assert np.array_equal(inputs["is_on_gpu"], _draw(Stream.DECODER, 1)[:, 0] < 0.5)
    by_kernels = TrainTransform(32, randaugment=policy, randaugment_by="kernels")
    assert by_kernels.graph_inputs(draw, WIDTHS, HEIGHTS).keys() < inputs.keys()
    assert by_kernels.kernel_operands(draw) is not None
    assert TrainTransform(32).kernel_operands(draw) is None
    assert by_kernels.randaugment_layers == 0
    assert TrainTransform(32, randaugment=policy).randaugment_layers == policy.num_layers


@pytest.mark.parametrize(("name", "chosen"), [("bilinear", 0), ("bicubic", 1), ("random", None)])
def test_filters(name, chosen):
    codes = [INTERPOLATIONS["bilinear"], INTERPOLATIONS["bicubic"]]
    is_bicubic = _draw(Stream.CROP, INTERPOLATION + 1)[:, INTERPOLATION] >= 0.5
    takes_second = is_bicubic if chosen is None else np.full(len(ROWS), chosen)
    expected = np.where(takes_second, codes[1], codes[0])
    transform = TrainTransform(32, interpolation=name)
    assert np.array_equal(transform.graph_inputs(_draw, WIDTHS, HEIGHTS)["interpolation"], expected)

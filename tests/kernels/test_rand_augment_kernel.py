"""RandAugment on uint8 batches: the plain version against Pillow, the kernels against it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ptx import interpreted
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

from dali_rsb.checks.parity.pillow import apply_operation
from dali_rsb.draws.operations import OPERATIONS, RECORDS
from dali_rsb.draws.randaugment import RandAugmentDraws
from dali_rsb.kernels import rand_augment_triton
from dali_rsb.kernels.rand_augment import Branch, rand_augment, rand_augment_plain
from pipelines import operands

FILL = (124, 116, 104)
# 33 in equal steps, which meet the ties, and seven that meet none, past the end of the range too.
MAGNITUDES = (*np.linspace(0, 10, 33), *np.random.default_rng(0).uniform(0, 15, 7))


def noise(shape, seed=0):
    """Images uint8 [..., 3] of noise; a third of them with few levels."""
    generator = np.random.default_rng(seed)
    levels = generator.choice([4, 256, 256])
    return (generator.integers(0, levels, (*shape, 3)) * (255 // (levels - 1))).astype(np.uint8)


def pillow_images(images, draws):
    """The images after the draws, by Pillow."""
    outputs = []
    for row, array in enumerate(images):
        image = Image.fromarray(array)
        for layer, operation in enumerate(draws.operation[row]):
            if operation >= 0:
                image = apply_operation(
                    image,
                    OPERATIONS[operation],
                    draws.magnitude[row, layer],
                    draws.negate[row, layer],
                    draws.increasing,
                    FILL,
                )
        outputs.append(np.asarray(image))
    return np.stack(outputs)


def tensors(images, draws):
    """The arguments of `rand_augment`."""
    drawn = draws.operands(images.shape[1:3])
    return tuple(map(torch.tensor, (images, drawn.branch, drawn.value, drawn.matrix)))


def run_kernels(images, branch, value, matrix, block=None):
    """The Triton kernels, by Triton's interpreter; `block` shrinks their programs."""
    with pytest.MonkeyPatch.context() as replaced:
        for name in ("_tables_kernel", "_apply_kernel"):
            kernel = getattr(rand_augment_triton, name)
            replaced.setattr(rand_augment_triton, name, interpreted(kernel))
        if block is not None:
            replaced.setattr(rand_augment_triton, "TABLE_BLOCK", block)
            replaced.setattr(rand_augment_triton, "APPLY_BLOCK", block)
        return rand_augment_triton.rand_augment_triton(images, branch, value, matrix, FILL)


def test_kernels_meet_the_edges_of_images_as_the_plain_version_does():
    """Positions on the very edges: 0 is inside, the width and the height are not."""
    shifts = [(x, y) for x in (-0.5, 0.0, 0.5) for y in (-0.5, 0.0, 0.5)]
    images = torch.from_numpy(noise((len(shifts), 3, 5)))
    branch = torch.full((len(shifts), 1), Branch.WARP.value, dtype=torch.uint8)
    matrix = torch.eye(2, 3, dtype=torch.float64).repeat(len(shifts), 1, 1, 1)
    matrix[:, 0, :, 2] = torch.tensor(shifts, dtype=torch.float64)
    arguments = (images, branch, torch.zeros(len(shifts), 1), matrix)
    expected = rand_augment_plain(*arguments, FILL)
    assert torch.equal(run_kernels(*arguments), expected)
    painted = (expected == torch.tensor(FILL, dtype=torch.uint8)).all(3)
    assert painted[-1].sum() == 3 + 5 - 1
    assert not painted[0].any()


class Traffic:
    """Counts launches, and the bytes of some tensors that each launch reads and writes."""

    def __init__(self, monkeypatch):
        self.launches = []  # names of kernels
        self.tensors = []
        self.num_bytes = 0
        self._read, self._written = [], []
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def counted_load(builder, pointers, mask, *others):
            self._read.append(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)])
            return load(builder, pointers, mask, *others)

        def counted_store(builder, pointers, values, mask, *others):
            self._written.append(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)])
            return store(builder, pointers, values, mask, *others)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
        empty_like = torch.empty_like

        def watched_empty_like(tensor):
            self.tensors.append(empty_like(tensor))
            return self.tensors[-1]

        monkeypatch.setattr(torch, "empty_like", watched_empty_like)
        run = InterpretedFunction.run

        def counted_run(kernel, *arguments, **options):
            assert options["enable_fp_fusion"] is False, "Pillow's sums are rounded twice"
            run(kernel, *arguments, **options)
            self.launches.append(kernel.__name__)
            # A byte that neighbours read too comes from memory once.
            for addresses in (self._read, self._written):
                touched = np.unique(np.concatenate([[], *addresses]))
                for tensor in self.tensors:
                    start = tensor.data_ptr()
                    inside = (touched >= start) & (touched < start + tensor.numel())
                    self.num_bytes += int(inside.sum())
                addresses.clear()

        monkeypatch.setattr(InterpretedFunction, "run", counted_run)


def test_codes_are_those_of_the_pipeline():
    assert {b.name: b.value for b in Branch} == {b.name: b.value for b in operands.Branch}


@pytest.mark.parametrize("size_px", [(1, 1), (2, 3), (31, 18), (230, 300)])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_plain_equals_pillow_to_the_bit(record, size_px):
    # Large images with every fourth magnitude, the rest of which the small ones have.
    magnitudes = MAGNITUDES[:: 4 if size_px[0] > 100 else 1]
    image = noise(size_px, seed=RECORDS.index(record))
    grid = [(m, n) for m in magnitudes for n in (False, True)]
    if not record.has_magnitude:
        grid = grid[:1]
    for increasing in (False, True):
        draws = RandAugmentDraws(
            operation=np.full((len(grid), 1), RECORDS.index(record), np.int8),
            magnitude=np.array([[m] for m, _ in grid]),
            negate=np.array([[n] for _, n in grid]),
            increasing=increasing,
        )
        images = np.broadcast_to(image, (len(grid), *image.shape))
        got = rand_augment_plain(*tensors(images, draws), FILL)
        np.testing.assert_array_equal(got, pillow_images(images, draws))


@st.composite
def batches(draw, max_batch, max_side, max_layers):
    """Images and draws: none, one operation for all, or some of them."""
    size = draw(st.integers(1, max_batch))
    layers = draw(st.integers(1, max_layers))
    shape = (size, draw(st.integers(1, max_side)), draw(st.integers(1, max_side)))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    some = st.lists(
        st.integers(-1, len(OPERATIONS) - 1), min_size=size * layers, max_size=size * layers
    )
    same = st.integers(-1, len(OPERATIONS) - 1).map(lambda operation: [operation] * size * layers)
    operation = np.array(draw(st.one_of(some, some, same)), np.int8).reshape(size, layers)
    draws = RandAugmentDraws(
        operation=operation,
        magnitude=generator.choice(MAGNITUDES, operation.shape),
        negate=generator.random(operation.shape) < 0.5,
        increasing=draw(st.booleans()),
    )
    return noise(shape, seed), draws


@settings(max_examples=60)
@given(batch=batches(max_batch=4, max_side=300, max_layers=3))
def test_plain_equals_pillow_layer_after_layer(batch):
    images, draws = batch
    arguments = tensors(images, draws)
    got = rand_augment(*arguments, FILL)
    np.testing.assert_array_equal(got, pillow_images(images, draws))
    np.testing.assert_array_equal(arguments[0], images)


@settings(max_examples=30)
@given(batch=batches(max_batch=2, max_side=12, max_layers=3), block=st.sampled_from([16, 64, None]))
def test_kernels_equal_the_plain_version_to_the_bit(batch, block):
    arguments = tensors(*batch)
    before = arguments[0].clone()
    got = run_kernels(*arguments, block=block)
    assert torch.equal(got, rand_augment_plain(*arguments, FILL))
    assert torch.equal(arguments[0], before)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_kernels_on_several_programs_an_image(record):
    """Of the size that programs have on a GPU; a photograph's tables differ between channels."""
    from skimage.data import astronaut

    images = np.stack([astronaut()[40:110:2, 200:282:2], noise((35, 41))])
    draws = RandAugmentDraws(
        operation=np.full((2, 1), RECORDS.index(record), np.int8),
        magnitude=np.array([[6.3], [10.0]]),
        negate=np.array([[False], [True]]),
        increasing=True,
    )
    arguments = tensors(images, draws)
    got = run_kernels(*arguments)
    assert torch.equal(got, rand_augment_plain(*arguments, FILL))
    assert not torch.equal(got, arguments[0])


@pytest.mark.parametrize(
    ("probability", "passes"),
    [
        # An image that drew nothing is copied, one that drew two operations is read and written
        # twice. Statistics read an image once more for three of the fifteen operations.
        (0.0, 2.0),
        (0.5, 2.5 + 0.2),
        (1.0, 4.0 + 0.4),
    ],
)
def test_two_layers_take_four_launches_and_at_most_five_passes(monkeypatch, probability, passes):
    """Every operation in each layer, as often as the others."""
    first, second, nothing = np.arange(15), np.arange(15)[::-1], np.full(15, -1)
    layers = {
        0.0: [(nothing, nothing)],
        0.5: [(first, second), (first, nothing), (nothing, second), (nothing, nothing)],
        1.0: [(first, second)],
    }[probability]
    operation = np.concatenate([np.stack(pair, axis=1) for pair in layers]).astype(np.int8)
    draws = RandAugmentDraws(
        operation=operation,
        magnitude=np.zeros(operation.shape),  # warps read whole images
        negate=np.zeros(operation.shape, bool),
        increasing=True,
    )
    arguments = tensors(noise((len(operation), 8, 9)), draws)
    traffic = Traffic(monkeypatch)
    traffic.tensors.append(arguments[0])
    run_kernels(*arguments)
    assert traffic.launches == ["_tables_kernel", "_apply_kernel"] * 2
    got = traffic.num_bytes / arguments[0].numel()
    assert got == pytest.approx(passes)
    assert got <= 5


def test_kernels_know_neither_draws_nor_dali():
    program = (
        "import sys, dali_rsb.kernels.rand_augment_triton; "
        "print([m for m in sys.modules if m.startswith(('nvidia.dali', 'pipelines', 'PIL.'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.parametrize("size_px", [(1, 1), (161, 160), (300, 7)])
def test_on_a_gpu_the_kernels_equal_the_plain_version_to_the_bit(size_px):
    generator = np.random.default_rng(1)
    operation = generator.integers(-1, 15, (128, 3)).astype(np.int8)
    operation[:15, 0] = np.arange(15)
    draws = RandAugmentDraws(
        operation=operation,
        magnitude=generator.choice(MAGNITUDES, operation.shape),
        negate=generator.random(operation.shape) < 0.5,
        increasing=True,
    )
    arguments = tensors(noise((128, *size_px)), draws)
    got = rand_augment(*(argument.cuda() for argument in arguments), FILL)
    assert torch.equal(got.cpu(), rand_augment_plain(*arguments, FILL))

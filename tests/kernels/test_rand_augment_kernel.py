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
from dali_rsb.draws.randaugment import RandAugmentDraws, RandAugmentPolicy
from dali_rsb.kernels import numba_support, rand_augment_triton
from dali_rsb.kernels.numba_support import numba_obstacle
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


def numba_images(images, branch, value, matrix, **options):
    """By the functions that Numba compiles."""
    assert numba_obstacle() is None
    return rand_augment(images, branch, value, matrix, FILL, **options)


@pytest.mark.parametrize("size_px", [(64, 48), (1, 1), (2, 3), (3, 2), (1, 9), (7, 1), (160, 161)])
def test_numba_equals_the_plain_version_to_the_bit(size_px):
    """Every operation at every magnitude and in both directions, then three layers of any."""
    magnitude = np.array(MAGNITUDES)
    every = np.array(np.meshgrid(np.arange(15), magnitude, [False, True])).reshape(3, -1)
    if size_px[0] * size_px[1] > 1e4:
        every = every[:, ::5]
    one_layer = RandAugmentDraws(
        operation=every[0][:, None].astype(np.int8),
        magnitude=every[1][:, None],
        negate=every[2][:, None] > 0,
        increasing=True,
    )
    generator = np.random.default_rng(2)
    three_layers = RandAugmentDraws(
        operation=generator.integers(-1, 15, (200, 3)).astype(np.int8),
        magnitude=generator.choice(magnitude, (200, 3)),
        negate=generator.random((200, 3)) < 0.5,
        increasing=False,
    )
    for draws in (one_layer, three_layers):
        images = noise((len(draws.operation), *size_px), seed=len(draws.operation))
        arguments = tensors(images, draws)
        got = numba_images(*arguments)
        expected = rand_augment_plain(*arguments, FILL)
        differ = (got != expected).flatten(1).any(1).numpy()
        assert not differ.any(), draws.operation[differ]
        assert size_px == (1, 1) or not torch.equal(got, arguments[0])


@pytest.mark.parametrize("warp", ["smooth", "edges"])
def test_numba_meets_the_edges_of_images_as_the_plain_version_does(warp):
    """Whole and half pixels, across every edge; rows whose pixels are neighbours, and others."""
    shifts = [-9.0, -1.0, -0.5, -1e-12, 0.0, 1e-12, 0.25, 0.5, 1.0, 8.0, 40.0]
    rows = [(xx, xy, x, yx, yy, y) for x in shifts for y in shifts for xx, xy, yx, yy in _TURNS]
    matrix = torch.tensor(rows, dtype=torch.float64).reshape(-1, 1, 2, 3)
    images = torch.from_numpy(noise((len(rows), 6, 9)))
    if warp == "smooth":
        images = images // 64 * 64
    branch = torch.full((len(rows), 1), Branch.WARP.value, dtype=torch.uint8)
    arguments = (images, branch, torch.zeros(len(rows), 1), matrix)
    assert torch.equal(numba_images(*arguments), rand_augment_plain(*arguments, FILL))


# Parts (xx, xy, yx, yy) of matrices: none, shears along either axis, a rotation, mirrored, wider.
_TURNS = (
    (1, 0, 0, 1),
    (1, 0.3, 0, 1),
    (1, 0, 0.3, 1),
    (0.8, 0.6, -0.6, 0.8),
    (-1, 0, 0, 1),
    (2, 0, 0, 1),
)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_numba_leaves_images_as_they_are_unless_it_may_overwrite_them(num_threads):
    images = torch.from_numpy(noise((40, 21, 40)))[:, :, ::2]
    policy = RandAugmentPolicy.parse("rand-m7-n3-p1-inc1")
    draws = policy.draw(np.random.default_rng(0).random((40, policy.num_uniforms)))
    before = images.clone()
    _, *operands = tensors(images.contiguous().numpy(), draws)
    expected = rand_augment_plain(images, *operands, FILL)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        got = numba_images(images, *operands)
        assert torch.equal(images, before)
        assert torch.equal(got, expected)
        assert got.is_contiguous()
        contiguous = images.contiguous()
        overwritten = numba_images(contiguous, *operands, may_overwrite=True)
        assert overwritten.data_ptr() == contiguous.data_ptr()
        assert torch.equal(overwritten, expected)
    finally:
        torch.set_num_threads(threads)


def test_kernels_without_numba_are_the_plain_version(monkeypatch):
    monkeypatch.setattr(numba_support, "numba_obstacle", lambda: "the package is not installed")
    monkeypatch.setitem(sys.modules, "dali_rsb.kernels.rand_augment_numba", None)
    draws = RandAugmentDraws(
        operation=np.arange(15, dtype=np.int8)[:, None],
        magnitude=np.full((15, 1), 6.3),
        negate=np.zeros((15, 1), bool),
        increasing=True,
    )
    arguments = tensors(noise((15, 30, 31)), draws)
    assert torch.equal(rand_augment(*arguments, FILL), rand_augment_plain(*arguments, FILL))


@pytest.mark.parametrize("kind", ["triton", "numba"])
def test_kernels_know_neither_draws_nor_dali(kind):
    program = (
        f"import sys, dali_rsb.kernels.rand_augment_{kind}; "
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

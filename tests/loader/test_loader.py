"""The loader: order, ownership of its tensors, bad images, and one epoch for any process count."""

import ctypes
import logging
import os
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from nvidia.dali import types
from PIL import Image

from dali_rsb.dataset import open_index
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import BatchLayout, EvalLayout
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.loader import executor
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import eval_loader, train_loader
from dali_rsb.loader.executor import Division, default_pipelines
from dali_rsb.loader.settings import LoaderSettings

CPU = torch.device("cpu")
SIZE_PX = 24
TRANSFORM = TrainTransform(SIZE_PX, randaugment=RandAugmentPolicy.parse("rand-m6-mstd0.5-inc1"))


def _make_folder(root, number=64):
    """Images of one grey level each, so that a pixel tells which image it is."""
    for i in range(number):
        folder = root / f"class{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((30 + i % 5, 40, 3), 3 * (i % 64) + 20, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(_make_folder(tmp_path_factory.mktemp("levels")), progress=False)


def _level(index, i):
    return 3 * int(index.path(i).stem) + 20


def _train_samples(index, layout, **options):
    return TrainSamples(index, layout, TRANSFORM, MixPolicy(0.1, 1.0, group_size=16), **options)


def _train_loader(samples, prefetch=2, batches_per_run=1, pipelines=1, **options):
    # One thread and `prefetch` iterations for each pipeline.
    settings = LoaderSettings(pipelines, prefetch * pipelines, pipelines, batches_per_run)
    return train_loader(samples, settings, CPU, BadImages(samples.index, **options))


def _eval_loader(index, batch, prefetch=2, policy="raise", **options):
    samples = EvalSamples(index, EvalLayout(len(index), batch), EvalGeometry(SIZE_PX, 1.0))
    bad_images = BadImages(index, policy, **options)
    return samples, eval_loader(samples, LoaderSettings(1, prefetch), CPU, bad_images)


@pytest.mark.parametrize("prefetch", [2, 3, 5])
@pytest.mark.parametrize("batch", [7, 16, 64, 100])
def test_every_image_arrives_once_in_order_also_when_iterated_again(index, batch, prefetch):
    samples, loader = _eval_loader(index, batch, prefetch)
    for _ in range(2):
        levels, labels = [], []
        for got in loader.batches(samples.specs()):
            assert got.images.shape == (batch, SIZE_PX, SIZE_PX, 3)
            assert got.images.dtype == torch.uint8
            levels += got.images[: got.num_valid, 0, 0, 0].tolist()
            labels += got.labels[: got.num_valid].tolist()
        assert levels == [_level(index, i) for i in range(64)]
        assert labels == index.labels.tolist()


def test_stopping_early_leaves_nothing_of_the_old_epoch(index):
    samples, loader = _eval_loader(index, 8, prefetch=3)
    for stop in (1, 2, 5):
        for number, _ in enumerate(loader.batches(samples.specs()), start=1):
            if number == stop:
                break
        first = next(iter(loader.batches(samples.specs())))
        assert first.images[0, 0, 0, 0] == _level(index, 0)


def test_batches_own_their_tensors(index):
    samples, loader = _eval_loader(index, 8)
    batches = list(loader.batches(samples.specs()))
    loader.close()
    levels = [int(image[0, 0, 0]) for batch in batches for image in batch.images]
    assert levels == [_level(index, i) for i in range(64)]


@pytest.mark.parametrize("copies", ["together", "spread"])
def test_an_update_has_the_same_samples_and_draws_on_any_number_of_processes(tmp_path, copies):
    repeats = 3 if copies == "spread" else 1
    index = open_index(_make_folder(tmp_path, 256), progress=False)

    def update(processes):
        """Position -> (index, everything drawn, pixels before mixing) of the update."""
        rows = {}
        for process in range(processes):
            layout = BatchLayout(32, 8, processes, process, copies)
            samples = _train_samples(index, layout, seed=5, repeats=repeats)
            micro_batches = layout.accumulation
            specs = list(samples.specs(epoch=2))[3 * micro_batches : 4 * micro_batches]
            for spec, batch in zip(specs, _train_loader(samples).batches(specs), strict=True):
                prepared = samples.prepare(spec)
                (mix,) = prepared.mixes
                for row, position in enumerate(spec.positions):
                    drawn = [
                        prepared.mixes[0].lam[row].item(),
                        mix.pixel_lam[row].item(),
                        mix.box[row].tolist(),
                    ]
                    if copies == "together":  # partners cross processes where copies are spread
                        drawn.append(spec.positions[int(mix.partner[row])])
                    for name in sorted(prepared.inputs):
                        drawn.append((name, np.asarray(prepared.inputs[name][row]).tolist()))
                    pixels = batch.images[row].numpy().tobytes()
                    rows[position] = (int(spec.indices[row]), drawn, pixels)
        return rows

    alone = update(1)
    assert sorted(alone) == list(range(96, 128))
    assert update(2) == alone
    assert update(4) == alone


def test_entering_an_epoch_in_the_middle(index):
    samples = _train_samples(index, BatchLayout(16, 8))
    whole = list(_train_loader(samples).batches(samples.specs(1)))
    part = list(_train_loader(samples).batches(samples.specs(1, first_update=2)))
    assert len(whole) == 8
    assert len(part) == 4
    for a, b in zip(whole[4:], part, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.mixing.lam, b.mixing.lam)


def _assert_same(batches, others):
    for a, b in zip(batches, others, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        for field in fields(a.mixing):
            assert torch.equal(getattr(a.mixing, field.name), getattr(b.mixing, field.name))


@pytest.mark.parametrize(("decode_mode", "repeats"), [("roi", 1), ("shared", 3)])
@pytest.mark.parametrize(("batches_per_run", "pipelines"), [(3, 1), (1, 3), (2, 2)])
def test_runs_of_several_batches_in_turns_give_the_same_batches(
    tmp_path, decode_mode, repeats, batches_per_run, pipelines
):
    index = open_index(_make_folder(tmp_path, 256), progress=False)
    samples = _train_samples(index, BatchLayout(16, 8), repeats=repeats)
    samples = replace(samples, transform=replace(TRANSFORM, decode_mode=decode_mode))

    def loader():
        return _train_loader(samples, 2, batches_per_run, pipelines, max_fraction=0.1)

    # Runs reach from one epoch into the next, and the last one is short.
    specs = list(samples.stream(0, 2, first_update=10))[:25]
    assert specs[0].epoch < specs[-1].epoch
    alone = list(_train_loader(samples).batches(specs))
    _assert_same(loader().batches(specs), alone)
    stopped = loader()
    for _, batch in zip(range(4), stopped.batches(specs), strict=False):
        del batch
    _assert_same(stopped.batches(specs[5:]), alone[5:])
    # A broken image has the same stand-in, and the batches beside it are untouched.
    _break(index, [5, 40])
    alone = list(_train_loader(samples, max_fraction=0.1).batches(specs))
    _assert_same(loader().batches(specs), alone)


@pytest.mark.parametrize(
    ("threads", "prefetch", "pipelines", "each"),
    [(8, 3, 1, (8, 3)), (8, 3, 2, (4, 2)), (2, 6, 2, (1, 3)), (1, 2, 2, (1, 2)), (5, 5, 2, (2, 3))],
)
def test_threads_and_runs_are_divided_among_pipelines(threads, prefetch, pipelines, each):
    division = Division(threads, prefetch, pipelines)
    assert (division.threads_each, division.prefetch_each) == each


def test_a_gpu_has_one_pipeline_and_a_cpu_two_if_it_has_threads_for_them():
    assert default_pipelines(torch.device("cuda", 0), 16) == 1
    assert [default_pipelines(CPU, threads) for threads in (1, 2, 16)] == [1, 2, 2]


def _fork_without_a_child():
    executor._before_fork()
    executor._after_fork_in_parent()


def test_what_came_out_before_a_fork_is_kept(tmp_path):
    index = open_index(_make_folder(tmp_path), progress=False)
    samples = _train_samples(index, BatchLayout(16, 8))
    specs = list(samples.specs(0))

    def with_forks(loader):
        for number, batch in enumerate(loader.batches(specs)):
            yield batch
            if number % 3 < 2:
                _fork_without_a_child()

    expected = list(_train_loader(samples).batches(specs))
    _assert_same(with_forks(_train_loader(samples)), expected)
    _break(index, [5, 40])
    expected = list(_train_loader(samples, max_fraction=0.1).batches(specs))
    _assert_same(with_forks(_train_loader(samples, 2, 1, 2, max_fraction=0.1)), expected)
    stopped = _train_loader(samples, max_fraction=0.1)
    batches = stopped.batches(specs)
    next(batches)
    _fork_without_a_child()
    batches.close()
    _assert_same(stopped.batches(specs[3:]), expected[3:])


class _GpuTensor:
    """Stands for DALI's tensor on a GPU: it is overwritten once it was copied."""

    dtype = types.UINT8

    def __init__(self, values):
        self.values = values

    def shape(self):
        return list(self.values.shape)

    def copy_to_external(self, pointer):
        ctypes.memmove(pointer, self.values.ctypes.data, self.values.nbytes)
        self.values[:] = 0


class _GpuPipeline:
    """Stands for a pipeline on a GPU: puts out what it was fed, as `_GpuTensor`."""

    device_id = 0

    def __init__(self):
        self.fed, self.shared_on = [], []

    def build(self):
        pass

    schedule_run = release_outputs = build

    def feed_input(self, name, data):
        self.fed.append(data.copy())

    def share_outputs(self, cuda_stream=None):
        self.shared_on.append(cuda_stream)
        tensor = _GpuTensor(self.fed.pop(0))
        return (SimpleNamespace(as_tensor=lambda: tensor),)


class _Event:
    """Stands for torch.cuda.Event: notes who waits for which."""

    waited_for: ClassVar[list[int]] = []
    number = 0

    def __init__(self, blocking):
        assert blocking

    def record(self, stream):
        assert stream is _STREAM
        self.number = _Event.number
        _Event.number += 1

    def synchronize(self):
        _Event.waited_for.append(self.number)


_STREAM = SimpleNamespace(device=CPU, cuda_stream=7)


@pytest.fixture
def gpu_pipeline(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _STREAM)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(_Event, "waited_for", [])
    monkeypatch.setattr(_Event, "number", 0)
    return _GpuPipeline()


def test_outputs_on_a_gpu_are_copied_in_the_order_of_the_current_stream(gpu_pipeline):
    runner = executor.PipelineRunner(lambda: gpu_pipeline, prefetch=3)
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    runner.submit({"images": images})
    first = runner.take()  # the queue was filled up with two copies that nobody takes
    runner.submit({"images": images + 1})
    second = runner.take()
    np.testing.assert_array_equal(first, images)
    np.testing.assert_array_equal(second, images + 1)
    assert gpu_pipeline.shared_on == [_STREAM, None, None, _STREAM]


def test_the_host_is_held_back_for_a_gpu(gpu_pipeline):
    runner = executor.PipelineRunner(lambda: gpu_pipeline, prefetch=1)
    seen = []
    for _ in range(7):
        runner.submit({"images": np.zeros((2, 2, 2, 3), np.uint8)})
        runner.take()
        seen.append(list(_Event.waited_for))
    # Of the batches taken, four may not have been copied yet.
    assert seen == [[], [], [], [], [0], [0, 1], [0, 1, 2]]
    runner.reset()  # the pipeline's end is no reason to wait for what went before
    for _ in range(4):
        runner.submit({"images": np.zeros((2, 2, 2, 3), np.uint8)})
        runner.take()
    assert _Event.waited_for == [0, 1, 2]


def _break(index, images):
    for i in images:
        path = index.path(i)
        path.write_bytes(path.read_bytes()[:-40])


def test_bad_images_are_replaced_and_the_rest_of_the_epoch_is_untouched(tmp_path, caplog):
    index = open_index(_make_folder(tmp_path), progress=False)
    samples = _train_samples(index, BatchLayout(16, 16))
    expected = list(_train_loader(samples).batches(samples.specs(0)))
    bad = [5, 6, 63]
    _break(index, bad)
    with caplog.at_level(logging.WARNING):
        loader = _train_loader(samples, max_fraction=0.1)
        got = list(loader.batches(samples.specs(0)))
    assert len(caplog.messages) == 3
    assert str(index.path(5)) in caplog.text
    assert len(got) == len(expected)
    for spec, ours, theirs in zip(samples.specs(0), got, expected, strict=True):
        for row, image in enumerate(spec.indices):
            if image in bad:
                assert (
                    ours.labels[row] == index.labels[(max(image, 6) + 1) % 64 if image < 7 else 0]
                )
            else:
                assert torch.equal(ours.images[row], theirs.images[row])
    # The second epoch knows them already.
    caplog.clear()
    assert len(list(loader.batches(samples.specs(1)))) == 4
    assert not caplog.messages


def test_too_many_bad_images_stop_the_run(tmp_path):
    index = open_index(_make_folder(tmp_path), progress=False)
    samples = _train_samples(index, BatchLayout(16, 16))
    _break(index, range(10, 14))
    with pytest.raises(UserError, match=r"cannot be decoded.*max_bad_fraction"):
        list(_train_loader(samples, max_fraction=0.02).batches(samples.specs(0)))


def test_a_bad_validation_image_is_an_error_that_names_it(tmp_path):
    index = open_index(_make_folder(tmp_path), progress=False)
    _break(index, [9])
    samples, loader = _eval_loader(index, 16)
    with pytest.raises(UserError, match=rf"{index.path(9).name} cannot be decoded"):
        list(loader.batches(samples.specs()))


def test_a_file_that_vanished_is_replaced_too(tmp_path):
    index = open_index(_make_folder(tmp_path), progress=False)
    index.path(20).unlink()
    samples = _train_samples(index, BatchLayout(16, 16))
    assert len(list(_train_loader(samples).batches(samples.specs(0)))) == 4


def test_mixing_stops_at_its_off_epoch(index):
    samples = _train_samples(index, BatchLayout(16, 16), mixing_off_epoch=2)
    lams = [samples.prepare(next(samples.specs(epoch))).mixes[0].lam for epoch in range(4)]
    assert [bool((lam == 1).all()) for lam in lams] == [False, False, True, True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of fork
def test_a_process_forks_once_its_pipelines_are_at_rest(monkeypatch):
    """A fork in the middle of a run would leave DALI's locks taken in the child for ever."""
    runner, settled = executor.PipelineRunner(None, 2), []
    monkeypatch.setattr(runner, "settle", lambda: settled.append(os.getpid()))
    child = os.fork()
    if child == 0:
        os._exit(0 if executor._INHERITED else 1)  # what it has, but must not use
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert settled == [os.getpid()]
    assert not executor._HALTED

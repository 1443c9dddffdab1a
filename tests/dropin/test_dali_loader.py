"""DaliLoader behaves as a torch DataLoader does: epochs, samplers, resume, ownership, clean-up."""

import gc
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from dali_rsb import DaliLoader, UserError, open_index
from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import EpochSampler
from dali_rsb.kernels.random_erasing import erase

NUM_IMAGES = 50
OPTIONS = {"size_px": 16, "device": "cpu", "num_threads": 1}
RAW = OPTIONS | {"dtype": torch.uint8}
AUGMENTED = OPTIONS | {
    "train": True,
    "randaugment": "rand-m6-mstd0.5-inc1",
    "mixup": 0.1,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "seed": 3,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Indices of datasets that are given as objects are stored in the user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of one grey level each, 5 x their number, in classes of 20, 20 and 10."""
    root = tmp_path_factory.mktemp("levels")
    for i in range(NUM_IMAGES):
        directory = root / f"class{i // 20}"
        directory.mkdir(exist_ok=True)
        Image.fromarray(np.full((24, 30, 3), 5 * i, np.uint8)).save(directory / f"{i:03d}.png")
    return root


def _numbers(images):
    """Which images a raw batch holds."""
    return (images[:, 0, 0, 0].int() // 5).tolist()


def _epoch(loader):
    return [number for images, _ in loader for number in _numbers(images)]


def _same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for (images, targets), (other_images, other_targets) in zip(ours, theirs, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(targets, other_targets)


@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 64])
def test_an_evaluation_yields_every_image_once_in_order(folder, batch_size):
    loader = DaliLoader(folder, batch_size, **RAW)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == -(-NUM_IMAGES // batch_size)
        numbers = [n for images, _ in batches for n in _numbers(images)]
        assert numbers == list(range(NUM_IMAGES))
        targets = torch.cat([targets for _, targets in batches])
        assert targets.dtype == torch.int64
        assert targets.tolist() == [n // 20 for n in numbers] == loader.dataset.targets.tolist()
    assert loader.dataset.filenames() == sorted(map(str, folder.rglob("*.png")))
    assert loader.dataset.classes == ("class0", "class1", "class2")


def test_training_shuffles_anew_and_drops_the_tail(folder):
    loader = DaliLoader(folder, 8, train=True, **RAW)
    epochs = [_epoch(loader) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [48] * 3
    assert len(loader) == 6
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    loader.set_epoch(1)
    assert _epoch(loader) == epochs[1]
    assert _epoch(loader) == epochs[2]  # epochs count up by themselves


def test_the_epoch_may_be_set_after_iter(folder):
    loader = DaliLoader(folder, 8, train=True, **RAW)
    epochs = [_epoch(loader) for _ in range(3)]
    loader.set_epoch(0)
    passing = iter(loader)
    loader.set_epoch(2)
    assert [n for images, _ in passing for n in _numbers(images)] == epochs[2]


def test_crops_differ_between_epochs_and_come_back_with_set_epoch(photo_folder):
    loader = DaliLoader(photo_folder, 7, train=True, shuffle=False, **RAW)
    first, second = list(loader), list(loader)
    assert not torch.equal(first[0][0], second[0][0])
    loader.set_epoch(0)
    _same(list(loader), first)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_epoch_as_with_a_distributed_sampler(folder, world_size):
    for rank in range(world_size):
        loader = DaliLoader(folder, 4, shuffle=True, num_replicas=world_size, rank=rank, **RAW)
        sampler = DistributedSampler(range(NUM_IMAGES), world_size, rank)
        for epoch in (0, 4):
            loader.set_epoch(epoch)
            sampler.set_epoch(epoch)
            assert _epoch(loader) == list(sampler)


def test_stopping_early_is_safe(folder):
    loader = DaliLoader(folder, 8, **RAW)
    for stop in (1, 2, 5, 3):
        for number, (images, _) in enumerate(loader, start=1):
            assert _numbers(images)[0] == 8 * (number - 1)
            if number == stop:
                break


def test_iterators_are_independent(folder):
    loader = DaliLoader(folder, 8, **RAW)
    held = iter(loader)
    next(held)
    for (images, _), (others, _) in zip(loader, loader, strict=True):
        assert torch.equal(images, others)
    assert _numbers(next(held)[0])[0] == 8


def test_an_error_in_the_loop_leaves_the_loader_usable(folder):
    loader = DaliLoader(folder, 8, **RAW)

    def fail():
        for _ in loader:
            raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
    assert _epoch(loader) == list(range(NUM_IMAGES))


def test_an_interrupt_inside_the_loader_leaves_it_usable(folder, monkeypatch):
    from dali_rsb.loader.executor import PipelineRunner

    loader = DaliLoader(folder, 8, **RAW)
    next(iter(loader))
    take, count = PipelineRunner.take, iter(range(100))

    def interrupted(runner):
        images = take(runner)
        if next(count) == 2:  # DALI has given the batch out, and it gets lost
            raise KeyboardInterrupt
        return images

    monkeypatch.setattr(PipelineRunner, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _epoch(loader)
    assert _epoch(loader) == list(range(NUM_IMAGES))


def test_batches_belong_to_the_caller(folder):
    for options in (RAW, OPTIONS):
        loader = DaliLoader(folder, 8, **options)
        expected = [(images.clone(), targets.clone()) for images, targets in loader]
        kept = []
        for images, targets in loader:
            kept.append((images.clone(), targets.clone()))
            images.fill_(7)
            targets.fill_(7)
        loader.close()
        _same(kept, expected)
        collected = list(loader)
        loader.close()
        _same(collected, expected)


def test_output_formats(folder):
    raw = next(iter(DaliLoader(folder, 8, **RAW)))[0]
    assert raw.dtype == torch.uint8
    assert raw.is_contiguous(memory_format=torch.channels_last)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        for channels_last in (True, False):
            loader = DaliLoader(folder, 8, dtype=dtype, channels_last=channels_last, **OPTIONS)
            images = next(iter(loader))[0]
            assert images.dtype == dtype
            assert images.is_contiguous() is not channels_last
            expected = (raw / 255 - mean) / std
            torch.testing.assert_close(images.float(), expected, atol=tolerance, rtol=tolerance)


def test_mixed_targets_are_soft(folder):
    loader = DaliLoader(folder, 16, label_smoothing=0.1, **AUGMENTED | {"mixup": 0.0})
    targets = torch.cat([targets for _, targets in loader])
    assert targets.shape == (48, 3)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(48))
    assert targets.min() == pytest.approx(0.1 / 3)
    assert ((targets > 0.1).sum(1) == 2).any()


SAMPLERS = {
    "none": lambda: None,
    "random": lambda: RandomSampler(range(NUM_IMAGES)),
    "weighted": lambda: WeightedRandomSampler([1, 2] * 25, 40),
    "weighted, own generator": lambda: WeightedRandomSampler(
        [1, 2] * 25, 40, generator=torch.Generator().manual_seed(9)
    ),
    "subset": lambda: SubsetRandomSampler(list(range(10, 50))),
    "distributed": lambda: DistributedSampler(range(NUM_IMAGES), 1, 0),
    "list": lambda: list(range(NUM_IMAGES))[::-1],
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_resuming_in_the_middle_of_an_epoch_is_exact(photo_folder, folder, name):
    options = AUGMENTED | {"sampler": SAMPLERS[name]()}
    loader = DaliLoader(folder, 8, **options)
    list(loader)
    passing = iter(loader)
    for _ in range(2):
        next(passing)
    state = loader.state_dict()
    rest, after = list(passing), list(loader)
    assert len(rest) == len(loader) - 2

    torch.manual_seed(1234)
    again = DaliLoader(folder, 8, **AUGMENTED | {"sampler": SAMPLERS[name]()})
    again.load_state_dict(state)
    assert again.state_dict().keys() == state.keys()
    _same(list(again), rest)
    _same(list(again), after)


def test_resuming_with_another_batch_size_and_number_of_processes(folder):
    options = RAW | {"shuffle": True, "seed": 5}
    whole = _epoch(DaliLoader(folder, 8, **options))
    alone = DaliLoader(folder, 8, **options)
    passing = iter(alone)
    for _ in range(3):
        next(passing)
    ranks = [DaliLoader(folder, 5, num_replicas=2, rank=rank, **options) for rank in (0, 1)]
    for loader in ranks:
        loader.load_state_dict(alone.state_dict())
    rest = [_epoch(loader) for loader in ranks]
    assert rest == [whole[24::2], whole[25::2]]


def test_a_state_is_of_the_next_epoch_once_one_is_over(folder):
    loader = DaliLoader(folder, 10, train=True, **RAW)
    assert loader.state_dict() == {"epoch": 0, "num_samples": 0, "seed": 0}
    _epoch(loader)
    assert loader.state_dict() == {"epoch": 1, "num_samples": 0, "seed": 0}
    expected = _epoch(loader)
    again = DaliLoader(folder, 10, train=True, **RAW)
    again.load_state_dict({"epoch": 1, "num_samples": 0, "seed": 0})
    assert _epoch(again) == expected
    with pytest.raises(UserError, match="seed 0, this one has 1"):
        DaliLoader(folder, 10, seed=1, **RAW).load_state_dict(loader.state_dict())


def test_a_state_taken_after_the_last_batch_is_of_the_next_epoch(folder):
    loader = DaliLoader(folder, 8, train=True, **RAW)
    passing = iter(loader)
    for _ in range(len(loader)):
        next(passing)
    assert loader.state_dict() == {"epoch": 1, "num_samples": 0, "seed": 0}


def test_a_loop_that_sets_the_epoch_it_resumes_goes_on_in_the_middle(folder):
    loader = DaliLoader(folder, 10, train=True, **RAW)
    loader.load_state_dict({"epoch": 3, "num_samples": 20, "seed": 0})
    lengths = []
    for epoch in (3, 4):
        loader.set_epoch(epoch)
        lengths.append(len(_epoch(loader)))
    assert lengths == [30, 50]


def test_another_epoch_than_the_resumed_one_is_whole(folder):
    loader = DaliLoader(folder, 10, train=True, **RAW)
    loader.load_state_dict({"epoch": 3, "num_samples": 20, "seed": 0})
    loader.set_epoch(5)
    assert len(_epoch(loader)) == 50


def test_a_weighted_sampler_balances_classes(folder):
    targets = DaliLoader(folder, 8, **RAW).dataset.targets
    weights = (1 / np.bincount(targets))[targets]
    sampler = WeightedRandomSampler(weights.tolist(), 2000)
    loader = DaliLoader(folder, 100, sampler=sampler, **RAW)
    assert len(loader) == 20
    drawn = np.concatenate([targets for _, targets in loader])
    assert np.bincount(drawn) / 2000 == pytest.approx([1 / 3] * 3, abs=0.05)


def test_an_endless_stream_of_indices_is_read_as_it_is_needed(folder):
    def stream():
        number = 0
        while True:
            yield number % 30
            number += 1

    class Stream:
        def __iter__(self):
            return stream()

    loader = DaliLoader(folder, 8, sampler=Stream(), **RAW)
    with pytest.raises(TypeError):
        len(loader)
    for batch, (images, _) in enumerate(loader):
        assert _numbers(images) == [(8 * batch + row) % 30 for row in range(8)]
        if batch == 9:
            break


def test_files_can_be_left_out(folder, tmp_path, caplog):
    names = ["class0/003.png", str(folder / "class2/044.png")]
    listing = tmp_path / "bad.txt"
    listing.write_text("\n".join([*names, "class0/absent.png", ""]))
    with caplog.at_level(logging.WARNING):
        loader = DaliLoader(folder, 8, exclude=listing, **RAW)
    assert "1 files to exclude are not in" in caplog.text
    expected = [n for n in range(NUM_IMAGES) if n not in (3, 44)]
    assert _epoch(loader) == expected
    assert _epoch(DaliLoader(folder, 8, exclude=names, **RAW)) == expected
    assert len(loader.dataset) == 48


def test_sources_other_than_a_folder(folder, tmp_path):
    from torchvision.datasets import ImageFolder

    folder = Path(shutil.copytree(folder, tmp_path / "copy", ignore=lambda *_: [".dali_rsb_index"]))

    for _ in range(2):  # what the first pass leaves behind must not show up as a class
        assert _epoch(DaliLoader(ImageFolder(folder), 20, **RAW)) == list(range(NUM_IMAGES))
    pairs = [(str(folder / f"class1/{n:03d}.png"), 1) for n in (33, 21, 39)]
    assert _epoch(DaliLoader(pairs, 8, **RAW)) == [33, 21, 39]
    assert _epoch(DaliLoader(open_index(folder), 20, **RAW)) == list(range(NUM_IMAGES))


def _write_bad_copy(folder, root, bad):
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        copy = root / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[: -40 if i in bad else None])
    return root


def test_bad_images(folder, tmp_path):
    root = _write_bad_copy(folder, tmp_path / "bad", {7})
    with pytest.raises(UserError, match=r"007.png cannot be decoded"):
        _epoch(DaliLoader(root, 8, **RAW))
    loader = DaliLoader(root, 8, on_bad_image="substitute", **RAW)
    assert _epoch(loader) == [8 if n == 7 else n for n in range(NUM_IMAGES)]


def test_several_loaders_at_once_and_in_turn(folder):
    loaders = [DaliLoader(folder, 8, seed=seed, shuffle=True, **RAW) for seed in range(3)]
    expected = [_epoch(DaliLoader(folder, 8, seed=s, shuffle=True, **RAW)) for s in range(3)]
    got = [[], [], []]
    for batches in zip(*loaders, strict=True):
        for numbers, (images, _) in zip(got, batches, strict=True):
            numbers += _numbers(images)
    assert got == expected


def _report(loader, results):
    results.put(_epoch(loader))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of fork
def test_before_in_and_after_forked_processes(folder):
    loader = DaliLoader(folder, 8, **RAW)
    passing = iter(loader)
    next(passing)
    forked = DataLoader(torch.arange(20), 2, num_workers=2, multiprocessing_context="fork")
    assert sum(batch.sum().item() for batch in forked) == 190
    assert _numbers(next(passing)[0])[0] == 8
    passing.close()

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_report, args=(loader, results))
    process.start()
    assert results.get(timeout=120) == list(range(NUM_IMAGES))
    process.join(timeout=60)
    assert process.exitcode == 0
    assert _epoch(loader) == list(range(NUM_IMAGES))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_in_the_middle_of_runs_leaves_the_child_free(folder):
    """Without care, one child in five waited for ever for a lock that stayed with the parent."""
    loader = DaliLoader(folder, 8, **OPTIONS | {"train": True})
    context = multiprocessing.get_context("fork")
    for _ in range(12):
        passing = iter(loader)
        next(passing)
        passing.close()  # with batches in flight
        process = context.Process(target=_epoch_length, args=(loader,))
        process.start()
        process.join(timeout=60)
        assert process.exitcode == 0
        assert _epoch_length(loader) == len(loader)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_in_another_thread_leaves_the_child_free(folder):
    """The loader is at work all the time: only if it halts may the child go on."""
    loader, idle = (DaliLoader(folder, 8, **OPTIONS | {"train": True}) for _ in range(2))
    expected = _epoch_length(idle)
    lengths = []
    stop = threading.Event()

    def work():
        while not stop.is_set():
            lengths.append(_epoch_length(loader))

    thread = threading.Thread(target=work)
    thread.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(12):
            process = context.Process(target=_epoch_length, args=(idle,))
            process.start()
            process.join(timeout=60)
            assert process.exitcode == 0
    finally:
        stop.set()
        thread.join(timeout=60)
    assert set(lengths) == {expected}


def _epoch_length(loader):
    return sum(1 for _ in loader)


def test_under_torch_compile(folder):
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    model = torch.nn.Sequential(*layers)
    compiled = torch.compile(model, backend="aot_eager")
    for images, targets in DaliLoader(folder, 20, **OPTIONS):
        loss = torch.nn.functional.cross_entropy(compiled(images), targets)
        loss.backward()
    with torch.inference_mode():
        for images, _ in DaliLoader(folder, 20, **OPTIONS):
            torch.testing.assert_close(compiled(images), model(images))


def test_closing(folder):
    num_threads = _count("task")
    with DaliLoader(folder, 8, **RAW) as loader:
        passing = iter(loader)
        next(passing)
        assert _count("task") > num_threads
    with pytest.raises(StopIteration):
        next(passing)
    gc.collect()
    assert _count("task") <= num_threads
    assert _epoch(loader) == list(range(NUM_IMAGES))


def _count(what):
    return len(list(Path(f"/proc/self/{what}").iterdir()))


def _resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_two_hundred_starts_leave_nothing_behind(folder):
    def start_and_drop(loader):
        for number, _ in enumerate(loader):
            if number == 2:
                return

    kept = DaliLoader(folder, 8, train=True, **OPTIONS)
    for iteration in range(210):
        if iteration == 10:
            gc.collect()
            before = _count("task"), _count("fd"), _resident_mib()
        start_and_drop(kept if iteration % 2 else DaliLoader(folder, 8, train=True, **OPTIONS))
    gc.collect()
    patience = time.monotonic() + 60
    while _count("task") > before[0] and time.monotonic() < patience:
        time.sleep(0.05)  # threads that were told to end end in their own time
    assert _count("task") <= before[0]
    assert _count("fd") <= before[1]
    assert _resident_mib() - before[2] < 50


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background begin without it
from dali_rsb import DaliLoader
loader = DaliLoader(sys.argv[1], 8, train=True, device="cpu", num_threads=2, randaugment="rand-m6")
try:
    while True:
        for images, targets in loader:
            print("batch", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_after_ctrl_c_the_interpreter_exits_cleanly(folder):
    command = [sys.executable, "-c", INTERRUPTED, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"batch\n"
        time.sleep(0.1)
        start_s = time.perf_counter()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=240)
        assert time.perf_counter() - start_s < 30
    assert process.returncode == 0, errors
    assert output.endswith(b"interrupted\n")
    assert errors == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"prefetch": 1}, "prefetch=1"),
        ({"mixup": 0.1}, "need train=True"),
        ({"train": True, "mixup": 0.1, "dtype": torch.uint8}, "floating dtype"),
        ({"sampler": [1], "shuffle": True}, "either sampler or shuffle"),
        ({"interpolation": "random"}, "is not one of"),
        ({"train": True, "randaugment": "augmix"}, "must begin with 'rand'"),
        ({"train": True, "batch_size": 51}, "lower batch_size"),
        ({"exclude": "absent.txt"}, "absent.txt does not exist: give exclude a text file"),
        ({"device": "mps"}, "device=mps"),
    ],
)
def test_mistakes_are_told(folder, options, message):
    arguments = OPTIONS | {"batch_size": 8} | options
    with pytest.raises(UserError, match=message):
        DaliLoader(folder, arguments.pop("batch_size"), **arguments)


def test_a_gpu_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="give device='cpu'"):
        DaliLoader(folder, 8, device="cuda")
    assert DaliLoader(folder, 8).device == torch.device("cpu")


@pytest.mark.gpu
def test_on_a_gpu(folder):
    on_cpu = list(DaliLoader(folder, 8, **OPTIONS))
    loader = DaliLoader(folder, 8, size_px=16, num_threads=1)
    for (images, targets), (expected, expected_targets) in zip(loader, on_cpu, strict=True):
        assert images.is_cuda
        assert targets.is_cuda
        assert torch.equal(targets.cpu(), expected_targets)
        torch.testing.assert_close(images.cpu(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("num_images", [100, 256, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("repeats", [1, 3, 3.0, 1.5])
def test_repeats_come_in_the_order_of_timm(num_images, world_size, repeats):
    from timm.data.distributed_sampler import RepeatAugSampler

    for rank in range(world_size):
        theirs = RepeatAugSampler(range(num_images), world_size, rank, num_repeats=repeats)
        ours = EpochSampler(num_images, repeats=repeats, num_replicas=world_size, rank=rank)
        for epoch in (0, 7):
            theirs.set_epoch(epoch)
            ours.set_epoch(epoch)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs) == len(list(ours))


@pytest.mark.parametrize("world_size", [1, 3, 4, 8])
def test_an_evaluation_is_shared_out_as_by_timm(world_size):
    from timm.data.distributed_sampler import OrderedDistributedSampler

    for num_images in (5, 10, 97):
        for rank in range(world_size):
            theirs = OrderedDistributedSampler(range(num_images), world_size, rank)
            ours = EpochSampler(num_images, shuffle=False, num_replicas=world_size, rank=rank)
            assert list(ours) == list(theirs)


def test_mixing_from_both_ends():
    positions = np.arange(100, 116)
    policies = {mode: MixPolicy(0.2, 1.0, mode=mode, partners="ends") for mode in ("batch", "pair")}
    draws = {mode: policy.draw(0, 1, positions, 32) for mode, policy in policies.items()}
    for drawn in draws.values():
        assert drawn.partner.tolist() == list(range(15, -1, -1))
        assert (drawn.lam == drawn.lam[drawn.partner]).all()
        assert (drawn.box == drawn.box[drawn.partner]).all()
    assert len(set(draws["batch"].lam.tolist())) == 1
    assert len(set(draws["pair"].lam.tolist())) > 4
    other = policies["batch"].draw(0, 1, positions + 16, 32)
    assert other.lam[0] != draws["batch"].lam[0]


def test_cutmix_boxes_between_a_least_and_a_largest_side():
    policy = MixPolicy(0.0, 1.0, mode="elem", partners="ends", cutmix_minmax=(0.25, 0.75))
    drawn = policy.draw(0, 0, np.arange(4000), 32)
    top, bottom, left, right = drawn.box.T
    for low, high in ((top, bottom), (left, right)):
        assert set(high - low) == set(range(8, 25))
        assert low.min() == 0
        assert high.max() == 32
    np.testing.assert_allclose(drawn.lam, 1 - (bottom - top) * (right - left) / 32**2, rtol=1e-6)
    assert (drawn.pixel_lam == 1).all()


@pytest.mark.parametrize("max_count", [1, 3])
def test_erased_boxes_are_distributed_as_timms(max_count, monkeypatch):
    from timm.data import random_erasing

    size_px, num_images = 32, 20_000
    policy = ErasingPolicy(0.4, max_count=max_count, num_splits=2)
    draws = policy.draw(0, 0, range(num_images), size_px)
    assert draws.rows.min() >= num_images // 2

    boxes = []

    class Image:
        def __setitem__(self, key, value):
            boxes.append([key[1].start, key[1].stop, key[2].start, key[2].stop])

    monkeypatch.setattr(random_erasing, "_get_pixels", lambda *_, **__: None)
    theirs = random_erasing.RandomErasing(0.4, max_count=max_count, device="cpu")
    for _ in range(num_images // 2):
        theirs._erase(Image(), 3, size_px, size_px, torch.float32)
    boxes = np.array(boxes)
    assert len(draws.boxes) == pytest.approx(len(boxes), rel=0.05)
    quantiles = np.linspace(0.1, 0.9, 9)
    for column in range(4):
        ours, expected = (np.quantile(b[:, column], quantiles) for b in (draws.boxes, boxes))
        assert np.abs(ours - expected).max() <= 2
    area, expected = ((b[:, 1] - b[:, 0]) * (b[:, 3] - b[:, 2]) for b in (draws.boxes, boxes))
    assert area.mean() == pytest.approx(expected.mean(), rel=0.04)
    assert area.max() <= size_px**2 / 3 + size_px


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_erasing(memory_format):
    rows, boxes = np.array([1, 1]), np.array([[2, 6, 0, 8], [4, 8, 1, 5]])
    seeds = np.array([1, 2])
    images = torch.full((2, 3, 8, 8), 5.0).contiguous(memory_format=memory_format)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6] = True
    inside[4:8, 1:5] = True
    for mode in ("const", "rand", "pixel"):
        erased = erase(images.clone(), rows, boxes, seeds, mode)
        assert (erased[0] == 5).all()
        assert (erased[1, :, ~inside] == 5).all()
        assert (erased[1, :, inside] != 5).all()
        assert torch.equal(erased, erase(images.clone(), rows, boxes, seeds, mode))
        num_values = {"const": 1, "rand": 2, "pixel": int(inside.sum())}[mode]
        assert [len(channel.unique()) for channel in erased[1, :, inside]] == [num_values] * 3
    assert (erase(images.clone(), rows, boxes, seeds, "const")[1, :, inside] == 0).all()


def test_importing_the_package_is_cheap_and_offers_its_names():
    code = (
        "import sys, dali_rsb;"
        "print(*sorted({'torch', 'nvidia.dali', 'numpy'} & set(sys.modules)));"
        "print(set(dali_rsb.__all__) <= set(dir(dali_rsb)))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True) == "\nTrue\n"

    import dali_rsb

    assert all(getattr(dali_rsb, name) is not None for name in dali_rsb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        dali_rsb.absent  # noqa: B018

"""Order of an epoch, its slices, and the planning of device batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dali_rsb.draws.order import (
    BatchLayout,
    EvalLayout,
    balanced_order,
    epoch_order,
    plan_batches,
)
from dali_rsb.errors import UserError


def test_epoch_is_a_permutation_that_changes_with_seed_and_epoch():
    order = epoch_order(1000, seed=3, epoch=2)
    assert sorted(order) == list(range(1000))
    assert (order == epoch_order(1000, seed=3, epoch=2)).all()
    assert (order != epoch_order(1000, seed=3, epoch=3)).mean() > 0.9
    assert (order != epoch_order(1000, seed=2, epoch=2)).mean() > 0.9


def test_a_balanced_epoch_shows_all_classes_equally_often():
    labels = np.repeat([0, 1, 3], [700, 3, 47])  # no image is of class 2
    np.random.default_rng(0).shuffle(labels)
    shown = np.zeros(750, np.int64)
    for epoch in range(30):
        order = balanced_order(labels, seed=3, epoch=epoch)
        assert np.bincount(labels[order]).tolist() == [250, 250, 0, 250]
        times = np.bincount(order, minlength=750)
        for label, least in ((0, 0), (1, 250 // 3), (3, 250 // 47)):
            assert set(times[labels == label]) == {least, least + 1}
        # Classes are mixed, not one after the other.
        assert np.bincount(labels[order[:120]], minlength=4)[[0, 1, 3]].min() > 20
        shown += times
    # 250 of 700 in 30 epochs: an image is shown 10.7 times, with a deviation of 2.6.
    assert 1 <= shown[labels == 0].min() < shown[labels == 0].max() <= 22
    again = balanced_order(labels, seed=3, epoch=29)
    assert (order == again).all()
    for seed, epoch in ((3, 28), (4, 29)):
        assert (order != balanced_order(labels, seed, epoch)).mean() > 0.9
    rest = [np.bincount(labels[balanced_order(labels[:749], 0, e)])[[0, 1, 3]] for e in range(20)]
    assert {tuple(sorted(counts.tolist())) for counts in rest} == {(249, 250, 250)}
    assert len({tuple(counts.tolist()) for counts in rest}) == 3  # whose turn it is changes


def test_order_with_seed_0_is_that_of_torch_distributed_sampler():
    data = list(range(1001))
    for epoch in (0, 5):
        theirs = []
        for rank in range(4):
            sampler = torch.utils.data.DistributedSampler(data, num_replicas=4, rank=rank)
            sampler.set_epoch(epoch)
            theirs.append(list(sampler))
        interleaved = [index for indices in zip(*theirs, strict=True) for index in indices]
        assert interleaved[:1001] == epoch_order(1001, seed=0, epoch=epoch).tolist()


def test_repeats_golden_values_of_timm():
    # Golden heads for 1,000 images, epoch 0, world size 4, from timm's RepeatAugSampler.
    order = epoch_order(1000, seed=0, epoch=0, repeats=3)
    assert order[:18:3].tolist() == [44, 37, 675, 775, 947, 209]
    heads = [order[rank::4][:6].tolist() for rank in range(4)]
    assert heads == [
        [44, 37, 675, 947, 209, 719],
        [44, 37, 775, 947, 209, 500],
        [44, 675, 775, 947, 719, 500],
        [37, 675, 775, 209, 719, 500],
    ]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_repeats_equal_timm_sampler(world):
    from timm.data.distributed_sampler import RepeatAugSampler

    for epoch in (0, 7):
        ours = epoch_order(5000, seed=0, epoch=epoch, repeats=3)
        for rank in range(world):
            theirs = RepeatAugSampler(list(range(5000)), num_replicas=world, rank=rank)
            theirs.set_epoch(epoch)
            layout = BatchLayout(32 * world, 32, world, rank, copies="spread")
            taken = [ours[layout.positions(u, 0)] for u in range(len(ours) // (32 * world))]
            taken = np.concatenate(taken)
            assert taken.tolist() == list(theirs)[: len(taken)]
            assert len(taken) >= len(list(theirs)) - 32


def test_repeats_need_enough_images():
    with pytest.raises(UserError, match=r"augment.repeats=3 needs at least 256"):
        epoch_order(200, seed=0, epoch=0, repeats=3)


@given(
    processes=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    batch=st.integers(1, 9),
    update=st.integers(0, 1000),
    copies=st.sampled_from(["spread", "together"]),
)
def test_processes_share_out_an_update_exactly(processes, accumulation, batch, update, copies):
    total = processes * accumulation * batch
    taken = []
    for process in range(processes):
        layout = BatchLayout(total, batch, processes, process, copies)
        assert layout.accumulation == accumulation
        for micro_batch in range(accumulation):
            positions = layout.positions(update, micro_batch)
            assert len(positions) == batch
            taken.extend(positions)
    assert sorted(taken) == list(range(update * total, (update + 1) * total))


@given(images=st.integers(1, 400), processes=st.integers(1, 7), batch=st.integers(1, 40))
def test_evaluation_counts_every_image_once(images, processes, batch):
    seen, lengths = [], set()
    for process in range(processes):
        layout = EvalLayout(images, batch, processes, process)
        batches = list(layout.batches())
        lengths.add(len(batches))
        assert len(batches) == layout.num_batches
        for indices, num_valid in batches:
            assert len(indices) == batch
            assert 0 <= indices.min() <= indices.max() < images
            seen.extend(indices[:num_valid].tolist())
    assert sorted(seen) == list(range(images))
    assert len(lengths) == 1  # nobody waits for a process that has more batches


def test_planned_device_batch_is_the_largest_that_fits():
    assert plan_batches(2048, 4, None, 256) == 256
    assert plan_batches(2048, 8, None, 512) == 256
    assert plan_batches(2048, 1, 64, 256) == 64
    assert plan_batches(96, 4, None, 256, multiple_of=8) == 24


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ((2048, 3, None, 256), r"batch_size=2048 cannot be shared by 3 .*batch_size=2046"),
        ((2048, 4, 100, 256), r"batch_per_device=100 .* set run.batch_per_device=64 or 128"),
        ((2048, 4, 1024, 256), r"set run.batch_per_device=512"),
        ((12, 1, None, 256, 8), r"no multiple of 8 divides.*optimizer.batch_size=16"),
    ],
)
def test_impossible_batches_say_what_would_work(arguments, fix):
    with pytest.raises(UserError, match=fix):
        plan_batches(*arguments)

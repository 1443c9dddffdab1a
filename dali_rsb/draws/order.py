"""Which image stands at which position of an epoch, and which positions a process takes.

The order of an epoch is global; processes cut slices out of it. So the set of samples of an
optimizer update is the same for any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Sampler, SequentialSampler

from dali_rsb.errors import UserError

Copies = Literal["spread", "together"]

# timm's RepeatAugSampler drops the tail of an epoch below a multiple of 256 images.
REPEAT_ROUND = 256
# Keeps the epochs of neighbouring seeds apart; with seed 0 the order is that of torch's
# DistributedSampler and timm's RepeatAugSampler, which seed with the epoch.
SEED_STRIDE = 1_000_003


def epoch_length(num_images: int, repeats: int = 1) -> int:
    """Positions of an epoch.

    With repeats an epoch keeps the length of a plain one, rounded down to REPEAT_ROUND: it sees
    about 1 / repeats of the images, each `repeats` times.

    Raises:
        UserError: fewer than REPEAT_ROUND images with repeats.
    """
    if repeats == 1:
        return num_images
    if num_images < REPEAT_ROUND:
        raise UserError(
            f"augment.repeats={repeats} needs at least {REPEAT_ROUND} training images, found "
            f"{num_images}; set augment.repeats=1"
        )
    return num_images // REPEAT_ROUND * REPEAT_ROUND


def epoch_order(num_images: int, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """Image index at each position of an epoch: a permutation, each image `repeats` times in a row.

    Returns:
        int64 [epoch_length(num_images, repeats)].
    """
    length = epoch_length(num_images, repeats)
    generator = torch.Generator().manual_seed((seed * SEED_STRIDE + epoch) % 2**63)
    order = torch.randperm(num_images, generator=generator).numpy()
    return np.repeat(order[: -(-length // repeats)], repeats)[:length]


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Image index at each position of an epoch in which all classes are equally frequent.

    The epoch keeps the length of a plain one. The positions are shared out evenly among the classes
    that have images (to within one, whose turn it is changes with the epoch). A class shows each of
    its images equally often, to within one, and a new random choice of them for the rest.

    Args:
        labels: int64 [N].

    Returns:
        int64 [N].
    """
    generator = torch.Generator().manual_seed((seed * SEED_STRIDE + epoch) % 2**63)

    def shuffled(values: np.ndarray) -> np.ndarray:
        return values[torch.randperm(len(values), generator=generator).numpy()]

    by_class = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    rows_of = np.split(by_class, np.cumsum(counts)[:-1])
    share, rest = divmod(len(labels), len(counts))
    favoured = set(shuffled(np.arange(len(counts)))[:rest].tolist())
    chosen = []
    for number, rows in enumerate(rows_of):
        times, more = divmod(share + (number in favoured), len(rows))
        chosen += [*[rows] * times, shuffled(rows)[:more]]
    return shuffled(np.concatenate(chosen))


@dataclass(frozen=True)
class BatchLayout:
    """How one optimizer update's samples are shared out over processes and micro-batches.

    The `global_batch` positions of an update are cut into `accumulation` runs, and each run into
    one device batch for each process: contiguous slices ("together": copies of one image stay on
    one process) or every world_size-th ("spread": copies go to different processes, as timm
    does it).
    """

    global_batch: int
    batch_per_device: int
    world_size: int = 1
    rank: int = 0
    copies: Copies = "together"

    @property
    def accumulation(self) -> int:
        """Micro-batches of one update."""
        return self.global_batch // (self.batch_per_device * self.world_size)

    def positions(self, update: int, micro_batch: int) -> range:
        """Positions in the epoch of this process's device batch."""
        run = self.batch_per_device * self.world_size
        start = update * self.global_batch + micro_batch * run
        if self.copies == "spread":
            return range(start + self.rank, start + run, self.world_size)
        start += self.rank * self.batch_per_device
        return range(start, start + self.batch_per_device)

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where positions of an epoch come to stand; the inverse of `positions`, for all ranks.

        Args:
            positions: int64 [n].

        Returns:
            Update of the epoch, micro-batch and rank, int64 [n] each.
        """
        update, place = np.divmod(positions, self.global_batch)
        micro_batch, place = np.divmod(place, self.batch_per_device * self.world_size)
        if self.copies == "spread":
            return update, micro_batch, place % self.world_size
        return update, micro_batch, place // self.batch_per_device


def plan_batches(
    global_batch: int,
    world_size: int,
    batch_per_device: int | None,
    default_batch_per_device: int,
    multiple_of: int = 1,
) -> int:
    """Choose the device batch so that device batch x processes x accumulation = global batch.

    Args:
        global_batch: samples of one optimizer update.
        batch_per_device: the user's choice, or None for the largest one that divides and is at
            most `default_batch_per_device`.
        multiple_of: the device batch must be a multiple of this (mixing pairs samples in blocks).

    Raises:
        UserError: no device batch fits, or the chosen one does not; says which ones would.
    """
    per_process, rest = divmod(global_batch, world_size)
    if rest:
        raise UserError(
            f"optimizer.batch_size={global_batch} cannot be shared by {world_size} processes; "
            f"use a number of processes that divides it, or optimizer.batch_size="
            f"{max(per_process, 1) * world_size}"
        )
    fitting = [
        size for size in range(multiple_of, per_process + 1, multiple_of) if per_process % size == 0
    ]
    if not fitting:
        raise UserError(
            f"optimizer.batch_size={global_batch} leaves {per_process} samples for each of "
            f"{world_size} processes, which no multiple of {multiple_of} divides (mixing pairs "
            f"samples in blocks of {multiple_of}); use optimizer.batch_size="
            f"{-(-per_process // multiple_of) * multiple_of * world_size} or fewer processes"
        )
    if batch_per_device is None:
        return max(
            (size for size in fitting if size <= default_batch_per_device), default=fitting[0]
        )
    if batch_per_device not in fitting:
        below = [size for size in fitting if size < batch_per_device][-1:]
        above = [size for size in fitting if size > batch_per_device][:1]
        raise UserError(
            f"run.batch_per_device={batch_per_device} on {world_size} process(es) cannot make "
            f"optimizer.batch_size={global_batch}; set run.batch_per_device="
            f"{' or '.join(map(str, below + above))}"
        )
    return batch_per_device


@dataclass(frozen=True)
class EvalLayout:
    """Evaluation positions: every image once; every process runs the same number of batches.

    A process owns a contiguous share of the images. Its last batches are filled up with copies
    of image 0, which `num_valid` masks.
    """

    num_images: int
    batch_per_device: int
    world_size: int = 1
    rank: int = 0

    @property
    def _share(self) -> int:
        return -(-self.num_images // self.world_size)

    @property
    def num_batches(self) -> int:
        return -(-self._share // self.batch_per_device)

    def batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (image indices int64 [batch_per_device], number of valid rows at the front)."""
        first = self.rank * self._share
        end = min(first + self._share, self.num_images)
        for batch in range(self.num_batches):
            start = first + batch * self.batch_per_device
            num_valid = int(np.clip(end - start, 0, self.batch_per_device))
            indices = np.zeros(self.batch_per_device, np.int64)
            indices[:num_valid] = np.arange(start, start + num_valid)
            yield indices, num_valid


class EpochSampler(Sampler[int]):
    """Image indices of one process, epoch after epoch, in the order that timm's loaders have.

    With seed 0: shuffled, the order of torch's DistributedSampler; with `repeats`, that of timm's
    RepeatAugSampler, for any number of processes, one included; not shuffled, that of timm's
    OrderedDistributedSampler. Every process gets the same number of indices, filled up from the
    beginning of the epoch.

    Args:
        num_images: size of the dataset.
        shuffle: draw a new order for each epoch.
        repeats: how often an epoch shows each image that it shows; may be a fraction. An epoch
            keeps its length, so it shows 1 / repeats of the images. None for plain epochs.
        seed: of the order.
        num_replicas, rank: processes that share an epoch, and which one this is.
    """

    def __init__(
        self,
        num_images: int,
        *,
        shuffle: bool = True,
        repeats: float | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.num_images = num_images
        self.shuffle = shuffle
        self.repeats = repeats
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        length = -(-self.num_images // self.num_replicas)
        if self.repeats is None:
            return length
        if self.num_images >= REPEAT_ROUND:
            length = self.num_images // REPEAT_ROUND * REPEAT_ROUND // self.num_replicas
        return min(length, math.ceil(self.num_images * self.repeats / self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def indices(self) -> np.ndarray:
        """The epoch's indices: int64 [len(self)]."""
        places = self.rank + self.num_replicas * np.arange(len(self))
        if self.repeats is not None:
            num_copies = math.ceil(self.num_images * self.repeats)
            places = np.floor_divide(places % num_copies, self.repeats).astype(np.int64)
        places %= self.num_images
        if not self.shuffle:
            return places
        return epoch_order(self.num_images, self.seed, self.epoch)[places]


class SequentialEpochSampler(EpochSampler, SequentialSampler):
    """One that does not shuffle, known to programs that ask for torch's class."""

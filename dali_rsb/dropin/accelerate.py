"""What Accelerate asks of a loader: whether a batch is the last one, and batches from a place on.

Accelerate leaves a loader that is no torch `DataLoader` as it is. Its gradient accumulation looks
at the loader that is being iterated (`GradientState`), and its `skip_first_batches` builds a
`DataLoader` over `dataset`, `batch_sampler` and `collate_fn`. Both work with what stands here, and
nothing is imported or patched for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler

Batches = Generator[tuple[Tensor, Tensor], None, None]


@contextlib.contextmanager
def seen_by_accelerate(loader: Any) -> Iterator[None]:
    """Let Accelerate know which loader is being iterated, where a program has an Accelerator.

    Args:
        loader: with an attribute `end_of_dataloader` that is true with the last batch.
    """
    module = sys.modules.get("accelerate.state")
    states = getattr(module, "GradientState", None)
    if states is None or not states._shared_state:
        yield
        return
    state = states()
    state._add_dataloader(loader)
    try:
        yield
    finally:
        state._remove_dataloader(loader)


class BatchIndices(list[int]):
    """The indices of one batch, which know the epoch that they belong to."""

    def __init__(self, indices: list[int], epoch: PlannedEpoch, start: int) -> None:
        super().__init__(indices)
        self.epoch = epoch
        self.start = start


class PlannedEpoch:
    """An epoch whose order is drawn, to be loaded from any batch on.

    Args:
        begin: starts a pass at a position of the epoch.
    """

    def __init__(self, begin: Callable[[int], Batches]) -> None:
        self._begin = begin
        self._batches: Batches | None = None
        self._next = 0

    def load(self, batch: BatchIndices) -> tuple[Tensor, Tensor]:
        """The images and targets of a batch; decoded ahead where batches are asked for in order."""
        if self._batches is None or batch.start != self._next:
            if self._batches is not None:
                self._batches.close()
            self._batches = self._begin(batch.start)
        self._next = batch.start + len(batch)
        return next(self._batches)


class BatchPlan(BatchSampler):
    """The batches of a loader's epochs, as lists of indices that `load` turns into tensors.

    Args:
        sampler, batch_size, drop_last: of the loader.
        plan: draws the next epoch: its indices and how to load it.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool,
        plan: Callable[[], tuple[np.ndarray | Iterator[int], PlannedEpoch]],
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self._plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        indices, epoch = self._plan()
        start, batch = 0, []
        for index in indices:
            batch.append(int(index))
            if len(batch) == self.batch_size:
                yield BatchIndices(batch, epoch, start)
                start, batch = start + len(batch), []
        if batch and not self.drop_last:
            yield BatchIndices(batch, epoch, start)


def load(batch: BatchIndices) -> tuple[Tensor, Tensor]:
    """The `collate_fn` of a loader: what a `DataLoader` over its `batch_sampler` yields."""
    return batch.epoch.load(batch)

"""Past updates computed again: the batches of all processes, as the training step got them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dali_rsb.dataset.image_list import find_excluded
from dali_rsb.draws.drawn import Drawn, drawn
from dali_rsb.draws.samples import BatchSpec, PreparedRun, TrainSamples, replace_indices
from dali_rsb.errors import UserError
from dali_rsb.loader.batch import Batch, MixedBatch
from dali_rsb.pictures.loading import open_bad_images, open_loader, open_samples
from dali_rsb.pictures.past import Past
from dali_rsb.pictures.unchanged import check_same_files, check_same_images
from dali_rsb.run.sessions import Position
from dali_rsb.system.names import printable
from pipelines.operands import Branch, branch_input


@dataclass(frozen=True, eq=False)
class ReplayedBatch:
    """A micro-batch of a past update.

    Attributes:
        rank: of the process that it was given to.
        micro_batch: number of it in its update, from 0.
        asked: int64 [B], the images that the order of the epoch asks for.
        spec: the images that were used, and their positions.
        batch: as it was decoded and augmented.
        mixed: as the model was given it.
        samples: the epochs of its process.
    """

    rank: int
    micro_batch: int
    asked: np.ndarray
    spec: BatchSpec
    batch: Batch
    mixed: MixedBatch
    samples: TrainSamples

    @cached_property
    def drawn(self) -> Drawn:
        """What its rows drew."""
        return drawn(self.samples, self.spec)


class Replayer:
    """Computes updates of a session again.

    Args:
        past: the session.
        without: names of images to leave out, as if they could not be decoded.
        allow_changes: take files as they are now, if they have changed since the run.

    Raises:
        UserError: the images cannot be opened, are others than in the run, or do not have those
            that are to be left out.
    """

    def __init__(
        self, past: Past, without: Sequence[str] = (), allow_changes: bool = False
    ) -> None:
        self.past = past
        self.samples = open_samples(past.config, past.session)
        self.index = self.samples.index
        check_same_images(self.index, past.session)
        self._allow_changes = allow_changes
        self.bad_images = open_bad_images(past.config, self.samples)
        self._loader = open_loader(past.config, self.samples, self.bad_images)
        self.left_out = self.rows_of(without)
        for image in self.left_out:
            self.bad_images.leave_out(image)

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """The images that have some names, absolute or relative to the dataset's folder.

        Raises:
            UserError: there is no such image.
        """
        rows = []
        for name in names:
            found = find_excluded(self.index, [name])
            if not len(found.rows):
                why = "could not be read when it was indexed" if found.unreadable else "is no image"
                raise UserError(
                    f"{printable(name, 100)} {why} of {printable(self.index.origin, 80)}; give a "
                    "path as messages of the run show it"
                )
            rows += found.rows.tolist()
        return rows

    def batches(
        self, position: Position, micro_batches: int | None = None
    ) -> Iterator[ReplayedBatch]:
        """The micro-batches of an update: of rank 0 in their order, then of the next rank.

        Args:
            micro_batches: only the first so many of each rank; None for all.

        Raises:
            UserError: an image has changed since the run, or cannot be decoded.
        """
        for rank in range(self.samples.layout.world_size):
            samples = self._of_rank(rank)
            asked = list(
                itertools.islice(
                    samples.specs(*position), micro_batches or samples.layout.accumulation
                )
            )
            self.check(np.concatenate([spec.indices for spec in asked]).tolist())
            loader = self._loader.with_samples(samples)
            # All of them first: whoever takes one may load others before the next.
            loaded = list(loader.batches(asked))
            for number, (spec, batch) in enumerate(zip(asked, loaded, strict=True)):
                used = replace_indices(spec, self.bad_images.replacements)
                self.check(used.indices.tolist())
                yield ReplayedBatch(
                    rank, number, spec.indices, used, batch, self._mixed(batch), samples
                )

    def check(self, images: Iterable[int]) -> None:
        """Refuse images that have changed since the run, but for those that are left out.

        Raises:
            UserError: names the first one.
        """
        if not self._allow_changes:
            check_same_files(self.index, set(images) - set(self.left_out), self.past.session)

    def before_layer(self, replayed: ReplayedBatch, layer: int) -> Tensor:
        """The images of a batch before a layer of RandAugment, from 0: uint8 [B, H, W, 3]."""
        samples = _UpToLayer(replayed.samples, layer)
        (batch,) = self._loader.with_samples(samples).batches([replayed.spec])
        return batch.images

    def close(self) -> None:
        """Free the pipelines."""
        self._loader.close()

    def _of_rank(self, rank: int) -> TrainSamples:
        return replace(self.samples, layout=replace(self.samples.layout, rank=rank))

    def _mixed(self, batch: Batch) -> MixedBatch:
        data = self.past.config.data
        return batch.mixed(data.mean, data.std, getattr(torch, self.past.session.dtype))


@dataclass(frozen=True)
class _UpToLayer:
    """Training samples without RandAugment's layers from one on; draws stay."""

    samples: TrainSamples
    layers: int

    def prepare(self, *specs: BatchSpec) -> PreparedRun:
        prepared = self.samples.prepare(*specs)
        for layer in range(self.layers, self.samples.transform.randaugment_layers):
            branch = prepared.inputs[branch_input(layer)]
            prepared.inputs[branch_input(layer)] = np.full_like(branch, Branch.SKIP)
        if prepared.randaugment is None:
            return prepared
        branch = prepared.randaugment.branch.copy()
        branch[:, self.layers :] = Branch.SKIP
        return replace(prepared, randaugment=replace(prepared.randaugment, branch=branch))

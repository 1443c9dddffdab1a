"""What models say of each image: one pass over the images, nothing counted yet.

All metrics of any labelling follow from it (see `metrics`): right answers, other answers (ReaL) and
the agreement of two decoders. An image takes 64 bytes on the device for each model and choice, and
nothing waits for the device before the end.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dali_rsb.draws.samples import BatchSpec, EvalSamples
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.loader.batch import Batch, Channels
from dali_rsb.loader.transfer import to_device
from dali_rsb.models.precision import Precision
from dali_rsb.run.processes import Processes

TOP = 5


@dataclass(frozen=True)
class Choice:
    """Among which of its classes a model chooses, and where the right one stands.

    Attributes:
        labels: int64 [N], of the images among the model's classes; -1 where nobody knows it.
        among: int64 [n], the classes to choose among; None for all of them.
    """

    labels: npt.NDArray[np.int64]
    among: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate, in evaluation mode on the device.

    Attributes:
        module: maps [B, 3, H, W] to logits [B, number of classes].
        mean, std: of the normalisation of its images.
        precision: of the forward pass.
        choices: what is asked of each image.
        flip: average the logits of each image with those of its mirror image.
    """

    module: nn.Module
    mean: Channels
    std: Channels
    precision: Precision
    choices: Sequence[Choice]
    flip: bool = False


@dataclass(frozen=True)
class Predictions:
    """What one model says of N images.

    Attributes:
        top: int64 [N, k], the classes with the largest logits, k = 5 or all of fewer classes.
        confidence: float32 [N], the probability of the first of them.
        loss: float32 [N], cross-entropy with the label; NaN where nobody knows it.
    """

    top: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    loss: npt.NDArray[np.float32]


class Batches(Protocol):
    """What decodes the images: `Loader` or `PillowLoader`."""

    def batches(self, specs: Iterable[BatchSpec]) -> Generator[Batch, None, None]:
        """Yield the batches of `specs` in order."""
        ...


@torch.no_grad()
def predict(
    candidates: Sequence[Candidate], samples: EvalSamples, loader: Batches, processes: Processes
) -> list[list[Predictions]]:
    """Ask several models in one pass over the images; all processes must call it.

    Returns:
        For each candidate its predictions for each of its choices, of all images.
    """
    num_images, device = len(samples.index), processes.device
    recorders = [
        [_Recorder(choice, num_images, device) for choice in candidate.choices]
        for candidate in candidates
    ]
    processes.note(lambda: "an evaluation")
    with closing(loader.batches(samples.specs())) as batches:
        for spec, batch in zip(samples.specs(), batches, strict=True):
            processes.note()
            valid = to_device(spec.indices[: spec.num_valid], device)
            normalized: dict[tuple[Channels, Channels, torch.dtype], Tensor] = {}
            for candidate, its_recorders in zip(candidates, recorders, strict=True):
                key = (candidate.mean, candidate.std, candidate.precision.input_dtype)
                if key not in normalized:
                    normalized[key] = normalize_mix(batch.images, *key)
                logits = _logits(candidate, normalized[key])[: spec.num_valid]
                for recorder in its_recorders:
                    recorder.add(valid, logits)
    return [[recorder.gathered(processes) for recorder in row] for row in recorders]


def _logits(candidate: Candidate, images: Tensor) -> Tensor:
    """float32 [B, number of classes]."""
    with candidate.precision.autocast():
        logits: Tensor = candidate.module(images).float()
        if candidate.flip:
            logits = (logits + candidate.module(images.flip(3)).float()) / 2
    return logits


class _Recorder:
    """Collects on the device what a model says of the images that this process sees."""

    def __init__(self, choice: Choice, num_images: int, device: torch.device) -> None:
        self._labels = to_device(choice.labels, device)
        self._among = None if choice.among is None else to_device(choice.among, device)
        self._columns: Tensor | None = None  # float64 [N, k + 3], once k is known
        self._num_images = num_images

    def add(self, rows: Tensor, logits: Tensor) -> None:
        """Take the logits, float32 [n, number of classes], of the images `rows`, int64 [n]."""
        labels = self._labels[rows]
        log_likelihood = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        if self._among is not None:
            logits = logits[:, self._among]
        total = logits.logsumexp(1)
        values, top = logits.topk(min(TOP, logits.shape[1]))
        if self._among is not None:
            top = self._among[top]
        loss = torch.where(labels < 0, torch.nan, total - log_likelihood)
        confidence = (values[:, 0] - total).exp()
        if self._columns is None:
            shape = (self._num_images, top.shape[1] + 3)
            self._columns = torch.zeros(shape, dtype=torch.float64, device=logits.device)
        ones = torch.ones_like(loss)
        columns = torch.cat([top, torch.stack([confidence, loss, ones], 1)], 1)
        self._columns[rows] += columns.double()

    def gathered(self, processes: Processes) -> Predictions:
        """The predictions of all processes."""
        assert self._columns is not None  # every process has a batch
        columns = processes.sum(self._columns).cpu().numpy()
        assert (columns[:, -1] == 1).all(), "an image was not counted once"
        return Predictions(
            columns[:, :-3].astype(np.int64),
            columns[:, -3].astype(np.float32),
            columns[:, -2].astype(np.float32),
        )

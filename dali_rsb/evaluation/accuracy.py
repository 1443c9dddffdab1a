"""Top-1 and top-5 accuracy over a validation set, each image counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.loader.batch import Batch
from dali_rsb.models.precision import Precision
from dali_rsb.run.processes import Processes


@dataclass(frozen=True)
class Accuracy:
    """Result over `count` images: accuracies in percent, mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    count: int


@torch.no_grad()
def evaluate(
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    processes: Processes,
    precision: Precision,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> list[Accuracy]:
    """Evaluate several models in one pass over the images; waits for the device once, at the end.

    Args:
        models: left in the mode (training or not) in which they came.
        batches: padded batches of this process.
        precision: of the forward passes.
        mean, std: of the normalisation.
    """
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    # Rows: models. Columns: top-1 hits, top-5 hits, sum of losses, images.
    totals = torch.zeros(len(models), 4, dtype=torch.float64, device=processes.device)
    processes.note(lambda: "an evaluation")
    for batch in batches:
        processes.note()
        images = normalize_mix(batch.images, mean, std, precision.input_dtype)
        valid = torch.arange(len(images), device=images.device) < batch.num_valid
        for row, model in zip(totals, models, strict=True):
            with precision.autocast():
                logits = model(images)
            row += _count(logits.float(), batch.labels, valid)
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    return [
        Accuracy(100 * top1 / count, 100 * top5 / count, loss / count, int(count))
        for top1, top5, loss, count in processes.sum(totals).tolist()
    ]


def _count(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """float64 [4]: top-1 hits, top-5 hits, sum of losses and number of the valid rows."""
    ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    losses = F.cross_entropy(logits, labels, reduction="none")
    columns = torch.stack([ranked[:, 0], ranked.any(1), losses, torch.ones_like(losses)], 1)
    return torch.where(valid[:, None], columns.double(), 0.0).sum(0)

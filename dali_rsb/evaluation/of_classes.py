"""A model that chooses among some of its classes alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OfClasses(nn.Module):
    """Takes the other classes' logits to -inf: labels stay, and no other class is ever chosen.

    Args:
        model: gives logits [B, number of classes].
        labels: int64 [n] on the model's device, the classes to choose among.
    """

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self._model = model
        self._labels = labels

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, number of classes], -inf for the other classes."""
        logits = self._model(images)
        chosen = torch.full_like(logits, -torch.inf)
        chosen[:, self._labels] = logits[:, self._labels]
        return chosen

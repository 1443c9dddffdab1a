"""Dynamic loss scale for float16 gradients, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LossScaler:
    """The scale of `torch.amp.GradScaler`, without its own pass over the gradients.

    An optimizer that unscales and finds inf and NaN itself needs no more: `tensor` is what the
    gradients are multiplied by, and `update` is told whether the step was skipped. The scale is
    halved after a skipped step and doubled after `growth_interval` others in a row. Nothing waits
    for the device, except `state_dict`. States are interchangeable with GradScaler's.

    Args:
        device: of the losses.
        enabled: False for a scale of 1 that never changes.
    """

    growth_factor = 2.0
    backoff_factor = 0.5

    def __init__(
        self,
        device: torch.device,
        enabled: bool = True,
        init_scale: float = 2.0**16,
        growth_interval: int = 2000,
    ) -> None:
        self.growth_interval = growth_interval
        self.tensor: Tensor | None = None
        if enabled:
            self.tensor = torch.full((), init_scale, device=device)
            self._growth_tracker = torch.zeros((), dtype=torch.int32, device=device)

    def scale(self, loss: Tensor) -> Tensor:
        return loss if self.tensor is None else loss * self.tensor

    def update(self, skipped: Tensor) -> None:
        """Adapt the scale after a step; `skipped` is 0-dim float32, not 0 for a skipped one."""
        if self.tensor is not None:
            torch._amp_update_scale_(
                self.tensor,
                self._growth_tracker,
                skipped,
                self.growth_factor,
                self.backoff_factor,
                self.growth_interval,
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; empty where not enabled."""
        if self.tensor is None:
            return {}
        return {
            "scale": self.tensor.item(),
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": int(self._growth_tracker.item()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a scale; an empty state, of a run without one, leaves this one new."""
        if self.tensor is not None and state:
            self.tensor.fill_(state["scale"])
            self._growth_tracker.fill_(state["_growth_tracker"])
            self.growth_factor = state["growth_factor"]
            self.backoff_factor = state["backoff_factor"]
            self.growth_interval = state["growth_interval"]

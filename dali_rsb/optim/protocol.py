"""What training may ask of an optimizer beside `torch.optim.Optimizer`: its capabilities.

Each capability is optional, and an optimizer has it by having the attribute. The training step, the
EMA and the log ask here and name no optimizer, so a new one touches its own file and the factory.

- `_step_supports_amp_scaling = True`: it **skips an update by itself**. PyTorch's own convention,
  which its fused optimizers follow: for the time of `step`, `grad_scale` and `found_inf` are 0-dim
  tensors on the device or None; gradients are divided by the one, and where the other is not 0 the
  step changes nothing. Without it the host reads the flag before each step.
- `takes_norm = True`: it **takes the gradients' norm itself**, and skips where that is inf or NaN;
  `skipped` is then 1 (0-dim float32 on the device), else 0. It must also skip by itself.
- `fuse_averages(averages, weight)`: it **takes the EMA along**, see `fuse_averages` below.
- `describe()`: it **says what it runs on**, in one line for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def skips_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` unscales gradients and skips an update by flags on the device."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def takes_norm(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` finds inf and NaN in the gradients itself, and leaves `skipped`."""
    return bool(getattr(optimizer, "takes_norm", False))


def fuse_averages(
    optimizer: torch.optim.Optimizer, averages: Mapping[Tensor, Tensor], weight: float
) -> set[Tensor]:
    """Let the optimizer's next `step` also update EMAs of its parameters.

    Args:
        averages: the EMA of each parameter, a tensor like it.
        weight: 1 - decay.

    Returns:
        The parameters whose EMA the next step updates, whether or not it skips; none for an
        optimizer that cannot.
    """
    fuse: Any = getattr(optimizer, "fuse_averages", None)
    return set() if fuse is None else fuse(averages, weight)


def describe_backend(optimizer: torch.optim.Optimizer) -> str | None:
    """What the optimizer runs on, for the log; None where there is nothing to say."""
    describe: Any = getattr(optimizer, "describe", None)
    return None if describe is None else describe()

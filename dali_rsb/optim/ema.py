"""Exponential moving average of a model's weights and buffers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dali_rsb.optim.protocol import fuse_averages

Warmup = Literal["none", "timm", "tf"]


def unwrap_model(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile` wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's OptimizedModule
            model = model.get_submodule("_orig_mod")
        else:
            return model


class ModelEma:
    """EMA of a model: `ema = decay * ema + (1 - decay) * model` after each update.

    Floating-point parameters and persistent buffers (batch-norm statistics) are averaged, integer
    buffers copied. `module` is the averaged copy of the unwrapped model, in evaluation mode and
    without gradients, in the model's memory format and on its device. `state_dict` and
    `load_state_dict` use the plain module's names. `update` does not wait for the device. After
    `hand_over`, an optimizer that takes the EMA along averages the parameters in its step, and
    `update` does the rest.

    With `warmup`, t the number of the update (from 1) and s = t - 1, the decay is at most

    - "none": no bound, but the first update copies the model (timm's `ModelEmaV3`);
    - "timm": 1 - (1 + s / warmup_gamma) ** -warmup_power, which also copies first;
    - "tf": (1 + t) / (10 + t), TensorFlow's `num_updates` rule, used by ResNet-RS.

    Raises:
        ValueError: `decay` outside [0, 1], or weights in half precision, where the average would
            stand still: a step of (1 - decay) * difference is below their resolution.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9998,
        warmup: Warmup = "none",
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"Invalid decay: {decay}, must be in [0, 1]")
        self.decay = decay
        self.warmup = warmup
        self.warmup_gamma = warmup_gamma
        self.warmup_power = warmup_power
        self._source = unwrap_model(model)
        self._source_slots = _slots(self._source)
        self.module = copy.deepcopy(self._source).eval().requires_grad_(False)
        self._slots = _slots(self.module)
        self._handed_over: set[Tensor] = set()
        self._step_handed_over: int | None = None
        for tensor in _tensors(self._slots):
            if tensor.is_floating_point() and tensor.itemsize < 4:
                raise ValueError(f"Cannot average {tensor.dtype} weights: keep them in float32")

    def decay_at(self, step: int) -> float:
        """The decay of update number `step`, counted from 1."""
        if self.warmup == "tf":
            return min(self.decay, (1 + step) / (10 + step))
        if step <= 1:
            return 0.0
        if self.warmup == "timm":
            bound = 1 - (1 + (step - 1) / self.warmup_gamma) ** -self.warmup_power
            return min(self.decay, bound)
        return self.decay

    def hand_over(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Let the optimizer's next step, number `step`, also average the parameters that it can.

        `optimizer.step()` and then `update(model, step)` must follow.
        """
        sources, averages = _tensors(self._source_slots), _tensors(self._slots)
        pairs = dict(zip(sources, averages, strict=True))
        self._handed_over = fuse_averages(optimizer, pairs, 1 - self.decay_at(step))
        self._step_handed_over = step

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model` (wrapped or not) after optimizer update `step`.

        Raises:
            RuntimeError: another step, or another model, than that of the `hand_over` before.
        """
        source = unwrap_model(model)
        handed_over, self._handed_over = self._handed_over, set()
        if handed_over and (step != self._step_handed_over or source is not self._source):
            raise RuntimeError(
                f"update {step} after a hand_over for update {self._step_handed_over}, or of "
                "another model"
            )
        if source is not self._source:
            self._source = source
            self._source_slots = _slots(source)
        averages, values = _tensors(self._slots), _tensors(self._source_slots)
        pairs = [pair for pair in zip(averages, values, strict=True) if pair[1] not in handed_over]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        if averaged:
            torch._foreach_lerp_(
                [average for average, _ in averaged],
                [value for _, value in averaged],
                1 - self.decay_at(step),
            )
        if copied:
            torch._foreach_copy_([average for average, _ in copied], [value for _, value in copied])

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state, under the plain module's names."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the EMA; raises RuntimeError where names or shapes differ."""
        self.module.load_state_dict(state)


_Slot = tuple[dict[str, Any], str]


def _slots(module: nn.Module) -> list[_Slot]:
    """Where the module tree holds its parameters and persistent buffers, each tensor once.

    The places, not the tensors: `module.to(...)` puts new tensors into the same places.
    """
    slots: list[_Slot] = []
    seen: set[int] = set()
    for submodule in module.modules():
        for holder in (submodule._parameters, submodule._buffers):
            for name, tensor in holder.items():
                persistent = name not in submodule._non_persistent_buffers_set
                if tensor is not None and persistent and id(tensor) not in seen:
                    seen.add(id(tensor))
                    slots.append((holder, name))
    return slots


def _tensors(slots: list[_Slot]) -> list[Tensor]:
    return [holder[name] for holder, name in slots]

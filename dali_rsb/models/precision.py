"""Mixed precision: which half type a device gets, its autocast context and its loss scaler."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from dali_rsb.errors import UserError


@dataclass(frozen=True)
class Precision:
    """Half precision of a run: `dtype` of the forward pass, None for float32."""

    device: torch.device
    dtype: torch.dtype | None

    @property
    def input_dtype(self) -> torch.dtype:
        return self.dtype or torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """A context for forward pass and loss; may be entered many times."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> GradScaler:
        """The loss scaler: float16 needs one, elsewhere it passes everything through."""
        return GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_precision(amp: str, device: torch.device) -> Precision:
    """`run.amp` on this device: "auto" is bf16 where the GPU has it, else fp16; none on a CPU.

    Raises:
        UserError: bf16 on a GPU without it, or fp16 on a CPU.
    """
    on_gpu = device.type == "cuda"
    # From compute capability 8.0 on: on older cards bf16 is emulated, far slower than fp16.
    has_bf16 = not on_gpu or torch.cuda.get_device_capability(device) >= (8, 0)
    if amp == "auto":
        amp = ("bf16" if has_bf16 else "fp16") if on_gpu else "none"
    if amp == "bf16" and not has_bf16:
        raise UserError("run.amp=bf16, but this GPU has no bfloat16; set run.amp=fp16")
    if amp == "fp16" and not on_gpu:
        raise UserError("run.amp=fp16 needs a GPU; set run.amp=bf16 or run.amp=none on a CPU")
    return Precision(device, {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[amp])

"""What an update of LAMB and of the weights' average costs, beside timm's Lamb and ModelEmaV3.

    python -m benchmarks.optimizer [--device cpu] [--model resnet50]

The floor is twelve passes over the float32 parameters at the copy bandwidth measured in the same
run: read parameter, gradient and both moments; write the moments; and, once the trust ratios are
known, read parameter, moments and average; write parameter and average.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.kernel_timing import (
    COMPILED,
    OURS,
    PLAIN,
    TIMM,
    Call,
    Case,
    add_options,
    compile_obstacle,
    run_cases,
)
from dali_rsb.errors import UserError, run_command
from dali_rsb.kernels.lamb import buckets_of, foreach_lamb
from dali_rsb.models import create_model
from dali_rsb.optim import Backend, ModelEma, create_optimizer, param_groups

APEX = "apex's FusedLAMB"
NUM_PASSES = 12
LR, WEIGHT_DECAY, DECAY = 5e-3, 0.02, 0.9998
UPDATE = 1000  # far from the first, which copies the weights
GRADIENT_SIZE = 1e-6  # with which no norm is clipped, whatever the model


def make_case(name: str, device: torch.device, no_compile: bool = False) -> Case:
    """All candidates, each with a copy of the model; they share the gradients."""
    torch.manual_seed(0)
    model = create_model(name).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.randn_like(p) * GRADIENT_SIZE
    candidates: dict[str, Call] = {OURS: _update(model, "auto")}
    left_out = {}
    if device.type != "cpu":  # where it serves
        candidates[PLAIN] = _update(_copy(model), "foreach")
    obstacle = compile_obstacle(device, no_compile)
    if obstacle is None:
        try:
            candidates[COMPILED] = _compiled_update(_copy(model))
        except Exception as error:
            left_out[COMPILED] = f"torch.compile failed: {_first_line(error)}"
    else:
        left_out[COMPILED] = obstacle
    try:
        candidates[TIMM] = _timm_update(_copy(model))
    except ImportError as error:
        left_out[TIMM] = str(error)
    try:
        candidates[APEX] = _update(_copy(model), "apex")
    except UserError as error:
        left_out[APEX] = str(error)
    num_bytes = sum(p.numel() * p.itemsize for p in parameters)
    return Case(candidates, NUM_PASSES * num_bytes, left_out)


def _copy(model: nn.Module) -> nn.Module:
    """A copy with the same gradient tensors: four times the memory is enough for each candidate."""
    gradients = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    copied = copy.deepcopy(model)
    for current in (model, copied):
        for p, gradient in zip(current.parameters(), gradients, strict=True):
            p.grad = gradient
    return copied


def _update(model: nn.Module, backend: Backend) -> Call:
    optimizer = create_optimizer(model, "lamb", LR, WEIGHT_DECAY, backend=backend)
    ema = ModelEma(model, DECAY)

    def update() -> None:
        ema.hand_over(optimizer, UPDATE)
        optimizer.step()
        ema.update(model, UPDATE)

    return update


def _compiled_update(model: nn.Module) -> Call:
    """The reference implementation and the EMA as one compiled function of lists of tensors."""
    optimizer = create_optimizer(model, "lamb", LR, WEIGHT_DECAY, backend="foreach")
    ema = ModelEma(model, DECAY)
    optimizer.step()  # makes the state
    buckets = [
        buckets_of([(p, p.grad, *optimizer.state[p].values()) for p in group["params"]])
        for group in optimizer.param_groups
    ]
    averages, values = _float_tensors(ema.module), _float_tensors(model)

    def update() -> Tensor:
        skipped = foreach_lamb(optimizer.param_groups, buckets, 1.0, None, None)
        torch._foreach_lerp_(averages, values, 1 - DECAY)
        return skipped

    compiled = torch.no_grad()(torch.compile(update, dynamic=False))
    compiled()
    return compiled


def _float_tensors(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]


def _timm_update(model: nn.Module) -> Call:
    from timm.optim import Lamb
    from timm.utils import ModelEmaV3

    optimizer = Lamb(param_groups(model, WEIGHT_DECAY), lr=LR, weight_decay=0.0)
    ema = ModelEmaV3(model, decay=DECAY)

    def update() -> None:
        optimizer.step()
        ema.update(model, step=UPDATE)

    return update


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    add_options(parser).set_defaults(dtype="float32")
    options = parser.parse_args(arguments)
    if options.dtype != "float32":
        raise UserError(f"--dtype {options.dtype}: LAMB's parameters are float32; leave it out")
    device = torch.device(options.device)
    run_cases(
        "optimizer",
        {"model": options.model},
        lambda: {
            f"LAMB + EMA, {options.model}": make_case(options.model, device, options.no_compile)
        },
        options,
    )


if __name__ == "__main__":
    run_command(main)

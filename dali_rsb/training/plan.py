"""What a run would be on so many devices: batches, memory, hours. Needs neither them nor a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dali_rsb import config as cfg
from dali_rsb.draws.order import epoch_length
from dali_rsb.errors import UserError
from dali_rsb.models import check_input_sizes, create_model
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import device_batch
from dali_rsb.training.datasets import open_training

IMAGENET_IMAGES = 1_281_167
# Published rates of an H100 without compilation: 8,000 images a second of ResNet-50 at 160 px in
# 16 bits, which take 12.6 GFLOP each, forward and backward.
ASSUMED_TFLOPS = 100.0
# Tensors as large as the weights in float32 that an optimizer keeps beside them.
_MOMENTS = {"sgd": 1, "lamb": 2, "adamw": 2}


def describe_plan(config: cfg.Config, world_size: int, img_per_s: float | None = None) -> str:
    """Lines on a run of `world_size` processes, one device each.

    Args:
        img_per_s: measured speed of one device; None to assume that of an H100.

    Raises:
        UserError: `device_batch` and `open_training` say what cannot be.
    """
    if world_size < 1:
        raise UserError(f"--world-size {world_size}: give a number of processes of at least 1")
    if img_per_s is not None and not 0 < img_per_s < float("inf"):
        raise UserError(f"--img-per-s {img_per_s}: give images per second, above 0")
    kind = "cpu" if config.run.device == "cpu" else "cuda"
    everyone = Processes(torch.device(kind), world_size=world_size)
    batch = device_batch(config, everyone)
    accumulation = config.optimizer.batch_size // (batch * world_size)
    is_known = config.data.digits is not None or config.data.train is not None
    images = len(open_training(config.data)) if is_known else IMAGENET_IMAGES
    updates = epoch_length(images, config.augment.repeats) // config.optimizer.batch_size
    epochs, size = config.schedule.epochs, config.augment.size
    is_half = config.run.amp != "none" and kind == "cuda"
    state, activations, flops = _cost(config, size, is_half)
    total = updates * config.optimizer.batch_size * epochs
    if img_per_s is None:
        rate = ASSUMED_TFLOPS * 1e12 / flops
        source = f"assumed of a device that reaches {ASSUMED_TFLOPS:g} TFLOP/s"
    else:
        rate, source = img_per_s, "as given"
    memory_gib = (state + activations * batch) / 2**30
    return "\n".join(
        [
            f"images   {images:,}{'' if is_known else ' (data.train is not set: ImageNet)'}",
            f"batches  {config.optimizer.batch_size} = {batch} per device x {world_size} device(s) "
            f"x {accumulation} accumulation; {updates:,} updates an epoch, "
            f"{updates * epochs:,} in {epochs} epochs",
            f"memory   about {memory_gib:.1f} GiB a device: {state / 2**30:.2f} of weights, "
            f"gradients, moments and EMA, {activations / 2**20:.1f} MiB of activations an image; "
            "workspaces and DALI come on top",
            f"time     about {total / (rate * world_size) / 3600:.2f} h of training at "
            f"{rate:,.0f} img/s a device ({source}), if all scales; evaluations come on top",
        ]
    )


def _cost(config: cfg.Config, size: int, is_half: bool) -> tuple[float, float, float]:
    """Bytes of a model's state; bytes of activations and FLOP of a training step for one image."""
    with torch.device("meta"):
        model: nn.Module = create_model(
            config.model.name,
            config.model.num_classes,
            config.model.drop_path,
            config.model.dropout,
        )
        images = torch.zeros(2, 3, size, size)
    check_input_sizes(model, config.model.name, {"augment.size": size})
    saved: dict[int, int] = {}
    own = {id(parameter) for parameter in model.parameters()}
    kept: list[Tensor] = []  # so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            kept.append(base)
            saved[id(base)] = base.nbytes
        return tensor

    model.train()
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    copies = 2 + _MOMENTS.get(config.optimizer.name, 2) + (config.ema.decay is not None)
    activations = sum(saved.values()) / len(images) / (2 if is_half else 1)
    return weights * copies, activations, 3 * counter.get_total_flops() / len(images)

"""What a run says of itself: what it is, how much memory it takes, why it had to stop."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from dali_rsb.draws.samples import TrainSamples
from dali_rsb.models.precision import Precision
from dali_rsb.run.processes import Processes


def describe_run(
    model_name: str, samples: TrainSamples, precision: Precision, processes: Processes
) -> list[str]:
    """The first lines of a run: model, devices, images and batches."""
    layout, index = samples.layout, samples.index
    num_left = len(index) % layout.global_batch if samples.repeats == 1 else 0
    left = f"; {num_left} images are left over, others each time" if num_left else ""
    return [
        f"{model_name} on {processes.world_size} x {processes.device.type}, "
        f"{str(precision.input_dtype).removeprefix('torch.')}: {len(index):,} images, "
        f"{len(index.classes)} classes",
        f"batch {layout.global_batch} = {layout.batch_per_device} a device x "
        f"{processes.world_size} device(s) x {layout.accumulation} accumulation",
        f"an epoch is {samples.updates_per_epoch} updates{left}",
    ]


def best_lines(top1: float, path: Path, has_ema: bool, val_top1: float | None) -> list[str]:
    """The last lines of a run: its best checkpoint, and whether its EMA was too slow for it.

    Args:
        top1: of the checkpoint, in percent; of the EMA where there is one.
        path: of the checkpoint.
        has_ema: whether there is one.
        val_top1: of the weights themselves at the last evaluation, None where there was none.
    """
    lines = [f"best {'EMA ' * has_ema}top-1 {top1:.2f} %: {path}"]
    if has_ema and val_top1 is not None and val_top1 > top1 + 1:
        lines.append(
            f"without the EMA last.pt has {val_top1:.2f} %: ema.warmup=timm suits so short a run"
        )
    return lines


def replay_command(folder: Path, update: int) -> str:
    """The command that shows the images of an update.

    Args:
        folder: of the run.
        update: number in all, from 1.
    """
    return f"dali-rsb replay {shlex.quote(str(folder))} --update {update}"


def device_memory(device: torch.device) -> str:
    """', X of Y GiB of GPU memory in use' by all programs; nothing on a CPU."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f"; {(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB of GPU memory in use"


def diverged(update: int, checkpoint: Path | None, folder: Path | None) -> str:
    """The loss is no longer a finite number.

    Args:
        update: number in all, from 1, of the first with such a loss.
        checkpoint: the last good one.
        folder: of the run, None on other ranks than the first.
    """
    return (
        f"the loss became inf or NaN in update {update}; lower optimizer.lr or set "
        f"optimizer.clip_grad{_last_good(checkpoint)}{_seen_by(folder, update)}"
    )


def no_number(loss: float, subject: str) -> str:
    """The validation loss is not finite.

    Args:
        subject: what was evaluated, "the weights" or "their EMA".
    """
    return (
        f"the validation loss of {subject} is {loss}: their outputs are not finite on every image; "
        "if that lasts, lower optimizer.lr or set optimizer.clip_grad"
    )


def stuck(
    num_updates: int,
    updates_done: int,
    limit: int,
    checkpoint: Path | None,
    folder: Path | None,
) -> str:
    """The last `num_updates` were all skipped; `limit` is run.max_skipped_steps.

    For the others see `diverged`.
    """
    return (
        f"the last {num_updates} updates before update {updates_done} had inf or NaN in their "
        "gradients and were skipped; lower optimizer.lr, set optimizer.clip_grad, or raise "
        f"run.max_skipped_steps={limit}{_last_good(checkpoint)}"
        f"{_seen_by(folder, updates_done - num_updates + 1, 'images of the first')}"
    )


def _last_good(checkpoint: Path | None) -> str:
    return "" if checkpoint is None else f"; the last good checkpoint is {checkpoint}"


def _seen_by(folder: Path | None, update: int, what: str = "its images") -> str:
    """How to see the images of an update, after a message."""
    return "" if folder is None else f"; {what}: {replay_command(folder, update)}"

"""The graph for a transform on a device; the one place that knows where CPU and GPU differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from nvidia.dali import Pipeline

from dali_rsb.draws.samples import TrainTransform
from dali_rsb.loader.cpu_resize import CpuResize
from pipelines import eval_pipeline, train_pipeline
from pipelines.inputs import ImageSource

IMAGENET_FILL = (124, 116, 104)  # timm's: 255 x the ImageNet mean, rounded


def train_graph(
    transform: TrainTransform,
    *,
    batch_size: int,
    num_threads: int,
    device: torch.device,
    prefetch: int,
    fill: tuple[int, int, int] = IMAGENET_FILL,
    hw_decoder_load: float = 0.65,
    source: ImageSource = "path",
) -> Callable[[], Pipeline]:
    """Return what builds the training graph of a transform; see `pipelines.train_pipeline`."""
    on_gpu = device.type == "cuda"

    def build() -> Pipeline:
        return train_pipeline(
            size_px=transform.size_px,
            batch_size=batch_size,
            num_threads=num_threads,
            device_id=device_id(device),
            prefetch=prefetch,
            decode_mode=transform.decode_mode,
            hw_decoder_load=hw_decoder_load,
            randaugment_layers=transform.randaugment_layers,
            fill=fill,
            host_resize=None if on_gpu else CpuResize(transform.size_px, num_threads),
            source=source,
        )

    return build


def eval_graph(
    size_px: int,
    interpolation: str,
    *,
    batch_size: int,
    num_threads: int,
    device: torch.device,
    prefetch: int = 2,
    hw_decoder_load: float = 0.65,
    source: ImageSource = "path",
) -> Callable[[], Pipeline]:
    """Return what builds the evaluation graph; see `pipelines.eval_pipeline`."""
    return partial(
        eval_pipeline,
        size_px=size_px,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id(device),
        prefetch=prefetch,
        interpolation=interpolation,
        hw_decoder_load=hw_decoder_load,
        source=source,
    )


def device_id(device: torch.device) -> int | None:
    """The GPU's number, or None for a CPU: how DALI's pipelines take it."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index

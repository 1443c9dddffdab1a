"""The settings of a loader that depend on the machine; none changes which images come, or their
draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from dali_rsb.loader.executor import Division, default_pipelines
from dali_rsb.system.cpus import threads_per_process
from pipelines.types import HW_DECODER_LOAD, DecodeMode, Decoder

# How images are decoded for a GPU. "host": the crop window, by the CPUs. "full": the whole image,
# by the GPU. "hybrid": a share of each batch as "full", the rest as "host". "roi": the crop window,
# by the GPU. Without a GPU, all but "full" decode the window.
DecodeSetting = Literal["host", "full", "hybrid", "roi"]

# An iteration of the CPU pipeline costs milliseconds for each layer of RandAugment before the first
# image, and interrupts PyTorch's threads, which wait for each other. Few long iterations serve
# small images best: on the quickstart (32 px, 2 cores) training keeps 94 % of the model's own rate
# with iterations of 256 images and 98 % with 1,024. With large images more would only take memory.
PIXELS_PER_CPU_RUN = 256 * 160**2
MAX_IMAGES_PER_CPU_RUN = 1024


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of a loader; the names are those of the configuration's section `data`.

    Attributes:
        threads: CPU threads of all pipelines together.
        prefetch: iterations in flight, in all pipelines together.
        pipelines: equal pipelines that serve round-robin.
        batches_per_run: batches that share one iteration of a pipeline.
        decode: by whom, and the crop window alone or the whole image.
        hw_decoder_load: share of the images that the GPU decodes for its JPEG engine; hybrid:
            share of all images that the GPU decodes.
    """

    threads: int
    prefetch: int = 3
    pipelines: int = 1
    batches_per_run: int = 1
    decode: DecodeSetting = "host"
    hw_decoder_load: float = HW_DECODER_LOAD

    @classmethod
    def untuned(
        cls,
        device: torch.device,
        threads: int,
        prefetch: int = 3,
        hw_decoder_load: float = HW_DECODER_LOAD,
        decode: DecodeSetting = "host",
    ) -> LoaderSettings:
        """Settings for a device where nobody has measured: its default number of pipelines."""
        pipelines = default_pipelines(device, threads)
        return cls(threads, prefetch, pipelines, decode=decode, hw_decoder_load=hw_decoder_load)

    def decode_mode(self, device: torch.device) -> DecodeMode:
        """Which part of an image is decoded, where copies do not share it."""
        if self.decode == "full" or (self.decode == "hybrid" and device.type == "cuda"):
            return self.decode
        return "roi"

    @property
    def decoder(self) -> Decoder:
        """Who decodes for a GPU what is not shared out between both."""
        return "gpu" if self.decode in ("full", "roi") else "host"

    @property
    def division(self) -> Division:
        """The share of each pipeline; no more pipelines than threads."""
        return Division(self.threads, self.prefetch, min(self.pipelines, self.threads))


def default_settings(
    device: torch.device, local_world_size: int, batch_per_device: int, size_px: int
) -> LoaderSettings:
    """The settings of a training loader where nobody has tuned.

    Args:
        local_world_size: processes that share this machine's CPUs.
        size_px: side of the images.
    """
    settings = LoaderSettings.untuned(device, threads_per_process(local_world_size))
    if device.type == "cuda":
        return settings
    return replace(settings, batches_per_run=_batches_per_cpu_run(batch_per_device, size_px))


def _batches_per_cpu_run(batch_per_device: int, size_px: int) -> int:
    images = min(MAX_IMAGES_PER_CPU_RUN, PIXELS_PER_CPU_RUN // size_px**2)
    return max(1, images // batch_per_device)

"""Loaders with their DALI pipelines; the one place that knows where those of CPU and GPU differ."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from nvidia.dali import Pipeline

from dali_rsb.dataset.raw.reading import WindowReader
from dali_rsb.draws.samples import EvalSamples, TrainSamples
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.compiling import compile_kernels
from dali_rsb.loader.cpu_resize import CpuResize
from dali_rsb.loader.decoding import check_decode, nvimgcodec_version
from dali_rsb.loader.loader import Loader, Samples, device_id
from dali_rsb.loader.settings import LoaderSettings
from pipelines import EvalArguments, TrainArguments, eval_pipeline, train_pipeline
from pipelines.types import IMAGENET_FILL


def train_loader(
    samples: TrainSamples,
    settings: LoaderSettings,
    device: torch.device,
    bad_images: BadImages,
    fill: tuple[int, int, int] = IMAGENET_FILL,
) -> Loader:
    """The loader of some training samples.

    Args:
        settings: `samples.transform` says which part of an image is decoded; these say by whom.
        device: where images are decoded and augmented, and where batches are.
        bad_images: what to do about images that cannot be decoded; loaders may share it.
        fill: colour that geometric operations bring in.

    Raises:
        UserError: images cannot be decoded as `settings` say.
    """
    compile_kernels(samples.transform, device)
    arguments = TrainArguments(
        size_px=samples.transform.size_px,
        batch_size=samples.layout.batch_per_device * settings.batches_per_run,
        num_threads=settings.division.threads_each,
        device_id=device_id(device),
        prefetch=settings.division.prefetch_each,
        decoder=settings.decoder,
        hw_decoder_load=settings.hw_decoder_load,
        source=samples.index.image_source,
        decode_mode=samples.transform.decode_mode,
        randaugment_layers=samples.transform.randaugment_layers,
        fill=fill,
    )
    build = partial(_build_training, arguments, settings.threads)
    if samples.index.store.has_raw:
        # A CPU pipeline reads where it resizes, into memory that stays in the core's cache.
        arguments = replace(arguments, raw="places" if arguments.device == "cpu" else "pixels")
        build = partial(_build_training, arguments, settings.threads)
    reader = WindowReader(settings.threads) if arguments.raw == "pixels" else None
    return _loader(samples, build, settings, device, bad_images, fill, reader)


def eval_loader(
    samples: EvalSamples,
    settings: LoaderSettings,
    device: torch.device,
    bad_images: BadImages,
    interpolation: str = "bicubic",
) -> Loader:
    """The loader of some evaluation samples; for the arguments see `train_loader`."""
    arguments = EvalArguments(
        size_px=samples.geometry.size_px,
        batch_size=samples.layout.batch_per_device * settings.batches_per_run,
        num_threads=settings.division.threads_each,
        device_id=device_id(device),
        prefetch=settings.division.prefetch_each,
        decoder=settings.decoder,
        hw_decoder_load=settings.hw_decoder_load,
        source=samples.index.image_source,
        interpolation=interpolation,
    )
    return _loader(samples, partial(eval_pipeline, arguments), settings, device, bad_images)


def _build_training(arguments: TrainArguments, num_threads: int) -> Pipeline:
    if arguments.device == "cpu":
        # For each pipeline its own: the threads of the resize end with it. As many as all pipelines
        # have together, since the others may be doing something else: on 2 cores a tenth more
        # images per second of tiled packs, a third more of pixels.
        resize = CpuResize(arguments.size_px, num_threads)
        arguments = replace(arguments, host_resize=resize)
    return train_pipeline(arguments)


def _loader(
    samples: Samples,
    build: Callable[[], Pipeline],
    settings: LoaderSettings,
    device: torch.device,
    bad_images: BadImages,
    fill: tuple[int, int, int] = IMAGENET_FILL,
    reader: WindowReader | None = None,
) -> Loader:
    check_decode(settings.decode, device, nvimgcodec_version())
    # Errors alone. For each image that a decoder of the GPU hands to the CPU, nvImageCodec would
    # warn on several lines; `describe_decoding` says once that there may be some. Read with each
    # pipeline.
    os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "1")
    return Loader(
        samples,
        build,
        device,
        settings.division.prefetch_each,
        bad_images,
        settings.batches_per_run,
        settings.division.pipelines,
        fill,
        decodes_on_gpu=settings.decode != "host",
        reader=reader,
    )

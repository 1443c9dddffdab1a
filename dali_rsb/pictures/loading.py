"""Loads the training images of a configuration on a CPU, as one of its sessions did."""

from __future__ import annotations

from dataclasses import replace

import torch

from dali_rsb import config as cfg
from dali_rsb.draws.randaugment import fill_color
from dali_rsb.draws.samples import RandAugmentBy, TrainSamples
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import train_loader
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings
from dali_rsb.run.processes import Processes
from dali_rsb.run.sessions import Session
from dali_rsb.system.cpus import threads_per_process
from dali_rsb.training.assembly import train_samples
from dali_rsb.training.datasets import open_training

CPU = torch.device("cpu")


def open_samples(config: cfg.Config, session: Session) -> TrainSamples:
    """The training epochs of a run's first process.

    Args:
        config: for a CPU.
        session: of the run; says how many processes and which batches.

    Raises:
        UserError: the images cannot be opened.
    """
    index = open_training(config.data)
    processes = Processes(CPU, world_size=session.world_size)
    samples = train_samples(config, index, processes, session.batch_per_device, _settings(config))
    # All kernels, and their definition in PyTorch, have the same pixels; DALI's differ.
    by: RandAugmentBy = "kernels" if session.by_kernels else "pipeline"
    return replace(samples, transform=replace(samples.transform, randaugment_by=by))


def open_loader(config: cfg.Config, samples: TrainSamples, bad_images: BadImages) -> Loader:
    """The loader of `open_samples`."""
    fill = fill_color(config.data.mean)
    return train_loader(samples, _settings(config), CPU, bad_images, fill)


def open_bad_images(config: cfg.Config, samples: TrainSamples) -> BadImages:
    """The replacements of the run's bad images. Those of few updates may be any share of them.

    Where a bad image was to stop the run, what would have stood in for it is shown.
    """
    return BadImages(samples.index, "substitute", 1.0, config.data.max_pixels)


def _settings(config: cfg.Config) -> LoaderSettings:
    threads = min(config.data.threads or threads_per_process(1), threads_per_process(1))
    decode: DecodeSetting = "full" if config.data.decode == "full" else "host"
    return LoaderSettings.untuned(CPU, threads, prefetch=2, decode=decode)

"""Builds the parts of a run from its configuration: datasets, loaders, precision, model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dali_rsb import config as cfg
from dali_rsb.constants import PAIR_BLOCK
from dali_rsb.dataset import DatasetIndex, check_same_classes, open_index
from dali_rsb.dataset.digits import write_digits
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import BatchLayout, EvalLayout, plan_batches
from dali_rsb.draws.randaugment import RandAugmentPolicy, fill_color
from dali_rsb.draws.samples import EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import eval_graph, train_graph
from dali_rsb.loader.executor import Division
from dali_rsb.loader.loader import Loader
from dali_rsb.models import create_model
from dali_rsb.run.checkpoint import load_into, load_weights
from dali_rsb.run.processes import Processes
from dali_rsb.tuning.settings import default_settings, loader_settings
from pipelines.decoding import DecodeMode

logger = logging.getLogger(__name__)

# Device batches where run.batch_per_device is not given. RSB trained ResNet-50 at 224 px with 512
# a card in 32 GB and at 160 px with 512 in 16 GB, so 256 fits any card from 16 GB on.
DEFAULT_BATCH_GPU = 256
DEFAULT_BATCH_CPU = 64


@dataclass(frozen=True)
class Datasets:
    """Training and validation images, with the same classes."""

    train: DatasetIndex
    val: DatasetIndex


def open_datasets(config: cfg.Config, processes: Processes) -> Datasets:
    """Open (or scan) the two folders, shards or lists; rank 0 scans while the others wait.

    Raises:
        UserError: a folder is missing, empty or not in ImageNet's layout, or the class counts and
            model.num_classes disagree.
    """
    with processes.first_goes_ahead():
        train = open_index(_folder(config.data, "train"), config.data.index)
        val = open_index(_folder(config.data, "val"), config.data.index)
    check_same_classes(train, val)
    check_num_classes(train, config.model.num_classes)
    return Datasets(train, val)


def open_training(config: cfg.Config) -> DatasetIndex:
    """Open the training folder alone.

    Raises:
        UserError: the folder is missing, empty or not in ImageNet's layout.
    """
    return open_index(_folder(config.data, "train"), config.data.index)


def open_validation(config: cfg.Config) -> DatasetIndex:
    """Open the validation folder alone.

    Raises:
        UserError: as `open_datasets`.
    """
    index = open_index(_folder(config.data, "val"), config.data.index)
    check_num_classes(index, config.model.num_classes)
    return index


def check_num_classes(index: DatasetIndex, num_classes: int) -> None:
    """Raises UserError where the folder's classes are not as many as the model's."""
    if len(index.classes) != num_classes:
        raise UserError(
            f"{index.origin} has {len(index.classes)} classes, but "
            f"model.num_classes={num_classes}; set model.num_classes={len(index.classes)}"
        )


def _folder(data: cfg.Data, split: Literal["train", "val"]) -> Path:
    if data.digits is not None:
        train, val = write_digits(data.digits)
        return train if split == "train" else val
    folder = data.train if split == "train" else data.val
    if folder is None:
        raise UserError(
            f"data.{split} is not set; give the folder (or list) of images, data.{split}=PATH"
        )
    return folder


def device_batch(config: cfg.Config, processes: Processes) -> int:
    """Images of one micro-batch on one device.

    Raises:
        UserError: no device batch makes the global batch on so many processes.
    """
    on_gpu = processes.device.type == "cuda"
    return plan_batches(
        config.optimizer.batch_size,
        processes.world_size,
        config.run.batch_per_device,
        DEFAULT_BATCH_GPU if on_gpu else DEFAULT_BATCH_CPU,
        multiple_of=PAIR_BLOCK if config.mixes else 1,
    )


def decodes_once_for_all_copies(config: cfg.Config, processes: Processes) -> bool:
    """Whether copies of an image meet in one batch, so that `data.decode` has no say."""
    augment = config.augment
    return augment.repeats > 1 and (augment.copies == "together" or processes.world_size == 1)


def train_samples(
    config: cfg.Config, index: DatasetIndex, processes: Processes, batch_per_device: int
) -> TrainSamples:
    """The training epochs of this process.

    Raises:
        UserError: an epoch is shorter than one global batch.
    """
    augment, mixing = config.augment, config.mixing
    policy = None if augment.randaugment is None else RandAugmentPolicy.parse(augment.randaugment)
    decode_mode: DecodeMode = "shared"
    if not decodes_once_for_all_copies(config, processes):
        decode_mode = loader_settings(config, index, processes, batch_per_device).decode
    samples = TrainSamples(
        index=index,
        layout=BatchLayout(
            config.optimizer.batch_size,
            batch_per_device,
            processes.world_size,
            processes.rank,
            # Without copies there is nothing to spread; slices keep the draws' ranges short.
            augment.copies if augment.repeats > 1 else "together",
        ),
        transform=TrainTransform(
            augment.size,
            augment.scale,
            augment.ratio,
            augment.hflip,
            augment.interpolation,
            policy,
            decode_mode,
        ),
        mixing=MixPolicy(
            mixing.mixup,
            mixing.cutmix,
            mixing.prob,
            mixing.switch_prob,
            mixing.mode,
            min(mixing.group_size, config.optimizer.batch_size),
        )
        if config.mixes
        else None,
        mixing_off_epoch=mixing.off_epoch,
        repeats=augment.repeats,
        seed=config.run.seed,
    )
    if samples.updates_per_epoch == 0:
        raise UserError(
            f"{index.origin} has {len(index)} images, fewer than optimizer.batch_size="
            f"{config.optimizer.batch_size}; lower optimizer.batch_size"
        )
    return samples


def train_loader(
    config: cfg.Config,
    samples: TrainSamples,
    processes: Processes,
    bad_images: BadImages | None = None,
) -> Loader:
    """The training graph and its loader; give `bad_images` where several loaders share them."""
    batch = samples.layout.batch_per_device
    settings = loader_settings(config, samples.index, processes, batch)
    division = settings.division
    build = train_graph(
        samples.transform,
        batch_size=batch * settings.batches_per_run,
        num_threads=division.threads_each,
        device=processes.device,
        prefetch=division.prefetch_each,
        fill=fill_color(config.data.mean),
        source=samples.index.image_source,
        hw_decoder_load=settings.hw_decoder_load,
    )
    if bad_images is None:
        data = config.data
        bad_images = BadImages(
            samples.index, data.on_bad_image, data.max_bad_fraction, data.max_pixels
        )
    return Loader(
        samples,
        build,
        processes.device,
        division.prefetch_each,
        bad_images,
        settings.batches_per_run,
        division.pipelines,
    )


def eval_loader(
    config: cfg.Config, index: DatasetIndex, processes: Processes
) -> tuple[EvalSamples, Loader]:
    """The validation images of this process, the evaluation graph and its loader.

    An undecodable validation image is an error whatever `data.on_bad_image` says: a stand-in
    would be counted twice. Tuning says nothing about this graph: a checkpoint has one accuracy,
    before and after.
    """
    settings = config.evaluation
    defaults = default_settings(processes, settings.batch_per_device, settings.size)
    load = config.data.hw_decoder_load
    num_threads = config.data.threads or defaults.threads
    division = Division.by_default(processes.device, num_threads, prefetch=2)
    layout = EvalLayout(len(index), settings.batch_per_device, processes.world_size, processes.rank)
    samples = EvalSamples(index, layout, EvalGeometry(settings.size, settings.crop_ratio))
    build = eval_graph(
        settings.size,
        settings.interpolation,
        batch_size=settings.batch_per_device,
        num_threads=division.threads_each,
        device=processes.device,
        prefetch=division.prefetch_each,
        hw_decoder_load=defaults.hw_decoder_load if load is None else load,
        source=index.image_source,
    )
    loader = Loader(
        samples,
        build,
        processes.device,
        division.prefetch_each,
        BadImages(index, "raise", max_pixels=config.data.max_pixels),
        pipelines=division.pipelines,
    )
    return samples, loader


def build_model(config: cfg.Model, device: torch.device) -> nn.Module:
    """The model on its device, channels-last, with its initial weights.

    Raises:
        UserError: unknown model, or `model.weights` does not fit it.
    """
    model = create_model(config.name, config.num_classes, config.drop_path, config.dropout)
    if config.weights is not None:
        load_into(model, load_weights(config.weights), config.weights)
    # Module.to knows memory_format, its type stub does not.
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

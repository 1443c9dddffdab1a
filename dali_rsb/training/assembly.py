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
from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import BatchLayout, EvalLayout, plan_batches
from dali_rsb.draws.randaugment import RandAugmentPolicy, fill_color
from dali_rsb.draws.samples import EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.loader import builders
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.executor import default_pipelines
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.models import create_model
from dali_rsb.run.checkpoint import load_into, load_weights
from dali_rsb.run.processes import Processes
from dali_rsb.system.cpus import threads_per_process
from pipelines.types import HW_DECODER_LOAD

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
    config: cfg.Config,
    index: DatasetIndex,
    processes: Processes,
    batch_per_device: int,
    settings: LoaderSettings,
) -> TrainSamples:
    """The training epochs of this process.

    Args:
        settings: say which part of an image is decoded, where copies do not share it.

    Raises:
        UserError: an epoch is shorter than one global batch.
    """
    augment, mixing = config.augment, config.mixing
    policy = None if augment.randaugment is None else RandAugmentPolicy.parse(augment.randaugment)
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
            "shared" if decodes_once_for_all_copies(config, processes) else settings.decode,
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
        erasing=ErasingPolicy(augment.random_erasing, augment.erase_mode, augment.erase_count)
        if augment.random_erasing > 0
        else None,
    )
    if samples.updates_per_epoch == 0:
        raise UserError(
            f"{index.origin} has {len(index)} images, fewer than optimizer.batch_size="
            f"{config.optimizer.batch_size}; lower optimizer.batch_size"
        )
    return samples


def train_loader(
    config: cfg.Data,
    samples: TrainSamples,
    settings: LoaderSettings,
    processes: Processes,
    bad_images: BadImages | None = None,
) -> Loader:
    """The training loader; give `bad_images` where several loaders share them."""
    if bad_images is None:
        bad_images = BadImages(samples.index, config.on_bad_image, config.max_bad_fraction)
    fill = fill_color(config.mean)
    return builders.train_loader(samples, settings, processes.device, bad_images, fill)


def eval_loader(
    config: cfg.Config, index: DatasetIndex, processes: Processes
) -> tuple[EvalSamples, Loader]:
    """The validation images of this process and their loader.

    An undecodable validation image is an error whatever `data.on_bad_image` says: a stand-in
    would be counted twice. Tuning says nothing about this loader: a checkpoint has one accuracy,
    before and after.
    """
    evaluation, data, device = config.evaluation, config.data, processes.device
    threads = data.threads or threads_per_process(processes.local_world_size)
    load = HW_DECODER_LOAD if data.hw_decoder_load is None else data.hw_decoder_load
    settings = LoaderSettings(
        threads, prefetch=2, pipelines=default_pipelines(device, threads), hw_decoder_load=load
    )
    samples = EvalSamples(
        index,
        EvalLayout(len(index), evaluation.batch_per_device, processes.world_size, processes.rank),
        EvalGeometry(evaluation.size, evaluation.crop_ratio),
    )
    bad_images = BadImages(index, "raise")
    loader = builders.eval_loader(samples, settings, device, bad_images, evaluation.interpolation)
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

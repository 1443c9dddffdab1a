"""Weights for the commands that take them, and images for those weights, prepared as they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dali_rsb import config as cfg
from dali_rsb.config import override_config
from dali_rsb.dataset import DatasetIndex, Reading, open_index
from dali_rsb.draws.order import epoch_order
from dali_rsb.errors import UserError
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.run.processes import Processes
from dali_rsb.system.names import short_path
from dali_rsb.training.assembly import eval_loader
from dali_rsb.training.datasets import open_validation
from dali_rsb.training.initial_weights import as_described
from dali_rsb.weights.sources import open_weights
from dali_rsb.weights.weights import Preprocessing, Weights

logger = logging.getLogger(__name__)

# Fewer images than these say little about the difference of two models.
MIN_COMPARED = 8


def open_as_asked(source: str, which: str | None) -> Weights:
    """The weights of a source, as `--weights` chooses.

    Args:
        which: "ema", "model", or None for the EMA where there is one.

    Raises:
        UserError: as `open_weights`, or an EMA is asked for where there is none.
    """
    weights = open_weights(source, ema=which != "model")
    if which == "ema" and weights.kind != "EMA":
        raise UserError(f"{source} has no EMA; leave out --weights ema")
    return weights


def default_preprocessing() -> Preprocessing:
    """That of a source that names none: the defaults of a configuration."""
    data, of = cfg.Data(), cfg.Evaluation()
    return Preprocessing(data.mean, data.std, of.size, of.crop_ratio, of.interpolation)


def config_of(weights: Weights) -> cfg.Config:
    """The configuration of the run that weights come from, with their own preprocessing.

    Weights of other sources have no run, and get the defaults.
    """
    config = override_config(weights.run.get("config") or {"name": "weights"})
    of = weights.preprocessing
    return config if of is None else as_described(config, of)


def images_to_compare(weights: Weights, folder: Path | None, count: int) -> tuple[Tensor, str]:
    """Some images by which two forms of a model are compared, and what they are in words.

    They are the folder's, else those of the run's validation set, else, where there is none, noise.

    Args:
        weights: with their preprocessing.
        folder: a dataset, or None.
        count: of the images; fewer if there are fewer, but at least 8.

    Returns:
        float32 [count, 3, H, W] in [0, 1]; not normalised.

    Raises:
        UserError: the folder is no dataset, holds fewer than 8 images, or one cannot be decoded.
    """
    config = config_of(weights)
    if folder is not None:
        given = open_index(folder, config.data.index, reading=_any_classes(config.data))
        if len(given) < MIN_COMPARED:
            raise UserError(
                f"--images {folder} holds {len(given)} images; give at least {MIN_COMPARED}"
            )
        return _some_of(config, given, count)
    index, reason = _validation_of_run(config, weights)
    if index is not None:
        return _some_of(config, index, count)
    logger.warning("compared on synthetic images: %s; give real ones by --images FOLDER", reason)
    size = config.evaluation.size
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise, f"{count} synthetic images (noise)"


def image_batches(
    config: cfg.Config, index: DatasetIndex, num_images: int, processes: Processes
) -> Iterator[Tensor]:
    """Normalised batches of images chosen at random, all of one size, without augmentation.

    Args:
        config: says the preprocessing and, as evaluation.batch_per_device, the size of a batch.
        num_images: rounded down to whole batches, unless there are fewer than one.

    Returns:
        Yields float32 [B, 3, H, W] on the device.

    Raises:
        UserError: too many images cannot be decoded.
    """
    num_images = min(num_images, len(index))
    batch = min(config.evaluation.batch_per_device, num_images)
    # Stored images stand class by class, and a batch's statistics are to be those of all classes.
    order = epoch_order(len(index), config.run.seed, 0)
    chosen = index.select(order[: num_images // batch * batch])
    for images in _decoded(config, chosen, batch, processes, config.data.on_bad_image):
        yield normalize_mix(images, config.data.mean, config.data.std)


def _any_classes(data: cfg.Data) -> Reading:
    """How a folder is read whose labels nobody asks for."""
    return Reading.of(data.class_order, data.class_level, None, data.label_key)


def _validation_of_run(config: cfg.Config, weights: Weights) -> tuple[DatasetIndex | None, str]:
    """The run's validation images, or why there are none."""
    data = config.data
    folder = data.digits or (data.val if data.val_fraction is None else data.train)
    if folder is None or weights.classes is None:
        return None, f"{weights.source} names no validation images"
    if not folder.exists():
        return None, f"the run's validation images are not at {folder}"
    try:
        index = open_validation(data, weights.classes, f"the classes of {weights.source}")
    except UserError as error:
        return None, str(error)
    if len(index) < MIN_COMPARED:
        return None, f"{index.origin} holds only {len(index)} images"
    return index, ""


def _some_of(config: cfg.Config, index: DatasetIndex, count: int) -> tuple[Tensor, str]:
    count = min(count, len(index))
    rows = index.select(epoch_order(len(index), 0, 0)[:count])
    alone = Processes(torch.device("cpu"))
    (images,) = _decoded(config, rows, count, alone, "raise")
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return pixels.contiguous(), f"{count} images of {short_path(index.origin)}"


def _decoded(
    config: cfg.Config,
    index: DatasetIndex,
    batch: int,
    processes: Processes,
    on_bad_image: Literal["substitute", "raise"],
) -> Iterator[Tensor]:
    """uint8 [batch, H, W, 3] each; the index holds whole batches."""
    evaluation = config.evaluation.model_copy(update={"batch_per_device": batch})
    config = config.model_copy(update={"evaluation": evaluation})
    samples, loader = eval_loader(config, index, processes, on_bad_image)
    with closing(loader), closing(loader.batches(samples.specs())) as batches:
        for decoded in batches:
            yield decoded.images

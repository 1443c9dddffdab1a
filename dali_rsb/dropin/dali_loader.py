"""`DaliLoader`: a loader for any PyTorch program, decoding and augmenting by DALI."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS
from dali_rsb.dataset.image_list import (
    ImageList,
    image_list,
    images_of_samples,
    with_unreadable,
    without,
)
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.ordering import ClassOrder
from dali_rsb.dataset.reading import ClassLevel, ClassNames, Reading
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import EpochSampler, SequentialEpochSampler
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import TrainTransform
from dali_rsb.dropin.accelerate import BatchIndices, load
from dali_rsb.dropin.epoch_loader import (
    EpochLoader,
    EvalPreprocessing,
    Output,
    Resources,
    TrainPreprocessing,
    World,
    default_threads,
    resolve_device,
)
from dali_rsb.dropin.foreign import read_dataset
from dali_rsb.errors import UserError
from dali_rsb.kernels.random_erasing import EraseMode
from dali_rsb.loader.bad_images import BadImages, OnBadImage
from dali_rsb.loader.decoding import checked_decode
from dali_rsb.loader.settings import DecodeSetting
from pipelines.types import HW_DECODER_LOAD, INTERPOLATIONS

logger = logging.getLogger(__name__)

# What `DaliLoader` takes; objects of other libraries are read by `foreign.read_dataset`.
Source: TypeAlias = Any


class DaliLoader(EpochLoader):
    """Loads a folder of images the way a torch `DataLoader` over an `ImageFolder` does, by DALI.

    Iterating gives one epoch of `(images, targets)`: images [B, 3, size_px, size_px] of `dtype` on
    `device`, normalised (unless uint8) and, by default, channels-last; targets int64 [B], or
    float32 [B, number of classes] with mixup or CutMix. Both belong to the caller: later batches
    never overwrite them. `len()` is the number of batches of an epoch.

    Args:
        root: folder of class folders (`root/CLASS/IMAGE.jpg`), folder of tar shards or a pattern
            of them, text file with `path<TAB>label` lines (see `dali_rsb.open_index`), an index of
            one of these, torchvision's `ImageFolder` or `DatasetFolder` (its transform is not
            used, its target_transform is), a `Subset` or `ConcatDataset` of them to any depth, or a
            list of (path, label) pairs.
        batch_size: images of one batch of this process; leave it out with `batch_sampler`.
        train: RandomResizedCrop, flip and what is asked for below, in place of resize and centre
            crop; also the default of `shuffle` and `drop_last`.
        size_px: side of the square images.
        shuffle: draw a new order for each epoch; the same for any number of processes.
        sampler: indices of this process, from any torch `Sampler` or other iterable; replaces
            `shuffle`, `repeats` and sharing the images out. `dataset.targets` has the labels.
        batch_sampler: torch's `BatchSampler`; gives sampler, batch size and `drop_last`.
        drop_last: leave out a last batch that is not full.
        scale, ratio: ranges of RandomResizedCrop: share of the area, width / height.
        hflip: probability of mirroring.
        interpolation: "bilinear", "bicubic" or (train only) "random"; default "random" to train
            and "bicubic" to evaluate.
        randaugment: policy in timm's notation, e.g. "rand-m7-mstd0.5-inc1".
        random_erasing: probability of erasing a box.
        erase_mode: fill the box with the mean ("const"), a random colour ("rand") or noise
            ("pixel").
        mixup, cutmix: alphas; above 0 they mix the first image of a batch with the last and so on.
        label_smoothing: of mixed targets.
        repeats: repeated augmentation: an epoch shows 1 / repeats of the images, each so often.
        crop_ratio: evaluation resizes the shorter edge to floor(size_px / crop_ratio).
        resize_px: or to this.
        dtype: of the images; torch.uint8 leaves them as decoded, 0..255.
        mean, std: of the values scaled to [0, 1].
        channels_last: memory format of the images.
        device: default a GPU if there is one.
        num_threads: CPU threads; default this process's share of the CPUs it may use.
        prefetch: batches in flight, at least 2; on a CPU rounded up to an even number.
        decode: who decodes for a GPU: "host", the CPUs, crop windows alone and Pillow's pixels;
            "full", the GPU, whole images; "hybrid", the GPU a share of each batch and the CPUs the
            rest. "roi", the GPU, crop windows, is refused where nvImageCodec cannot do it.
        hw_decoder_load: share of the images for the GPU's JPEG engine, in hybrid for the GPU.
        seed: of order and draws.
        num_replicas, rank: processes that share an epoch; default torch.distributed's, or one. To
            evaluate, they are given equally many images, the first ones twice if need be.
        exclude: files to leave out: paths, absolute or relative to the root (in shards, those of
            the files that were packed, or SHARD:PATH as messages name them), or a text file with
            one in each line.
        on_bad_image: "substitute" puts the next image in the place of one that cannot be decoded
            and warns, "raise" stops; default "substitute" to train and "raise" to evaluate.
        max_bad_fraction: share of images that may be substituted.
        max_pixels: images of more pixels count as bad, whatever their format.
        cache_dir: where to store the dataset's index; see `dali_rsb.open_index`.
        class_order: of the classes and images of a folder, list or shards (a dataset object or an
            index brings its own, here and below): "plain" as ImageFolder,
            "natural" as timm's reader, where 2 stands before 10.
        class_level: which of nested folders names the class: "top" as in ImageFolder, "leaf" (the
            innermost) as in timm. By default nested folders are refused.
        classes: all class names in their order, or a text file with one in each line; classes
            without images are legal then.
        label_key: key of the label in KEY.json of shards, in place of KEY.cls.

    Raises:
        UserError: the images cannot be used, arguments contradict each other, or a policy is
            malformed.
    """

    dataset: ImageList
    prefetch_factor = None  # torch's word for what worker processes do; there are none

    def __init__(
        self,
        root: Source,
        batch_size: int | None = None,
        *,
        train: bool = False,
        size_px: int = 224,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: BatchSampler | None = None,
        drop_last: bool | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        interpolation: str | None = None,
        randaugment: str | None = None,
        random_erasing: float = 0.0,
        erase_mode: EraseMode = "pixel",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        repeats: float | None = None,
        crop_ratio: float = 0.875,
        resize_px: int | None = None,
        dtype: torch.dtype = torch.float32,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        channels_last: bool = True,
        device: str | torch.device | None = None,
        num_threads: int | None = None,
        prefetch: int = 3,
        decode: DecodeSetting = "host",
        hw_decoder_load: float = HW_DECODER_LOAD,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        exclude: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        on_bad_image: OnBadImage | None = None,
        max_bad_fraction: float = 0.001,
        max_pixels: int = MAX_PIXELS,
        cache_dir: Path | None = None,
        class_order: ClassOrder = "plain",
        class_level: ClassLevel | None = None,
        classes: ClassNames | None = None,
        label_key: str | None = None,
    ) -> None:
        if isinstance(sampler, BatchSampler) and batch_size is None and batch_sampler is None:
            sampler, batch_sampler = None, sampler
        if batch_sampler is not None:
            _check(
                (batch_size, sampler, shuffle, drop_last) == (None,) * 4,
                "batch_sampler gives batch_size, sampler, shuffle and drop_last: leave them out",
            )
            sampler, batch_size, drop_last = _parts(batch_sampler)
        _check(
            not isinstance(sampler, BatchSampler),
            "sampler gives batches, not indices: give it as batch_sampler, without batch_size",
        )
        _check(
            isinstance(batch_size, int) and batch_size >= 1,
            f"batch_size={batch_size} must be a whole number of at least 1",
        )
        assert batch_size is not None
        _check(prefetch >= 2, f"prefetch={prefetch} must be at least 2")
        mixes, erases = mixup > 0 or cutmix > 0, random_erasing > 0
        _check(
            train or not (mixes or erases or randaugment or repeats),
            "mixup, cutmix, random_erasing, randaugment and repeats need train=True",
        )
        _check(
            dtype != torch.uint8 or not (mixes or erases),
            "mixup, cutmix and random_erasing need normalised images: give a floating dtype",
        )
        _check(
            sampler is None or shuffle is None, "give either sampler or shuffle, as to a DataLoader"
        )
        interpolation = interpolation or ("random" if train else "bicubic")
        names = [*INTERPOLATIONS, "random"] if train else [*INTERPOLATIONS]
        _check(interpolation in names, f"interpolation={interpolation!r} is not one of {names}")

        reading = Reading.of(class_order, class_level, classes, label_key)
        images = without(_images(root, cache_dir, reading), exclude)
        if sampler is not None and not exclude:
            images = with_unreadable(images, reading.class_order)
        current = World.current()
        world = World(
            current.size if num_replicas is None else num_replicas,
            current.rank if rank is None else rank,
        )
        preprocessing: TrainPreprocessing | EvalPreprocessing
        if train:
            preprocessing = TrainPreprocessing(
                TrainTransform(
                    size_px,
                    scale,
                    ratio,
                    hflip,
                    interpolation,
                    None if randaugment is None else RandAugmentPolicy.parse(randaugment),
                    "shared" if (repeats or 1) > world.size else "roi",
                ),
                MixPolicy(mixup, cutmix, partners="ends") if mixes else None,
                ErasingPolicy(random_erasing, erase_mode) if erases else None,
                len(images.classes),
                label_smoothing,
            )
        else:
            if resize_px is not None:
                crop_ratio = size_px / (resize_px + 0.5)  # which rounds down to resize_px
            preprocessing = EvalPreprocessing(EvalGeometry(size_px, crop_ratio), interpolation)
        if sampler is None:
            shuffle = train if shuffle is None else shuffle
            sampler = (EpochSampler if shuffle else SequentialEpochSampler)(
                len(images),
                shuffle=shuffle,
                repeats=repeats,
                seed=seed,
                num_replicas=world.size,
                rank=world.rank,
            )
        super().__init__(
            images,
            batch_size,
            sampler,
            train if drop_last is None else drop_last,
            preprocessing,
            Output(dtype, mean, std, channels_last),
            Resources(
                resolve_device(device),
                num_threads or default_threads(),
                prefetch,
                hw_decoder_load,
                checked_decode(decode),
            ),
            BadImages(
                images.index,
                on_bad_image or ("substitute" if train else "raise"),
                max_bad_fraction,
                max_pixels,
            ),
            seed,
            world,
        )

        logger.debug("%r", self)

    @property
    def num_workers(self) -> int:
        """0: there are no worker processes, for programs that would start as many."""
        return 0

    @property
    def collate_fn(self) -> Callable[[BatchIndices], tuple[Tensor, Tensor]]:
        """Makes a batch of `batch_sampler` into tensors, for a `DataLoader` over `dataset`."""
        return load

    def __repr__(self) -> str:
        kind = "training" if isinstance(self._preprocessing, TrainPreprocessing) else "evaluation"
        sampler = type(self.sampler).__name__
        if isinstance(self.sampler, EpochSampler):
            sampler = f"shuffle={self.sampler.shuffle}"
            if self.sampler.shuffle and "lightning" in sys.modules:
                # Its only words about a loader that is no DataLoader are this text.
                sampler += " (Lightning's overfit_batches needs shuffle=False)"
        return (
            f"DaliLoader({self._images.index.origin}: {len(self._images)} images, "
            f"{len(self._images.classes)} classes, {kind}, batch_size={self.batch_size}, "
            f"{sampler}, decoded by DALI on {self.device})"
        )

    def __enter__(self) -> DaliLoader:
        return self


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise UserError(message)


def _images(source: Source, cache_dir: Path | None, reading: Reading) -> ImageList:
    if isinstance(source, (str, os.PathLike, DatasetIndex)):
        return image_list(source, cache_dir, reading)
    found = read_dataset(source)
    return images_of_samples(
        found.paths, found.labels, found.classes, found.root, cache_dir, found.reading
    )


def _parts(batch_sampler: object) -> tuple[Iterable[int], int, bool]:
    """Sampler, batch size and `drop_last` of torch's `BatchSampler`."""
    if type(batch_sampler) is not BatchSampler:
        raise UserError(
            f"batch_sampler is a {type(batch_sampler).__name__}, whose batches may be of any size; "
            "give torch's BatchSampler, or sampler and batch_size"
        )
    return batch_sampler.sampler, batch_sampler.batch_size, batch_sampler.drop_last

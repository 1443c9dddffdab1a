"""Other loaders, each set up as its own documentation or training script sets it up, in the variant
that suits it best here. All deliver what ours does: uint8 batches on the device, a CPU or a GPU;
DALI's stock classification graph alone goes on to normalise."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import BatchCounts, NotInstalledError
from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.draws.randaugment import FULL_MAGNITUDE, RandAugmentPolicy
from pipelines.types import HW_DECODER_LOAD

# DALI and torchvision count magnitudes in 31 bins, of which the last is timm's magnitude 10.
LAST_MAGNITUDE_BIN = 30


@dataclass(frozen=True)
class LoaderTask:
    """What all candidates are given.

    Attributes:
        data: folder of class folders.
        batch: images of one batch.
        size_px: side of the square images.
        randaugment: timm's policy string, or None for RandomResizedCrop and flip alone.
        num_threads: threads or worker processes, as many as CPUs.
        device: "cpu" or "cuda", where batches shall be.
        hw_decoder_load: share of images for the GPU's JPEG engine.
    """

    data: Path
    batch: int
    size_px: int
    randaugment: str | None
    num_threads: int
    device: str = "cpu"
    hw_decoder_load: float = HW_DECODER_LOAD

    @property
    def device_id(self) -> int | None:
        """The GPU, or None: as DALI's pipelines take it."""
        return None if self.device == "cpu" else 0


def count_images(
    batches: Iterable[Tensor], task: LoaderTask, is_normalised: bool = False
) -> BatchCounts:
    """Yield each batch's number of images once it is on the device, after a look at what it is.

    Raises:
        AssertionError: not uint8 (floating, if normalised) [batch, size, size, 3] or
            [batch, 3, size, size].
    """
    size_px = task.size_px
    for batch in batches:
        images = batch.to(task.device, non_blocking=True)
        assert images.is_floating_point() == is_normalised, images.dtype
        assert is_normalised or images.dtype.itemsize == 1, images.dtype
        assert tuple(images.shape[1:]) in {(size_px, size_px, 3), (3, size_px, size_px)}
        assert len(images) == task.batch
        if task.device != "cpu":
            torch.cuda.synchronize()
        yield len(images)


def timm_loader(task: LoaderTask) -> BatchCounts:
    """timm's `create_loader` with one PIL worker per CPU.

    The batches are taken before `PrefetchLoader` normalises them, which timm leaves to the GPU,
    and `use_multi_epochs_loader` keeps the workers busy from one epoch to the next.
    """
    try:
        from timm.data import create_dataset, create_loader
    except ImportError as error:
        raise NotInstalledError("timm is not installed") from error

    loader = create_loader(
        create_dataset("", root=str(task.data)),
        input_size=task.size_px,
        batch_size=task.batch,
        is_training=True,
        color_jitter=0.0,
        auto_augment=task.randaugment,
        interpolation="random",
        num_workers=task.num_threads,
        pin_memory=task.device != "cpu",
        device=torch.device("cpu"),
        use_multi_epochs_loader=True,
    ).loader
    epochs: Iterator[tuple[Tensor, Tensor]] = itertools.chain.from_iterable(
        itertools.repeat(loader)
    )
    return count_images((images for images, _ in epochs), task)


def dali_loader(task: LoaderTask, num_operations: int | None = None) -> BatchCounts:
    """DALI's classification graph with DALI's own `rand_augment`.

    Args:
        num_operations: RandAugment operations per image, by default as many as the policy has
            layers. DALI applies each of them always, timm's policies with a probability of 0.5.
    """
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.auto_aug.rand_augment import rand_augment
    from nvidia.dali.data_node import DataNode
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    files, labels = files_and_labels(task.data)

    @pipeline_def(
        batch_size=task.batch,
        num_threads=task.num_threads,
        device_id=task.device_id,
        enable_conditionals=True,
    )
    def graph() -> tuple[DataNode, DataNode]:
        encoded, label = fn.readers.file(files=files, labels=labels, random_shuffle=True)
        images = _dali_random_crop(encoded, task)
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        if task.randaugment is not None:
            policy = RandAugmentPolicy.parse(task.randaugment)
            images = rand_augment(
                images,
                n=num_operations or policy.num_layers,
                m=_magnitude_bin(policy),
                shape=(task.size_px, task.size_px),
                monotonic_mag=policy.increasing,
            )
        return images, label

    with without_dalis_own_deprecations():
        pipeline = graph()
    batches = DALIGenericIterator([pipeline], ["images", "labels"], size=-1)
    return count_images((outputs[0]["images"] for outputs in batches), task)


@contextlib.contextmanager
def without_dalis_own_deprecations() -> Iterator[None]:
    """Leave out DALI's warnings of operators that its own `rand_augment` takes by their old names.

    Nothing that whoever runs a benchmark can change; any other warning is shown.
    """
    with warnings.catch_warnings():  # which puts `showwarning` back
        show = warnings.showwarning

        def show_others(message: Warning | str, *details: Any, **options: Any) -> None:
            if not _OLD_NAME.match(str(message)):
                show(message, *details, **options)

        # Not a filter: DALI shows its deprecations whatever the filters say.
        warnings.showwarning = show_others
        yield


_OLD_NAME = re.compile(
    r"WARNING: `nvidia\.dali\.fn\.experimental\.(filter|equalize)` is now deprecated"
)


def dali_stock_loader(task: LoaderTask) -> BatchCounts:
    """DALI's stock classification graph, as its ResNet-50 examples have it: no RandAugment.

    Reader, `decoders.image_random_crop`, resize, `crop_mirror_normalize`: its batches are
    normalised and NCHW (float16 on a GPU), one step further than the other candidates'.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.data_node import DataNode
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    files, labels = files_and_labels(task.data)

    @pipeline_def(
        batch_size=task.batch,
        num_threads=task.num_threads,
        device_id=task.device_id,
    )
    def graph() -> tuple[DataNode, DataNode]:
        encoded, label = fn.readers.file(files=files, labels=labels, random_shuffle=True)
        images = fn.crop_mirror_normalize(
            _dali_random_crop(encoded, task),
            dtype=types.FLOAT if task.device == "cpu" else types.FLOAT16,
            output_layout="CHW",
            mean=[255 * value for value in IMAGENET_MEAN],
            std=[255 * value for value in IMAGENET_STD],
            mirror=fn.random.coin_flip(),
        )
        return images, label

    batches = DALIGenericIterator([graph()], ["images", "labels"], size=-1)
    return count_images((outputs[0]["images"] for outputs in batches), task, is_normalised=True)


def _dali_random_crop(encoded: Any, task: LoaderTask) -> Any:
    """Decode a random window and resize it: DALI's RandomResizedCrop."""
    from nvidia.dali import fn, types

    on_gpu = task.device != "cpu"
    options: dict[str, Any] = {"hw_decoder_load": task.hw_decoder_load} if on_gpu else {}
    images = fn.decoders.image_random_crop(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        random_aspect_ratio=[3 / 4, 4 / 3],
        random_area=[0.08, 1.0],
        **options,
    )
    return fn.resize(images, size=[task.size_px, task.size_px])


def torchvision_loader(task: LoaderTask, draws_filter: bool = False) -> BatchCounts:
    """torch's `DataLoader` on `ImageFolder` with torchvision's v2 transforms on PIL images.

    Its RandAugment, too, applies every operation always.

    Args:
        draws_filter: resize by bilinear or bicubic, drawn for each image as timm does, and not by
            bilinear alone.
    """
    try:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import InterpolationMode, v2
    except ImportError as error:
        raise NotInstalledError("torchvision is not installed") from error
    from torch.utils.data import DataLoader, RandomSampler

    filters = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC][: 1 + draws_filter]
    crops = [v2.RandomResizedCrop(task.size_px, interpolation=each) for each in filters]
    transforms = [v2.RandomChoice(crops), v2.RandomHorizontalFlip()]
    if task.randaugment is not None:
        policy = RandAugmentPolicy.parse(task.randaugment)
        transforms.append(v2.RandAugment(policy.num_layers, _magnitude_bin(policy)))
    transform = v2.Compose([*transforms, v2.PILToTensor()])
    # A stored index beside the classes is an empty class to torchvision.
    dataset = ImageFolder(str(task.data), transform, allow_empty=True)
    loader = DataLoader(
        dataset,
        batch_size=task.batch,
        sampler=RandomSampler(dataset, num_samples=10**9),  # epochs without a pause between them
        num_workers=task.num_threads,
        pin_memory=task.device != "cpu",
        drop_last=True,
    )
    return count_images((images for images, _ in loader), task)


def ffcv_loader(
    task: LoaderTask,
    share_raw: float = 0.0,
    max_side_px: int | None = None,
    file: Callable[[], Path] | None = None,
) -> BatchCounts:
    """FFCV's loader on FFCV's file: RandomResizedCrop and flip, as it has no RandAugment.

    Its file holds images that it encoded again (quality 90, as in its settings for ImageNet). Each
    is decoded whole, then cropped and resized by OpenCV's area filter.

    Args:
        share_raw: share of the images that the file holds as pixels, not as JPEGs. FFCV's settings
            for ImageNet have one half, and no side above 500 px.
        max_side_px: images are made smaller whose longer side is above it.
        file: gives the file, if there is one already; else it is written to a temporary folder.
    """
    try:
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, ToDevice, ToTensor
    except ImportError as error:
        raise NotInstalledError("FFCV is not installed") from error
    from benchmarks.peer_formats import write_ffcv

    device = [] if task.device == "cpu" else [ToDevice(torch.device(task.device))]
    size_px = (task.size_px, task.size_px)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.beton" if file is None else file()
        if file is None:
            write_ffcv(task.data, path, max_side_px, share_raw)
        loader = Loader(
            str(path),
            batch_size=task.batch,
            num_workers=task.num_threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=np.tile(np.arange(_num_images(path)), 50),  # hardly a pause between epochs
            drop_last=True,
            pipelines={
                "image": [
                    RandomResizedCropRGBImageDecoder(size_px),
                    RandomHorizontalFlip(),
                    ToTensor(),
                    *device,
                ],
                "label": [IntDecoder(), ToTensor()],
            },
        )
        epochs: Iterator[tuple[Tensor, ...]] = itertools.chain.from_iterable(
            itertools.repeat(loader)
        )
        yield from count_images((batch[0] for batch in epochs), task)


def _num_images(file: Path) -> int:
    from ffcv.reader import Reader

    return int(Reader(str(file)).num_samples)


def _magnitude_bin(policy: RandAugmentPolicy) -> int:
    return round(policy.magnitude / FULL_MAGNITUDE * LAST_MAGNITUDE_BIN)


def files_and_labels(root: Path) -> tuple[list[str], list[int]]:
    classes = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [(str(path), label) for label, name in enumerate(classes) for path in name.iterdir()]
    found.sort()
    return [path for path, _ in found], [label for _, label in found]

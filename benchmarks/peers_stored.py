"""Loaders that bring a storage format or threads of their own, and leave the pixels to others.

Each takes timm's transforms or torchvision's on tensors (see `peers_pixels`), and delivers uint8
batches. Their packages are imported when they start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.peers import LoaderTask, count_images, files_and_labels
from benchmarks.peers_pixels import Pixels, Transform, image_transform, stack_images
from benchmarks.report import BatchCounts, NotInstalledError
from dali_rsb.draws.crops import CROP_UNIFORMS, random_resized_crop

ENDLESS = 10**9  # images: an epoch without an end, so that none has a pause behind it
_SHUFFLE_BUFFER = 1000  # WebDataset's own examples


class _Files(Dataset[tuple[Tensor, int]]):
    def __init__(self, root: Path, transform: Transform) -> None:
        self._paths, self._labels = files_and_labels(root)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self._transform(Path(self._paths[i]).read_bytes()), self._labels[i]


def tensor_loader(task: LoaderTask, draws_filter: bool = True) -> BatchCounts:
    """torch's `DataLoader` with torchvision's `decode_image` and v2 transforms on tensors.

    The tensors' resize has a kernel for uint8, so nothing is converted on the way.
    """
    dataset = _Files(task.data, image_transform(task, "tensors", draws_filter))
    loader = DataLoader(
        dataset,
        task.batch,
        sampler=RandomSampler(dataset, num_samples=ENDLESS),
        num_workers=task.num_threads,
        collate_fn=stack_images,
        drop_last=True,
    )
    return count_images((images for images, _ in loader), task)


def webdataset_loader(
    task: LoaderTask, pixels: Pixels = "timm", draws_filter: bool = True
) -> BatchCounts:
    """WebDataset on tar shards: batches are made in the workers, as its documentation advises.

    Shards are drawn again and again (`resampled`), its advice for training, and samples shuffled
    in a buffer of 1,000.
    """
    try:
        import webdataset
    except ImportError as error:
        raise NotInstalledError(f"WebDataset is not installed: {error}") from error

    transform = image_transform(task, pixels, draws_filter)
    shards = sorted(str(path) for path in task.data.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, resampled=True, shardshuffle=True)
        .shuffle(_SHUFFLE_BUFFER)
        .map(partial(_of_shard, transform))
        .batched(task.batch, collation_fn=stack_images, partial=False)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=task.num_threads)
    return count_images((images for images, _ in loader), task)


def _of_shard(transform: Transform, sample: dict[str, Any]) -> tuple[Tensor, int]:
    encoded = next(data for key, data in sample.items() if key in _IMAGE_ENDINGS)
    return transform(encoded), int(sample.get("cls", b"0"))


_IMAGE_ENDINGS = ("jpeg", "jpg", "png", "webp")


def streaming_loader(
    task: LoaderTask, pixels: Pixels = "timm", draws_filter: bool = True
) -> BatchCounts:
    """MosaicML Streaming on local MDS shards, in its own `StreamingDataLoader`.

    An epoch is 100 times the dataset, drawn by the library (`epoch_size`): between two epochs it
    starts its workers again.
    """
    try:
        from streaming import StreamingDataLoader, StreamingDataset
    except ImportError as error:
        raise NotInstalledError(f"MosaicML Streaming is not installed: {error}") from error

    num_images = StreamingDataset(local=str(task.data), batch_size=task.batch).num_samples
    dataset = StreamingDataset(
        local=str(task.data), shuffle=True, batch_size=task.batch, epoch_size=100 * num_images
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=task.batch,
        num_workers=task.num_threads,
        collate_fn=partial(_of_records, image_transform(task, pixels, draws_filter)),
        drop_last=True,
    )
    return count_images((images for images, _ in _epochs(loader)), task)


def _of_records(transform: Transform, records: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    # In the workers. A dataset of a class of its own would have to be importable by them.
    return stack_images([(transform(record["image"]), record["label"]) for record in records])


def litdata_loader(
    task: LoaderTask, pixels: Pixels = "timm", draws_filter: bool = True
) -> BatchCounts:
    """LitData on local chunks, in its own `StreamingDataLoader`, whose workers stay."""
    try:
        from litdata import StreamingDataLoader, StreamingDataset
    except ImportError as error:
        raise NotInstalledError(f"LitData is not installed: {error}") from error

    dataset = StreamingDataset(
        str(task.data),
        shuffle=True,
        drop_last=True,
        transform=partial(_of_chunk, image_transform(task, pixels, draws_filter)),
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=task.batch,
        num_workers=task.num_threads,
        collate_fn=stack_images,
        drop_last=True,
        persistent_workers=True,
    )
    whole = (images for images, _ in _epochs(loader) if len(images) == task.batch)
    return count_images(whole, task)


def _of_chunk(transform: Transform, sample: dict[str, Any]) -> tuple[Tensor, int]:
    return transform(sample["image"]), sample["label"]


def _epochs(loader: Iterable[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def spdl_loader(task: LoaderTask, pixels: Pixels | Literal["libav"] = "timm") -> BatchCounts:
    """SPDL's pipeline of threads; each makes whole batches, so that they exchange little.

    Args:
        pixels: "libav" has FFmpeg decode, crop and scale, SPDL's own way, where an image never
            comes to Python; its windows are drawn by this project's code, which is vectorised.
    """
    try:
        from spdl.pipeline import PipelineBuilder
    except ImportError as error:
        raise NotInstalledError(f"SPDL is not installed: {error}") from error

    load = _libav_batch(task) if pixels == "libav" else _python_batch(task, pixels)
    pipeline = (
        PipelineBuilder()
        .add_source(_random_paths(task))
        .pipe(load, concurrency=task.num_threads)
        .add_sink(2)
        .build(num_threads=task.num_threads, max_failures=0)
    )
    with pipeline.auto_stop():
        yield from count_images(pipeline.get_iterator(), task)


def _random_paths(task: LoaderTask) -> Iterator[list[str]]:
    """Names of the files of batches, epoch after epoch."""
    paths, _ = files_and_labels(task.data)
    rng = np.random.default_rng(0)
    order = (paths[i] for _ in itertools.count() for i in rng.permutation(len(paths)))
    while True:
        yield list(itertools.islice(order, task.batch))


def _python_batch(task: LoaderTask, pixels: Pixels) -> Any:
    transform = image_transform(task, pixels)
    torch.set_num_threads(1)  # the pipeline's threads are those of the task

    def load(paths: list[str]) -> Tensor:
        return torch.stack([transform(Path(path).read_bytes()) for path in paths])

    return load


def _libav_batch(task: LoaderTask) -> Any:
    import spdl.io

    if task.randaugment is not None:
        raise NotInstalledError("FFmpeg's filters have no RandAugment")

    def load(paths: list[str]) -> Tensor:
        packets = [spdl.io.demux_image(path) for path in paths]
        widths, heights = (np.array([getattr(p, k) for p in packets]) for k in ("width", "height"))
        numbers = np.random.default_rng().random((len(paths), CROP_UNIFORMS + 1))
        windows = random_resized_crop(
            widths, heights, numbers[:, :CROP_UNIFORMS], (0.08, 1.0), (3 / 4, 4 / 3)
        )
        frames = []
        for row, packet in enumerate(packets):
            crop = f"crop={windows.width[row]}:{windows.height[row]}"
            crop += f":{windows.left[row]}:{windows.top[row]}"
            scale = f"scale={task.size_px}:{task.size_px}:flags=bilinear"
            flip = ",hflip" if numbers[row, -1] < 0.5 else ""
            graph = f"{crop},{scale}{flip},format=pix_fmts=rgb24"
            frames.append(spdl.io.decode_packets(packet, filter_desc=graph))
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    return load

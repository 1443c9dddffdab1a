"""Epochs of (images, targets) over any stream of indices: what `DaliLoader` and timm's
`create_loader` have in common."""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nvidia.dali import Pipeline
from torch import Tensor
from torch.utils.data import BatchSampler

from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.dataset.image_list import ImageList
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import SEED_STRIDE, BatchLayout, EpochSampler, EvalLayout
from dali_rsb.draws.randaugment import fill_color
from dali_rsb.draws.samples import BatchSpec, EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.kernels.random_erasing import erase
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import eval_graph, train_graph
from dali_rsb.loader.executor import Division
from dali_rsb.loader.loader import Batch, Loader
from dali_rsb.system.cpus import threads_per_process
from dali_rsb.training.losses import dense_target
from pipelines.inputs import ImageSource

Batches = Generator[tuple[Tensor, Tensor], None, None]


@dataclass(frozen=True)
class Training:
    """What a training loader does to images. With `mixing`, targets are rows of `num_classes`."""

    transform: TrainTransform
    mixing: MixPolicy | None = None
    erasing: ErasingPolicy | None = None
    num_classes: int = 0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation loader does to images."""

    geometry: EvalGeometry
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class Output:
    """What images leave a loader as; uint8 ones are not normalised."""

    dtype: torch.dtype = torch.float32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels_last: bool = True


@dataclass(frozen=True)
class Resources:
    """What a loader works with: see the arguments of `DaliLoader`."""

    device: torch.device
    num_threads: int
    prefetch: int = 3
    hw_decoder_load: float = 0.65

    @property
    def division(self) -> Division:
        """How threads and batches under way are divided among pipelines."""
        return Division.by_default(self.device, self.num_threads, self.prefetch)


@dataclass(frozen=True)
class Placement:
    """This process among those that share an epoch."""

    num_replicas: int = 1
    rank: int = 0

    @classmethod
    def current(cls) -> Placement:
        """From torch.distributed if it is initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_world_size(), dist.get_rank())
        return cls()


class EpochLoader:
    """Epochs of (images, targets) batches over any stream of indices: what all loaders share.

    Each `iter()` gives an iterator of its own: stopping early is safe, and several may be alive at
    once. An epoch begins with its first batch. Epochs count up by themselves; `set_epoch` chooses
    the next one.

    Args:
        images: what indices mean.
        batch_size: images of one batch of this process.
        sampler: indices of this process for one epoch. Those with a length are read when an epoch
            begins, with torch's random numbers seeded by (seed, epoch); others as they are needed.
        drop_last: leave out a last batch that is not full.
        process: what is done to the images.
        output: what the images are returned as.
        resources: device and threads.
        bad_images: what to do about images that cannot be decoded.
        seed: of all draws, 0 <= seed < 2**63.
        placement: this process among all; sharing indices out is the sampler's work.

    Raises:
        UserError: there is not one batch.
    """

    def __init__(
        self,
        images: ImageList,
        batch_size: int,
        sampler: Iterable[int],
        drop_last: bool,
        process: Training | Evaluation,
        output: Output,
        resources: Resources,
        bad_images: BadImages,
        seed: int,
        placement: Placement,
    ) -> None:
        self.dataset: Any = images
        self.batch_size = batch_size
        self.sampler: Any = sampler
        self.drop_last = drop_last
        self._images = images
        self._process = process
        self._output = output
        self._resources = resources
        self._bad_images = bad_images
        self._seed = seed
        self._placement = placement
        self._next_epoch = 0
        self._resume_at: tuple[int, int] | None = None
        self._position: tuple[int, int] | None = None  # of the pass that was last advanced
        self._sampler_state: dict[str, Any] = {}  # at the beginning of that pass
        self._idle: list[Loader] = []
        self._passes: weakref.WeakSet[Batches] = weakref.WeakSet()
        if isinstance(sampler, Sized) and len(self) == 0:
            raise UserError(
                f"{len(sampler)} images make no batch of batch_size={batch_size}; lower batch_size"
            )

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self._resources.device

    @property
    def batch_sampler(self) -> BatchSampler:
        """The sampler's indices in batches."""
        return BatchSampler(self.sampler, self.batch_size, self.drop_last)

    @property
    def num_workers(self) -> int:
        """CPU threads that decode and augment."""
        return self._resources.num_threads

    def __len__(self) -> int:
        """Batches of an epoch; a TypeError where the sampler has no length."""
        num_indices = len(self.sampler)
        if self.drop_last:
            return num_indices // self.batch_size
        return -(-num_indices // self.batch_size)

    def __iter__(self) -> Batches:
        batches = self._batches()
        self._passes.add(batches)
        return batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass takes: its order, if it is shuffled, and its draws.

        Called on the sampler too, where it has a `set_epoch`.
        """
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, in the middle of an epoch too (torchdata's stateful protocol).

        It counts samples over all processes, so another batch size or number of processes may go
        on from it.
        """
        underway = self._position is not None and not self._is_last(self._position[1])
        epoch, position = (self._position if underway else self._resume_at) or (self._epoch, 0)
        samples = position * self._placement.num_replicas
        state: dict[str, Any] = {"epoch": epoch, "num_samples": samples, "seed": self._seed}
        if isinstance(self.sampler, EpochSampler):
            return state
        return state | (self._sampler_state if underway else _state_of(self.sampler))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass go on from a `state_dict`, with the batch after the last one yielded.

        Raises:
            UserError: the state is that of a loader with another seed.
        """
        if state["seed"] != self._seed:
            raise UserError(
                f"the state is that of a loader with seed {state['seed']}, this one has "
                f"{self._seed}; create the loader with the same seed"
            )
        self.set_epoch(state["epoch"])
        self._position = None
        self._resume_at = (state["epoch"], state["num_samples"] // self._placement.num_replicas)
        if "sampler_epoch" in state:
            self.sampler.set_epoch(state["sampler_epoch"])
        if "sampler_generator" in state:
            self.sampler.generator.set_state(state["sampler_generator"])

    def close(self) -> None:
        """End all passes and free pipelines and threads; the next pass builds them anew."""
        for batches in list(self._passes):
            batches.close()
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> EpochLoader:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _epoch(self) -> int:
        if isinstance(self.sampler, EpochSampler):
            return self.sampler.epoch
        return self._next_epoch

    @_epoch.setter
    def _epoch(self, epoch: int) -> None:
        if isinstance(self.sampler, EpochSampler):
            self.sampler.epoch = epoch
        else:
            self._next_epoch = epoch

    def _is_last(self, position: int) -> bool:
        """Whether no batch follows in the epoch, though the pass may not have been told to end."""
        if not isinstance(self.sampler, Sized):
            return False
        remaining = len(self.sampler) - position
        return remaining < (self.batch_size if self.drop_last else 1)

    @property
    def _mixes(self) -> bool:
        """Whether the next pass mixes, if it can."""
        return True

    def _draw_indices(self, epoch: int) -> np.ndarray | Iterator[int]:
        sampler = self.sampler
        if isinstance(sampler, EpochSampler):
            return sampler.indices()
        self._sampler_state = _state_of(sampler)
        if not isinstance(sampler, Sized):
            return iter(sampler)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPUs' generators too.
            torch.default_generator.manual_seed((self._seed * SEED_STRIDE + epoch) % 2**63)
            return np.fromiter(self.sampler, np.int64)

    def _batches(self) -> Batches:
        """Yield the next epoch's batches.

        Which one that is comes out when its first batch is asked for, not at `iter()`: Lightning
        calls `iter()` first and `set_epoch()` then.
        """
        epoch = self._epoch
        resume_at, self._resume_at = self._resume_at, None
        first = resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0
        indices = self._draw_indices(epoch)
        self._epoch = epoch + 1

        loader = self._idle.pop() if self._idle else self._new_loader()
        mixes = self._mixes
        specs, same_specs = itertools.tee(self._specs(epoch, first, indices))
        position = first
        try:
            with contextlib.closing(loader.batches(specs)) as decoded:
                for batch, spec in zip(decoded, same_specs, strict=True):
                    position += len(spec.indices)
                    self._position = (epoch, position)
                    yield self._finish(batch, spec, mixes)
        except GeneratorExit:
            self._keep(loader)
            raise
        except BaseException:
            # Ctrl-C may have come between DALI's giving a batch out and our taking it.
            loader.close()
            raise
        self._keep(loader)
        self._position = None

    def _specs(
        self, epoch: int, first: int, indices: np.ndarray | Iterator[int]
    ) -> Iterator[BatchSpec]:
        replicas, rank = self._placement.num_replicas, self._placement.rank
        start = first
        for chunk in _chunks(indices, first, self.batch_size):
            if self.drop_last and len(chunk) < self.batch_size:
                return
            end = start + len(chunk)
            positions = range(start * replicas + rank, end * replicas, replicas)
            yield BatchSpec(self._images.rows[chunk], len(chunk), epoch, positions)
            start = end

    def _finish(self, batch: Batch, spec: BatchSpec, mixes: bool) -> tuple[Tensor, Tensor]:
        """Normalise, mix and erase; and make the targets."""
        process, output = self._process, self._output
        if output.dtype == torch.uint8:
            images = batch.images.permute(0, 3, 1, 2)
        else:
            mixing = batch.mixing if mixes else None
            images = normalize_mix(
                batch.images,
                output.mean,
                output.std,
                output.dtype,
                None if mixing is None else mixing.partner,
                None if mixing is None else mixing.pixel_lam,
                None if mixing is None else mixing.box,
            )
        if isinstance(process, Training) and process.erasing is not None:
            self._erase(images, process, spec)
        if not output.channels_last:
            images = images.contiguous()
        return images, self._targets(batch, mixes)

    def _erase(self, images: Tensor, process: Training, spec: BatchSpec) -> None:
        assert process.erasing is not None
        size_px = process.transform.size_px
        draws = process.erasing.draw(self._seed, spec.epoch, spec.positions, size_px)
        words = np.random.SeedSequence([self._seed, spec.epoch, spec.positions.start])
        noise_seed = int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))
        erase(images, draws.rows, draws.boxes, process.erasing.mode, noise_seed)

    def _targets(self, batch: Batch, mixes: bool) -> Tensor:
        process, labels = self._process, batch.labels
        if not isinstance(process, Training) or process.mixing is None:
            return labels
        assert batch.mixing is not None
        partner_labels, lam = labels[batch.mixing.partner], batch.mixing.lam
        if not mixes:
            lam = torch.ones_like(lam)
        return dense_target(
            labels, partner_labels, lam, process.num_classes, process.label_smoothing
        )

    def _new_loader(self) -> Loader:
        index, process, resources = self._images.index, self._process, self._resources
        replicas, rank = self._placement.num_replicas, self._placement.rank
        samples: TrainSamples | EvalSamples
        if isinstance(process, Training):
            global_batch = self.batch_size * replicas
            layout = BatchLayout(global_batch, self.batch_size, replicas, rank, "spread")
            samples = TrainSamples(
                index, layout, process.transform, process.mixing, seed=self._seed
            )
        else:
            samples = EvalSamples(index, EvalLayout(len(index), self.batch_size), process.geometry)
        # Nothing that refers to this loader: in a cycle, pipelines would wait for the garbage
        # collector.
        build = _graph(process, resources, self.batch_size, self._output.mean, index.image_source)
        division = resources.division
        return Loader(
            samples,
            build,
            resources.device,
            division.prefetch_each,
            self._bad_images,
            pipelines=division.pipelines,
        )

    def _keep(self, loader: Loader) -> None:
        """Keep one idle pipeline for the next pass."""
        if self._idle:
            loader.close()
        else:
            self._idle.append(loader)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device with its index; a GPU, if there is one, for None.

    Raises:
        UserError: neither a CPU nor a GPU that PyTorch sees.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}, but PyTorch sees no GPU here; give device='cpu'")
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"DALI does not work on device={device}; give 'cuda' or 'cpu'")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def default_threads() -> int:
    """This process's share of the CPUs, among those that torchrun started on this machine."""
    return threads_per_process(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _graph(
    process: Training | Evaluation,
    resources: Resources,
    batch_size: int,
    mean: tuple[float, float, float],
    source: ImageSource,
) -> Callable[[], Pipeline]:
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "num_threads": resources.division.threads_each,
        "device": resources.device,
        "prefetch": resources.division.prefetch_each,
        "hw_decoder_load": resources.hw_decoder_load,
        "source": source,
    }
    if isinstance(process, Training):
        return train_graph(process.transform, fill=fill_color(mean), **options)
    return eval_graph(process.geometry.size_px, process.interpolation, **options)


def _state_of(sampler: Any) -> dict[str, Any]:
    """What a sampler of torch draws its next epoch from: its epoch or its generator."""
    state: dict[str, Any] = {}
    if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
        state["sampler_epoch"] = sampler.epoch
    if getattr(sampler, "generator", None) is not None:
        state["sampler_generator"] = sampler.generator.get_state()
    return state


def _chunks(indices: np.ndarray | Iterator[int], first: int, size: int) -> Iterator[np.ndarray]:
    """Cut a stream, from its `first` index on, into arrays of `size` and a shorter last one."""
    if isinstance(indices, np.ndarray):
        yield from (indices[start : start + size] for start in range(first, len(indices), size))
        return
    indices = itertools.islice(indices, first, None)
    while len(chunk := np.fromiter(itertools.islice(indices, size), np.int64)):
        yield chunk

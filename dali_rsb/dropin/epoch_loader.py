"""Epochs of (images, targets) over any stream of indices: what `DaliLoader` and timm's
`create_loader` have in common."""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
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
from dali_rsb.dropin.accelerate import Batches, BatchPlan, PlannedEpoch, seen_by_accelerate
from dali_rsb.dropin.foreign import checked_indices
from dali_rsb.errors import UserError
from dali_rsb.kernels.targets import dense_target
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.batch import Batch, MixedBatch
from dali_rsb.loader.builders import eval_loader, train_loader
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.rand_augment import with_backend
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings
from dali_rsb.system.cpus import threads_per_process
from pipelines.types import HW_DECODER_LOAD


@dataclass(frozen=True)
class TrainPreprocessing:
    """What a training loader does to images. With `mixing`, targets are rows of `num_classes`."""

    transform: TrainTransform
    mixing: MixPolicy | None = None
    erasing: ErasingPolicy | None = None
    num_classes: int = 0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class EvalPreprocessing:
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
    hw_decoder_load: float = HW_DECODER_LOAD
    decode: DecodeSetting = "host"

    @property
    def settings(self) -> LoaderSettings:
        """The same as settings of the loader, with the default number of pipelines."""
        return LoaderSettings.untuned(
            self.device, self.num_threads, self.prefetch, self.hw_decoder_load, self.decode
        )


@dataclass(frozen=True)
class World:
    """The processes that share an epoch: how many they are, and which one this is."""

    size: int = 1
    rank: int = 0

    @classmethod
    def current(cls) -> World:
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
        preprocessing: what is done to the images.
        output: what the images are returned as.
        resources: device and threads.
        bad_images: what to do about images that cannot be decoded.
        seed: of all draws, 0 <= seed < 2**63.
        world: this process among all; sharing indices out is the sampler's work.

    Raises:
        UserError: there is not one batch.
    """

    def __init__(
        self,
        images: ImageList,
        batch_size: int,
        sampler: Iterable[int],
        drop_last: bool,
        preprocessing: TrainPreprocessing | EvalPreprocessing,
        output: Output,
        resources: Resources,
        bad_images: BadImages,
        seed: int,
        world: World,
    ) -> None:
        self.dataset: Any = images
        self.batch_size = batch_size
        self.sampler: Any = sampler
        self.drop_last = drop_last
        self._images = images
        if isinstance(preprocessing, TrainPreprocessing):
            transform = with_backend(preprocessing.transform, "auto", resources.device)
            if transform.decode_mode != "shared":
                mode = resources.settings.decode_mode(resources.device)
                share = resources.hw_decoder_load
                transform = replace(transform, decode_mode=mode, gpu_share=share)
            preprocessing = replace(preprocessing, transform=transform)
        self._preprocessing = preprocessing
        self._output = output
        self._resources = resources
        self._bad_images = bad_images
        self._seed = seed
        self._world = world
        self._next_epoch = 0
        self._resume_at: tuple[int, int] | None = None
        self._position: tuple[int, int] | None = None  # of the pass that was last advanced
        self._sampler_state: dict[str, Any] = {}  # at the beginning of that pass
        self.end_of_dataloader = False  # with the last batch of a pass; Accelerate reads it
        self.remainder = -1  # no batch is filled up with samples to be taken out again
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
        """The sampler's indices in batches; a `DataLoader` over them loads what this one does."""
        return BatchPlan(self.sampler, self.batch_size, self.drop_last, self._plan)

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
        is_in_epoch = self._position is not None and not self._is_last(self._position[1])
        epoch, position = (self._position if is_in_epoch else self._resume_at) or (self._epoch, 0)
        samples = position * self._world.size
        state: dict[str, Any] = {"epoch": epoch, "num_samples": samples, "seed": self._seed}
        if isinstance(self.sampler, EpochSampler):
            return state
        return state | (self._sampler_state if is_in_epoch else _state_of(self.sampler))

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
        self._resume_at = (state["epoch"], state["num_samples"] // self._world.size)
        if "sampler_epoch" in state:
            self.sampler.set_epoch(state["sampler_epoch"])
        if "sampler_generator" in state:
            self.sampler.generator.set_state(state["sampler_generator"])

    def close(self) -> None:
        """End all passes and free pipelines and threads; the next pass builds them again."""
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
            return self._checked(self.sampler)

    def _checked(self, indices: Iterable[int]) -> np.ndarray:
        return checked_indices(indices, len(self._images), "the sampler")

    def _batches(self) -> Batches:
        """Yield the next epoch's batches.

        The epoch is chosen when its first batch is asked for, not at `iter()`: Lightning calls
        `iter()` first and `set_epoch()` then.
        """
        resume_at, self._resume_at = self._resume_at, None
        epoch, indices = self._next_indices()
        first = resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0
        yield from self._pass(epoch, first, indices)

    def _next_indices(self) -> tuple[int, np.ndarray | Iterator[int]]:
        epoch = self._epoch
        indices = self._draw_indices(epoch)
        self._epoch = epoch + 1
        return epoch, indices

    def _plan(self) -> tuple[np.ndarray | Iterator[int], PlannedEpoch]:
        epoch, indices = self._next_indices()
        if not isinstance(indices, np.ndarray):
            indices = self._checked(indices)

        def begin(first: int) -> Batches:
            batches = self._pass(epoch, first, indices)
            self._passes.add(batches)
            return batches

        return indices, PlannedEpoch(begin)

    def _pass(self, epoch: int, first: int, indices: np.ndarray | Iterator[int]) -> Batches:
        """Yield an epoch's batches from a position on."""
        loader = self._idle.pop() if self._idle else self._new_loader()
        mixes = self._mixes
        specs, same_specs = itertools.tee(self._specs(epoch, first, indices))
        position, upcoming = first, next(same_specs, None)
        try:
            with contextlib.closing(loader.batches(specs)) as decoded, seen_by_accelerate(self):
                for batch in decoded:
                    assert upcoming is not None
                    position += len(upcoming.indices)
                    upcoming = next(same_specs, None)
                    self._position = (epoch, position)
                    self.end_of_dataloader = upcoming is None
                    yield self._finish(batch, mixes)
        except GeneratorExit:
            self._keep(loader)
            raise
        except BaseException:
            # Ctrl-C may have come between DALI's giving a batch out and our taking it.
            loader.close()
            raise
        finally:
            self.end_of_dataloader = False
        self._keep(loader)
        self._position = None

    def _specs(
        self, epoch: int, first: int, indices: np.ndarray | Iterator[int]
    ) -> Iterator[BatchSpec]:
        world_size, rank = self._world.size, self._world.rank
        start = first
        for chunk in _chunks(indices, first, self.batch_size):
            chunk = chunk if isinstance(chunk, np.ndarray) else self._checked(chunk)
            if self.drop_last and len(chunk) < self.batch_size:
                return
            end = start + len(chunk)
            positions = range(start * world_size + rank, end * world_size, world_size)
            yield BatchSpec(self._images.rows[chunk], len(chunk), epoch, positions)
            start = end

    def _finish(self, batch: Batch, mixes: bool) -> tuple[Tensor, Tensor]:
        """Normalise, mix and erase; and make the targets."""
        output = self._output
        if output.dtype == torch.uint8:
            images, targets = batch.images.permute(0, 3, 1, 2), batch.labels
        else:
            if not mixes:
                batch = replace(batch, mixing=None)
            mixed = batch.mixed(output.mean, output.std, output.dtype)
            images, targets = mixed.images, self._targets(mixed)
        if not output.channels_last:
            images = images.contiguous()
        return images, targets

    def _targets(self, mixed: MixedBatch) -> Tensor:
        preprocessing = self._preprocessing
        if not isinstance(preprocessing, TrainPreprocessing) or preprocessing.mixing is None:
            return mixed.labels
        return dense_target(
            mixed.labels,
            mixed.partner_labels,
            mixed.lam,
            preprocessing.num_classes,
            preprocessing.label_smoothing,
        )

    def _new_loader(self) -> Loader:
        index, preprocessing, resources = self._images.index, self._preprocessing, self._resources
        world_size, rank = self._world.size, self._world.rank
        # Nothing that refers to this loader: in a cycle, pipelines would wait for the garbage
        # collector.
        parts = (resources.settings, resources.device, self._bad_images)
        if isinstance(preprocessing, TrainPreprocessing):
            global_batch = self.batch_size * world_size
            train = TrainSamples(
                index,
                BatchLayout(global_batch, self.batch_size, world_size, rank, "spread"),
                preprocessing.transform,
                preprocessing.mixing,
                seed=self._seed,
                erasing=preprocessing.erasing,
            )
            return train_loader(train, *parts, fill=fill_color(self._output.mean))
        share = EvalLayout(len(index), self.batch_size)
        return eval_loader(
            EvalSamples(index, share, preprocessing.geometry), *parts, preprocessing.interpolation
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


def _state_of(sampler: Any) -> dict[str, Any]:
    """What a sampler of torch draws its next epoch from: its epoch or its generator."""
    state: dict[str, Any] = {}
    if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
        state["sampler_epoch"] = sampler.epoch
    if getattr(sampler, "generator", None) is not None:
        state["sampler_generator"] = sampler.generator.get_state()
    return state


def _chunks(
    indices: np.ndarray | Iterator[int], first: int, size: int
) -> Iterator[np.ndarray | list[int]]:
    """Cut a stream, from its `first` index on, into parts of `size` and a shorter last one."""
    if isinstance(indices, np.ndarray):
        yield from (indices[start : start + size] for start in range(first, len(indices), size))
        return
    indices = itertools.islice(indices, first, None)
    while chunk := list(itertools.islice(indices, size)):
        yield chunk

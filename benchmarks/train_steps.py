"""Training steps that are compared: this project's, timm's, and PyTorch's plainest.

All start from the same thing, a uint8 batch on the device with its labels, and do one optimizer
update from one or more micro-batches. Each also shows its parts, to be timed one by one.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from benchmarks.report import NotInstalledError
from dali_rsb.config import Config, override_config
from dali_rsb.draws.mixing import MixDraws, MixPolicy
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.loader.batch import Batch, BatchMixing
from dali_rsb.models.precision import Precision, choose_precision
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_model, build_trainer, device_batch
from dali_rsb.training.trainer import Trainer

# Batches that stand in turn for those of an epoch, so that mixup and CutMix both come.
NUM_BATCHES = 4


class Step(ABC):
    """A training step to be measured; `update` is what training does, the rest its parts."""

    accumulation: int

    @abstractmethod
    def mix(self, batch: Batch) -> Any:
        """Normalise and mix: what the forward pass and the loss take."""

    @abstractmethod
    def loss(self, mixed: Any) -> Tensor:
        """Forward pass and loss, with all that the backward pass needs."""

    @abstractmethod
    def update(self, batches: Iterator[Batch]) -> None:
        """A whole update."""


class OurStep(Step):
    """The trainer's own `TrainStep`, built by `build_trainer` from the configuration."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._step = trainer.step
        self._step.train()
        self.accumulation = trainer.samples.layout.accumulation

    def mix(self, batch: Batch) -> Any:
        val = self._trainer.validation
        return batch.mixed(val.mean, val.std, val.precision.input_dtype)

    def loss(self, mixed: Any) -> Tensor:
        with self._trainer.validation.precision.autocast():
            logits = self._step.model(mixed.images)
            loss: Tensor = self._step.criterion(
                logits, mixed.labels, mixed.partner_labels, mixed.lam
            )
        return loss

    def update(self, batches: Iterator[Batch]) -> None:
        self._trainer.schedule.step(self._step.updates_done)
        self._step.update(batches)


class _PeerStep(Step):
    """What timm's step and the plain one have in common.

    A learning rate of nearly 0 spares a peer the schedule, and costs as much as any other.
    """

    LR = 1e-6

    def __init__(self, config: Config, device: torch.device) -> None:
        processes = Processes(device)
        batch = device_batch(config, processes)
        self.accumulation = config.optimizer.batch_size // batch
        self.precision: Precision = choose_precision(config.run.amp, device)
        self.scaler = GradScaler(device.type, enabled=self.precision.dtype == torch.float16)
        self.model: nn.Module
        self.optimizer: torch.optim.Optimizer

    def autocast(self) -> AbstractContextManager[object]:
        return self.precision.autocast()

    def update(self, batches: Iterator[Batch]) -> None:
        self.update_mixed(map(self.mix, batches))

    def update_mixed(self, mixed: Iterator[Any]) -> None:
        """An update from micro-batches that are normalised and mixed."""
        for _ in range(self.accumulation):
            loss = self.loss(next(mixed)) / self.accumulation
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class TimmStep(_PeerStep):
    """timm's training step with timm's own parts, in its fastest layout, channels-last.

    Model, `Mixup`, loss, `Lamb` (or SGD) and `ModelEmaV3` as timm's train.py puts them together;
    normalisation in float32 as its `PrefetchLoader` does it on the device.

    Raises:
        NotInstalledError: timm is not installed, or has no such model.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        try:
            import timm
            from timm.data import Mixup
            from timm.optim import create_optimizer_v2
            from timm.utils import ModelEmaV3
        except ImportError as error:
            raise NotInstalledError("timm is not installed") from error
        name = config.model.name.removeprefix("timm:")
        if not timm.is_model(name):
            raise NotInstalledError(f"timm has no model {name}")
        model = timm.create_model(
            name,
            num_classes=config.model.num_classes,
            drop_path_rate=config.model.drop_path or None,
            drop_rate=config.model.dropout,
        )
        self.model = model.to(device=device, memory_format=torch.channels_last)
        options = {"betas": config.optimizer.betas, "eps": config.optimizer.eps}
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=_timm_optimizer(config),
            lr=self.LR,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum or 0.9,
            **{key: value for key, value in options.items() if value is not None},
        )
        self.ema = None if config.ema.decay is None else ModelEmaV3(self.model, config.ema.decay)
        self.mixup = Mixup(**timm_mixup_arguments(config)) if config.mixes else None
        self.criterion = _timm_loss(config)
        self._updates = 0
        scaled = [torch.tensor(values) * 255 for values in (config.data.mean, config.data.std)]
        self.mean, self.std = (values.to(device).view(1, 3, 1, 1) for values in scaled)
        if config.run.compile is True:
            self.model.compile()

    def mix(self, batch: Batch) -> Any:
        images = batch.images.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)
        if self.mixup is None:
            return images, batch.labels
        return self.mixup(images, batch.labels)

    def loss(self, mixed: Any) -> Tensor:
        images, target = mixed
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss: Tensor = self.criterion(self.model(images), target)
        return loss

    def update_mixed(self, mixed: Iterator[Any]) -> None:
        super().update_mixed(mixed)
        self._updates += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self._updates)


class PlainStep(_PeerStep):
    """The plainest step: this project's model, cross-entropy, SGD; no mixing, no average."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self.model = build_model(config.model, device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.LR, momentum=0.9)
        self._mean_std = (config.data.mean, config.data.std)

    def mix(self, batch: Batch) -> Any:
        images = normalize_mix(batch.images, *self._mean_std, self.precision.input_dtype)
        return images, batch.labels

    def loss(self, mixed: Any) -> Tensor:
        images, labels = mixed
        with self.autocast():
            return F.cross_entropy(self.model(images), labels)


def timm_mixup_arguments(config: Config) -> dict[str, Any]:
    """The arguments of timm's `Mixup` and `FastCollateMixup` for a configuration."""
    mixing = config.mixing
    return {
        "mixup_alpha": mixing.mixup,
        "cutmix_alpha": mixing.cutmix,
        "prob": mixing.prob,
        "switch_prob": mixing.switch_prob,
        "mode": mixing.mode,
        "label_smoothing": config.loss.smoothing,
        "num_classes": config.model.num_classes,
    }


def _timm_optimizer(config: Config) -> str:
    # timm's "sgd" has Nesterov's momentum.
    plain_sgd = config.optimizer.name == "sgd" and not config.optimizer.nesterov
    return "momentum" if plain_sgd else config.optimizer.name


def _timm_loss(config: Config) -> nn.Module:
    from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    smoothing = config.loss.smoothing
    loss: nn.Module
    if config.loss.name == "bce":
        loss = BinaryCrossEntropy(smoothing, target_threshold=config.loss.target_threshold)
    elif config.mixes:
        loss = SoftTargetCrossEntropy()
    else:
        loss = LabelSmoothingCrossEntropy(smoothing)
    return loss


def synthetic_batches(
    batch: int, size_px: int, num_classes: int, mixing: MixPolicy | None, device: torch.device
) -> list[Batch]:
    """Random uint8 images with random labels and the recipe's mixing, on the device."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(NUM_BATCHES):
        shape = (batch, size_px, size_px, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, num_classes, (batch,), generator=generator)
        mixed = None
        if mixing is not None:
            positions = torch.arange(batch).numpy()
            mixed = _to_device(mixing.draw(0, number, positions, size_px), device)
        batches.append(Batch(images.to(device), labels.to(device), batch, mixed))
    return batches


def _to_device(draws: MixDraws, device: torch.device) -> BatchMixing:
    return BatchMixing(
        *(
            torch.from_numpy(values).to(device)
            for values in (draws.partner, draws.pixel_lam, draws.box, draws.lam)
        )
    )


def write_placeholders(root: Path, num_images: int, num_classes: int) -> None:
    """Class folders with links to one tiny image: a dataset for a trainer that never loads it."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    image = root / "image"
    root.mkdir(parents=True)
    image.write_bytes(buffer.getvalue())
    for number in range(max(num_images, num_classes)):
        folder = root / f"n{number % num_classes:08d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.JPEG").hardlink_to(image)
    image.unlink()


def trainer_without_data(config: Config, device: torch.device, folder: Path) -> Trainer:
    """The trainer of a configuration, on placeholders in `folder`: all but the data is its own.

    Raises:
        UserError: see `build_trainer`.
    """
    tree = config.model_dump(mode="json")
    root = folder / "placeholders"
    write_placeholders(root, max(config.optimizer.batch_size, 256), config.model.num_classes)
    tree["data"] |= {"train": str(root), "val": str(root), "digits": None, "index": None}
    tree["data"] |= {"allow_overlap": True}  # nobody looks at the images
    return build_trainer(override_config(tree), Processes(device))

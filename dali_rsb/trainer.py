"""The training loop: assembles a run and carries it to its end."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dali_rsb.assembly import (
    build_model,
    device_batch,
    eval_loader,
    open_datasets,
    train_loader,
    train_samples,
)
from dali_rsb.checkpoint import load_checkpoint, load_into, save_checkpoint
from dali_rsb.config import Config
from dali_rsb.data.loader import Batch
from dali_rsb.distributed import Processes
from dali_rsb.errors import UserError
from dali_rsb.evaluation import Accuracy, evaluate
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.losses import create_loss
from dali_rsb.metrics import EpochRow, LossMeter, RunLog, WaitTimer
from dali_rsb.optim import CosineSchedule, ModelEma, create_optimizer
from dali_rsb.precision import choose_precision

logger = logging.getLogger(__name__)

# Sections that say what is learnt; a resumed run that changes them is told so.
RECIPE_SECTIONS = ("augment", "mixing", "model", "loss", "optimizer", "schedule", "ema")


class Trainer:
    """One run, from its parts to its last checkpoint.

    Everything that can be wrong with the configuration, the data or the checkpoint is found by
    the constructor, before the run folder exists.

    Args:
        config: the whole configuration.
        processes: this process among the run's.
        resume: checkpoint to go on from.

    Raises:
        UserError: see the parts in `dali_rsb.assembly`.
    """

    def __init__(self, config: Config, processes: Processes, resume: Path | None = None) -> None:
        self.config = config
        self.processes = processes
        device = processes.device
        torch.manual_seed(config.run.seed)
        # Convolutions have fixed shapes: let cuDNN measure its algorithms; float32 parts may
        # use TF32.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")

        datasets = open_datasets(config, processes)
        self.batch_per_device = device_batch(config, processes)
        self.samples = train_samples(config, datasets.train, processes, self.batch_per_device)
        self.loader = train_loader(config, self.samples, processes)
        self.eval_samples, self.eval_loader = eval_loader(config, datasets.val, processes)

        self.precision = choose_precision(config.run.amp, device)
        self.autocast = self.precision.autocast()
        self.scaler = self.precision.scaler()
        self.model = build_model(config.model, device)
        self.criterion = create_loss(
            config.loss.name, config.loss.smoothing, config.loss.target_threshold
        )
        optimizer = config.optimizer
        self.optimizer = create_optimizer(
            self.model,
            optimizer.name,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            betas=optimizer.betas,
            eps=optimizer.eps,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
        )
        self.updates_per_epoch = self.samples.updates_per_epoch
        self.total_updates = config.schedule.epochs * self.updates_per_epoch
        self.schedule = CosineSchedule(
            self.optimizer,
            peak_lr=optimizer.lr,
            total_updates=self.total_updates,
            warmup_updates=round(config.schedule.warmup_epochs * self.updates_per_epoch),
            warmup_lr=config.schedule.warmup_lr,
            min_lr=config.schedule.min_lr,
        )
        self.ema: ModelEma | None = None
        if config.ema.decay is not None:
            self.ema = ModelEma(self.model, config.ema.decay, config.ema.warmup)

        self.updates_done = 0
        self.best_top1 = 0.0
        if resume is not None:
            self._restore(resume)
        self.forward = self._wrap_model()

    def run(self, folder: Path | None) -> None:
        """Train to the end, or until a signal asks to stop.

        Args:
            folder: the run folder, which exists; None on other ranks than the first.

        Raises:
            UserError: the loss is no longer a finite number, or an image cannot be decoded.
            Stopped: a signal asked to stop; the last checkpoint holds all that was done.
        """
        self.folder = folder
        self.run_log = RunLog(folder, first_epoch=self.updates_done // self.updates_per_epoch)
        self._describe()
        try:
            with _stop_requests() as self.stop_request:
                end = min(self.total_updates, self.config.run.max_steps or self.total_updates)
                self.start_s, self.start_updates = time.perf_counter(), self.updates_done
                while self.updates_done < end:
                    self._train_epoch(end)
        finally:
            self.run_log.close()
            self.loader.close()
            self.eval_loader.close()

    def _train_epoch(self, end: int) -> None:
        epoch, first_update = divmod(self.updates_done, self.updates_per_epoch)
        last_update = min(self.updates_per_epoch, end - epoch * self.updates_per_epoch)
        epochs = self.config.schedule.epochs
        log_every, checkpoint_every = self.config.run.log_every, self.config.run.checkpoint_every
        self._start_meters()
        self.run_log.start_epoch(epoch, epochs, first_update, last_update)
        self.model.train()
        batches = self.loader.batches(self.samples.specs(epoch, first_update))
        for update in range(first_update + 1, last_update + 1):
            self._update(epoch, batches)
            self.run_log.advance()
            if update % log_every == 0 or update == last_update:
                self._log_update(epoch, update)
            if self._must_stop(update):
                self._stop(epoch, update)
            if checkpoint_every and update % checkpoint_every == 0 and update < last_update:
                self._save("last.pt")
        batches.close()
        self._finish_epoch(epoch, is_last=self.updates_done == end)

    def _update(self, epoch: int, batches: Iterator[Batch]) -> None:
        """One optimizer update: `accumulation` micro-batches, step, EMA."""
        self.schedule.step(self.updates_done)
        self._seed_model_randomness(epoch)
        accumulation = self.samples.layout.accumulation
        for micro_batch in range(accumulation):
            with self.wait_timer:
                batch = next(batches)
            with self._gradient_exchange(micro_batch == accumulation - 1):
                loss = self._loss(batch) / accumulation
                self.scaler.scale(loss).backward()
            self.loss_meter.add(loss.detach())
        if self.config.optimizer.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates_done += 1
        if self.ema is not None:
            self.ema.update(self.model, self.updates_done)

    def _loss(self, batch: Batch) -> Tensor:
        data, mixing, labels = self.config.data, batch.mixing, batch.labels
        if mixing is None:
            images = normalize_mix(batch.images, data.mean, data.std, self.precision.input_dtype)
            partner_labels, lam = labels, torch.ones_like(labels, dtype=torch.float32)
        else:
            images = normalize_mix(
                batch.images,
                data.mean,
                data.std,
                self.precision.input_dtype,
                mixing.partner,
                mixing.pixel_lam,
                mixing.box,
            )
            partner_labels, lam = labels[mixing.partner], mixing.lam
        with self.autocast:
            return self.criterion(self.forward(images), labels, partner_labels, lam)

    def _gradient_exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once an update, with the last micro-batch."""
        if is_last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def _seed_model_randomness(self, epoch: int) -> None:
        """Make dropout and stochastic depth, like the data, a function of seed and position."""
        entropy = (self.config.run.seed, epoch, self.updates_done, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    # Reporting: the only places where the host waits for the device.

    def _start_meters(self) -> None:
        self.loss_meter = LossMeter(self.processes.device)
        self.wait_timer = WaitTimer(self.processes.device)
        self.epoch_loss, self.epoch_updates = 0.0, 0
        self.epoch_wait_s, self.epoch_s = 0.0, 0.0
        self.interval_start_s = time.perf_counter()

    def _log_update(self, epoch: int, update: int) -> None:
        loss, num_losses = self.loss_meter.read()
        wait_s = self.wait_timer.read()
        now_s = time.perf_counter()
        interval_s, self.interval_start_s = now_s - self.interval_start_s, now_s
        num_updates = num_losses // self.samples.layout.accumulation
        loss = self._mean_over_processes(loss)
        if not np.isfinite(loss):
            raise UserError(self._diverged(num_updates))
        self.epoch_loss += loss
        self.epoch_updates += num_updates
        self.epoch_wait_s += wait_s
        self.epoch_s += interval_s
        spent_s = now_s - self.start_s
        left = (self.total_updates - self.updates_done) / (self.updates_done - self.start_updates)
        self.run_log.log_update(
            {
                "epoch": epoch + 1,
                "num_epochs": self.config.schedule.epochs,
                "update": update,
                "num_updates": self.updates_per_epoch,
                "loss": loss / num_updates,
                "lr": self.optimizer.param_groups[0]["lr"],
                "img_per_s": num_updates * self.config.optimizer.batch_size / interval_s,
                "data_wait": 100 * wait_s / interval_s,
            },
            left_s=spent_s * left,
        )

    def _finish_epoch(self, epoch: int, is_last: bool) -> None:
        """Evaluate, report and save."""
        val, ema = None, None
        if is_last or (epoch + 1) % self.config.evaluation.every == 0:
            val, ema = self._evaluate()
        accuracy = ema or val
        is_best = accuracy is not None and accuracy.top1 >= self.best_top1
        if is_best and accuracy is not None:
            self.best_top1 = accuracy.top1
        row = EpochRow(
            epoch=epoch + 1,
            updates=self.updates_done,
            train_loss=self.epoch_loss / self.epoch_updates,
            lr=self.optimizer.param_groups[0]["lr"],
            img_per_s=self.epoch_updates * self.config.optimizer.batch_size / self.epoch_s,
            data_wait=100 * self.epoch_wait_s / self.epoch_s,
            val_loss=val.loss if val else None,
            val_top1=val.top1 if val else None,
            val_top5=val.top5 if val else None,
            ema_top1=ema.top1 if ema else None,
            ema_top5=ema.top5 if ema else None,
            time_s=time.perf_counter() - self.start_s,
        )
        self.run_log.log_epoch(row, self.config.schedule.epochs)
        self._save("last.pt")
        if is_best:
            self._save("best.pt")

    def _evaluate(self) -> tuple[Accuracy, Accuracy | None]:
        models = [self.model]
        if self.ema is not None:
            models.append(self.ema.module)
        for model in models:
            self.processes.average_buffers(model)
        data = self.config.data
        batches = self.eval_loader.batches(self.eval_samples.specs())
        results = evaluate(models, batches, self.processes, self.precision, data.mean, data.std)
        num_images = len(self.eval_samples.index)
        assert all(result.count == num_images for result in results), (results, num_images)
        return results[0], results[1] if self.ema is not None else None

    # Checkpoints and stopping.

    def _save(self, name: str) -> None:
        if self.folder is None:
            return
        state = {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates_done": self.updates_done,
            "updates_per_epoch": self.updates_per_epoch,
            "best_top1": self.best_top1,
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.samples.index.classes),
        }
        save_checkpoint(self.folder / name, state)

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        saved, own = state["config"], self.config.model_dump(mode="json")
        for key in (("model", "name"), ("model", "num_classes"), ("optimizer", "name")):
            theirs, ours = saved[key[0]][key[1]], own[key[0]][key[1]]
            if theirs != ours:
                raise UserError(
                    f"{path} was trained with {'.'.join(key)}={theirs}, not {ours}; set "
                    f"{'.'.join(key)}={theirs}, or start anew from model.weights={path}"
                )
        load_into(self.model, state["model"], path)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"] or state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best_top1 = state["best_top1"]
        self.updates_done = self._position(path, state)
        for section in RECIPE_SECTIONS:
            for key, value in own[section].items():
                if saved[section].get(key) != value:
                    before = saved[section].get(key)
                    logger.warning("resuming with %s.%s=%s, was %s", section, key, value, before)

    def _position(self, path: Path, state: dict[str, Any]) -> int:
        """Updates done, counted in this run's updates per epoch."""
        epoch, update = divmod(state["updates_done"], state["updates_per_epoch"])
        if state["updates_per_epoch"] == self.updates_per_epoch:
            return int(state["updates_done"])
        if update:
            raise UserError(
                f"{path} stands in the middle of an epoch of {state['updates_per_epoch']} updates, "
                f"this run's have {self.updates_per_epoch}; resume with the same "
                "optimizer.batch_size and images"
            )
        return int(epoch * self.updates_per_epoch)

    def _must_stop(self, update: int) -> bool:
        """Has any process been asked to stop? Several processes compare notes when they log."""
        if self.processes.world_size == 1:
            return self.stop_request.signal is not None
        if update % self.config.run.log_every:
            return False
        asked = torch.tensor(self.stop_request.signal is not None, dtype=torch.int32)
        return bool(self.processes.sum(asked.to(self.processes.device)))

    def _stop(self, epoch: int, update: int) -> None:
        self.run_log.close_bar()
        self._save("last.pt")
        logger.info(
            "asked to stop: saved last.pt after epoch %d, update %d; --resume goes on from there",
            epoch + 1,
            update,
        )
        raise Stopped(self.stop_request.signal or signal.SIGTERM)

    def _diverged(self, num_updates: int) -> str:
        last = None if self.folder is None else self.folder / "last.pt"
        kept = f"; the last good checkpoint is {last}" if last and last.exists() else ""
        return (
            f"the loss became inf or NaN within the {num_updates} updates before update "
            f"{self.updates_done}; lower optimizer.lr or set optimizer.clip_grad{kept}"
        )

    # Parts.

    def _wrap_model(self) -> nn.Module:
        """The model as the training step calls it: compiled, and synchronised over processes."""
        if self.config.run.compile:
            self.model.compile()
        if self.processes.world_size == 1:
            return self.model
        on_gpu = self.processes.device.type == "cuda"
        return DistributedDataParallel(
            self.model,
            device_ids=[self.processes.device.index] if on_gpu else None,
            # Norm statistics stay with their process, and are averaged before an evaluation.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def _mean_over_processes(self, value: float) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.processes.device)
        return float(self.processes.sum(tensor)) / self.processes.world_size

    def _describe(self) -> None:
        layout, index = self.samples.layout, self.samples.index
        logger.info(
            "%s on %d x %s, %s: %s images, %d classes; global batch %d = %d per device x %d "
            "device(s) x %d accumulation; %d updates an epoch",
            self.config.model.name,
            self.processes.world_size,
            self.processes.device.type,
            str(self.precision.input_dtype).removeprefix("torch."),
            f"{len(index):,}",
            len(index.classes),
            layout.global_batch,
            layout.batch_per_device,
            layout.num_processes,
            layout.accumulation,
            self.updates_per_epoch,
        )
        if self.updates_done:
            epoch, update = divmod(self.updates_done, self.updates_per_epoch)
            logger.info("resuming at epoch %d, update %d", epoch + 1, update + 1)


class Stopped(Exception):  # noqa: N818 (an outcome, not an error)
    """The run was asked to stop and has saved its state."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class _StopRequest:
    """The first signal that asked to stop, if one did."""

    signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # asked twice: do not finish the update
        self.signal = number


@contextmanager
def _stop_requests() -> Iterator[_StopRequest]:
    """Note SIGINT, SIGTERM and SIGUSR1 (Slurm's warning) instead of dying of them."""
    request = _StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, request) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

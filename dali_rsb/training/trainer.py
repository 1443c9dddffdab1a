"""The training loop: assembles a run and carries it through its epochs."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch

from dali_rsb.config import Config
from dali_rsb.errors import UserError
from dali_rsb.evaluation.accuracy import Accuracy, evaluate
from dali_rsb.loader.warm_up import warm_up_evaluation, warm_up_training
from dali_rsb.models.precision import choose_precision
from dali_rsb.optim import CosineSchedule, ModelEma, create_optimizer, describe_backend
from dali_rsb.run.checkpoint import load_checkpoint, save_checkpoint
from dali_rsb.run.log import EpochRow, RunLog
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.run.signals import Stopped, stop_requests
from dali_rsb.training.assembly import (
    build_model,
    device_batch,
    eval_loader,
    open_datasets,
    train_loader,
    train_samples,
)
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep
from dali_rsb.tuning.settings import describe_tuned, find_tuned

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
        UserError: see the parts in `dali_rsb.training.assembly`.
    """

    def __init__(self, config: Config, processes: Processes, resume: Path | None = None) -> None:
        self.config = config
        self.processes = processes
        if config.run.cuda_graph and (processes.world_size > 1 or processes.device.type != "cuda"):
            raise UserError(
                "run.cuda_graph=true is for one process on a GPU; set run.cuda_graph=false"
            )
        torch.manual_seed(config.run.seed)
        # Convolutions have fixed shapes: let cuDNN measure its algorithms; float32 parts may
        # use TF32.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")

        datasets = open_datasets(config, processes)
        self.samples = train_samples(
            config, datasets.train, processes, device_batch(config, processes)
        )
        self.loader = train_loader(config, self.samples, processes)
        self.eval_samples, self.eval_loader = eval_loader(config, datasets.val, processes)
        self.precision = choose_precision(config.run.amp, processes.device)
        self.step = self._build_step()

        schedule = config.schedule
        self.updates_per_epoch = self.samples.updates_per_epoch
        total_updates = schedule.epochs * self.updates_per_epoch
        self.last_update = min(total_updates, config.run.max_steps or total_updates)
        self.schedule = CosineSchedule(
            self.step.optimizer,
            peak_lr=config.optimizer.lr,
            total_updates=total_updates,
            warmup_updates=round(schedule.warmup_epochs * self.updates_per_epoch),
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
        )
        self.best_top1 = 0.0
        if resume is not None:
            self._restore(resume)

    def _build_step(self) -> TrainStep:
        config = self.config
        model = build_model(config.model, self.processes.device)
        optimizer = create_optimizer(
            model,
            config.optimizer.name,
            lr=config.optimizer.lr,
            weight_decay=config.optimizer.weight_decay,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            momentum=config.optimizer.momentum,
            nesterov=config.optimizer.nesterov,
            backend=config.optimizer.backend,
        )
        ema = None
        if config.ema.decay is not None:
            ema = ModelEma(model, config.ema.decay, config.ema.warmup)
        return TrainStep(
            model,
            create_loss(config.loss.name, config.loss.smoothing, config.loss.target_threshold),
            optimizer,
            ema,
            self.precision,
            self.processes,
            accumulation=self.samples.layout.accumulation,
            mean=config.data.mean,
            std=config.data.std,
            clip_grad=config.optimizer.clip_grad,
            compile=config.run.compile,
            cuda_graph=config.run.cuda_graph,
            seed=config.run.seed,
        )

    def run(self, folder: Path | None) -> None:
        """Train to the end, or until a signal asks to stop.

        Args:
            folder: the run folder, which exists; None on other ranks than the first.

        Raises:
            UserError: the loss is no longer a finite number, too many updates in a row had inf or
                NaN in their gradients, or an image cannot be decoded.
            Stopped: a signal asked to stop; the last checkpoint holds all that was done.
        """
        self.folder = folder
        epoch, update = divmod(self.step.updates_done, self.updates_per_epoch)
        self.run_log = RunLog(folder, first_epoch=epoch)
        self._describe()
        self.meter = Meter(self.processes, self.config.optimizer.batch_size)
        # One stream for all epochs: the next one's first batches come during an evaluation.
        batches = self.loader.batches(
            self.samples.stream(epoch, self.config.schedule.epochs, update)
        )
        self.batches = self.meter.timed(batches)
        try:
            if self.config.run.warm_up and self.step.updates_done < self.last_update:
                self._warm_up(epoch, update)
            self.start_s, self.start_updates = time.perf_counter(), self.step.updates_done
            with stop_requests() as self.stop_request:
                while self.step.updates_done < self.last_update:
                    self._train_epoch()
                    self._finish_epoch(is_last=self.step.updates_done == self.last_update)
        finally:
            self.run_log.close()
            batches.close()
            self.loader.close()
            self.eval_loader.close()

    def _warm_up(self, epoch: int, update: int) -> None:
        """Reach the graphs' peak memory now, not hours into the run."""
        start_s = time.perf_counter()
        end_epoch = self.config.schedule.epochs
        pixels = warm_up_training(self.loader, self.samples, epoch, end_epoch, update)
        warm_up_evaluation(self.eval_loader, self.eval_samples)
        logger.info(
            "warm-up: the largest batches, up to %.1f megapixels, in %.1f s%s",
            pixels / 1e6,
            time.perf_counter() - start_s,
            self._device_memory(),
        )

    def _device_memory(self) -> str:
        """', X of Y GiB of GPU memory in use' by all programs; nothing on a CPU."""
        if self.processes.device.type != "cuda":
            return ""
        free, total = torch.cuda.mem_get_info(self.processes.device)
        return f"; {(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB of GPU memory in use"

    def _train_epoch(self) -> None:
        """Train to the end of the epoch or of the run."""
        epoch, first_update = divmod(self.step.updates_done, self.updates_per_epoch)
        last_update = min(self.updates_per_epoch, self.last_update - epoch * self.updates_per_epoch)
        run = self.config.run
        self.run_log.start_epoch(epoch, self.config.schedule.epochs, first_update, last_update)
        self.step.model.train()
        self.meter.restart()
        for update in range(first_update + 1, last_update + 1):
            self.schedule.step(self.step.updates_done)
            self.meter.add(self.step.update(self.batches), self.step.skipped)
            self.run_log.advance()
            if update % run.log_every == 0 or update == last_update:
                self._report(epoch, update)
            if self._must_stop(update):
                self._stop(epoch, update)
            is_due = run.checkpoint_every is not None and update % run.checkpoint_every == 0
            if is_due and update < last_update:
                self._save("last.pt")

    def _report(self, epoch: int, update: int) -> None:
        """Write the log line of the updates since the last one; waits for the device."""
        reading = self.meter.read()
        if reading.skipped_in_row >= self.config.run.max_skipped_steps:
            raise UserError(self._stuck(reading.skipped_in_row))
        if not math.isfinite(reading.loss) and reading.skipped < reading.updates:
            raise UserError(self._diverged(reading.updates))
        spent_s = time.perf_counter() - self.start_s
        updates_left = self.last_update - self.step.updates_done
        self.run_log.log_update(
            {
                "epoch": epoch + 1,
                "num_epochs": self.config.schedule.epochs,
                "update": update,
                "num_updates": self.updates_per_epoch,
                "loss": reading.loss,
                "lr": self._lr,
                "img_per_s": reading.img_per_s,
                "data_wait": reading.data_wait,
                **({"skipped": reading.skipped} if reading.skipped else {}),
            },
            left_s=spent_s * updates_left / (self.step.updates_done - self.start_updates),
        )
        is_first = reading.updates == self.step.updates_done - self.start_updates
        if is_first and self.processes.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.processes.device)
            logger.info("PyTorch's peak %.1f GiB%s", peak / 2**30, self._device_memory())

    def _finish_epoch(self, is_last: bool) -> None:
        """Evaluate where it is time to, write the epoch's row, save."""
        epoch = math.ceil(self.step.updates_done / self.updates_per_epoch)
        val, ema = None, None
        if is_last or epoch % self.config.evaluation.every == 0:
            val, ema = self._evaluate()
        reading = self.meter.read_epoch()
        row = EpochRow(
            epoch=epoch,
            updates=self.step.updates_done,
            train_loss=reading.loss,
            lr=self._lr,
            img_per_s=reading.img_per_s,
            data_wait=reading.data_wait,
            skipped=reading.skipped,
            val_loss=val.loss if val else None,
            val_top1=val.top1 if val else None,
            val_top5=val.top5 if val else None,
            ema_top1=ema.top1 if ema else None,
            ema_top5=ema.top5 if ema else None,
            time_s=time.perf_counter() - self.start_s,
        )
        self.run_log.log_epoch(row, self.config.schedule.epochs)
        judged = ema or val
        is_best = judged is not None and judged.top1 >= self.best_top1
        if judged is not None:
            self.best_top1 = max(self.best_top1, judged.top1)
        self._save("last.pt")
        if is_best:
            self._save("best.pt")

    def _evaluate(self) -> tuple[Accuracy, Accuracy | None]:
        """Accuracy of the weights and of their average."""
        models = [self.step.model]
        if self.step.ema is not None:
            models.append(self.step.ema.module)
        for model in models:
            self.processes.average_buffers(model)
        data, num_images = self.config.data, len(self.eval_samples.index)
        batches = self.eval_loader.batches(self.eval_samples.specs())
        results = evaluate(models, batches, self.processes, self.precision, data.mean, data.std)
        assert all(result.count == num_images for result in results), (results, num_images)
        return results[0], results[1] if self.step.ema is not None else None

    def _save(self, name: str) -> None:
        if self.folder is None:
            return
        state = {
            **self.step.state_dict(),
            "updates_done": self.step.updates_done,
            "updates_per_epoch": self.updates_per_epoch,
            "best_top1": self.best_top1,
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.samples.index.classes),
        }
        save_checkpoint(self.folder / name, state)

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        saved, own = state["config"], self.config.model_dump(mode="json")
        for section, key in (("model", "name"), ("model", "num_classes"), ("optimizer", "name")):
            theirs, ours = saved[section][key], own[section][key]
            if theirs != ours:
                raise UserError(
                    f"{path} was trained with {section}.{key}={theirs}, not {ours}; set "
                    f"{section}.{key}={theirs}, or start anew from model.weights={path}"
                )
        self.step.load_state_dict(state, path)
        self.step.updates_done = self._position(path, state)
        self.best_top1 = state["best_top1"]
        for section in RECIPE_SECTIONS:
            for key, value in own[section].items():
                before = saved[section].get(key)
                if before != value:
                    logger.warning("resuming with %s.%s=%s, was %s", section, key, value, before)

    def _position(self, path: Path, state: dict[str, Any]) -> int:
        """Updates done, counted in this run's updates per epoch."""
        epoch, update = divmod(state["updates_done"], state["updates_per_epoch"])
        if update and state["updates_per_epoch"] != self.updates_per_epoch:
            raise UserError(
                f"{path} stands in the middle of an epoch of {state['updates_per_epoch']} updates, "
                f"this run's have {self.updates_per_epoch}; resume with the same "
                "optimizer.batch_size and images"
            )
        return int(epoch * self.updates_per_epoch + update)

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
        return (
            f"the loss became inf or NaN within the {num_updates} updates before update "
            f"{self.step.updates_done}; lower optimizer.lr or set optimizer.clip_grad"
            f"{self._last_good_checkpoint()}"
        )

    def _stuck(self, num_updates: int) -> str:
        return (
            f"the last {num_updates} updates before update {self.step.updates_done} had inf or NaN "
            "in their gradients and were skipped; lower optimizer.lr, set optimizer.clip_grad, or "
            f"raise run.max_skipped_steps={self.config.run.max_skipped_steps}"
            f"{self._last_good_checkpoint()}"
        )

    def _last_good_checkpoint(self) -> str:
        last = None if self.folder is None else self.folder / "last.pt"
        return f"; the last good checkpoint is {last}" if last and last.exists() else ""

    @property
    def _lr(self) -> float:
        return float(self.step.optimizer.param_groups[0]["lr"])

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
            layout.world_size,
            layout.accumulation,
            self.updates_per_epoch,
        )
        backend = describe_backend(self.step.optimizer)
        if backend is not None:
            logger.info(backend)
        tuned = find_tuned(self.config, index, self.processes, layout.batch_per_device)
        if tuned is not None:
            logger.info(describe_tuned(self.config, tuned))
        if self.step.updates_done:
            epoch, update = divmod(self.step.updates_done, self.updates_per_epoch)
            logger.info("resuming at epoch %d, update %d", epoch + 1, update + 1)

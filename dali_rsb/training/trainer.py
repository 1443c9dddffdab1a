"""The training loop: carries the parts of a run through its epochs."""

from __future__ import annotations

import logging
import math
import signal
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dali_rsb.draws.samples import BatchSpec, TrainSamples
from dali_rsb.errors import UserError
from dali_rsb.evaluation.accuracy import Accuracy
from dali_rsb.evaluation.validation import Validation
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.warm_up import warm_up_evaluation, warm_up_training
from dali_rsb.optim import CosineSchedule
from dali_rsb.run.agreement import Agreement
from dali_rsb.run.checkpointer import Checkpointer
from dali_rsb.run.environment import environment, machine
from dali_rsb.run.folder import config_text
from dali_rsb.run.log import RunLog
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.run.records import (
    EpochRow,
    RunInfo,
    SavedCheckpoint,
    TrackingOptions,
    UpdateRow,
)
from dali_rsb.run.sessions import Session, digest_of, record_end, record_start
from dali_rsb.run.signals import Stopped, stop_requests
from dali_rsb.run.trackers import start_trackers
from dali_rsb.training.messages import best_lines, device_memory, diverged, no_number, stuck
from dali_rsb.training.run_state import Progress, run_state
from dali_rsb.training.step import TrainStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerOptions:
    """How long a run is, and what it does between updates.

    Attributes:
        num_epochs: of the schedule.
        max_updates: stop after so many in all; None for the end of the schedule.
        eval_every: epochs between evaluations; the last epoch always has one.
        log_every: updates between reports.
        checkpoint_every: updates between checkpoints within an epoch, or None.
        checkpoint_minutes: minutes between checkpoints within an epoch, or None.
        keep_checkpoints: how many of the last ones stay.
        max_checkpoint_failures: in a row; more stop the run.
        max_skipped_updates: in a row, for inf or NaN in their gradients; more stop the run.
        warm_up: reach DALI's peak memory before the first update.
    """

    num_epochs: int
    max_updates: int | None
    eval_every: int
    log_every: int
    checkpoint_every: int | None
    checkpoint_minutes: float | None
    keep_checkpoints: int
    max_checkpoint_failures: int
    max_skipped_updates: int
    warm_up: bool


class Trainer:
    """One run, from its first update, or where its step stands, to its last checkpoint.

    Args:
        step: makes updates; where it stands is where the run goes on.
        samples: the training epochs of this process.
        loader: loads them.
        schedule: of the step's learning rate.
        validation: evaluates after epochs.
        processes: this process among the run's.
        options: how long, and what happens when.
        config: the whole configuration as plain values, for checkpoints and trackers alone.
        introduction: lines that the log begins with.
        progress: where the run stands, beside its step.
        tracking: the services that take the run's numbers.
    """

    def __init__(
        self,
        step: TrainStep,
        samples: TrainSamples,
        loader: Loader,
        schedule: CosineSchedule,
        validation: Validation,
        processes: Processes,
        options: TrainerOptions,
        config: Mapping[str, Any],
        introduction: Sequence[str] = (),
        progress: Progress | None = None,
        tracking: TrackingOptions = TrackingOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self.step = step
        self.samples = samples
        self.loader = loader
        self.schedule = schedule
        self.validation = validation
        self.processes = processes
        self.introduction = introduction
        self._options = options
        self.config = config
        self._progress = progress or Progress()
        self._tracking = tracking
        self._run_id = self._progress.run_id
        if tracking.services and not self._run_id:
            self._run_id = uuid.uuid4().hex[:12]
        self._last_spec: BatchSpec | None = None  # that a batch was loaded by
        self._best_top1 = self._progress.best_top1
        self._val_top1: float | None = None  # of the weights, at the last evaluation
        # The last update of the epoch, or of the run, is done, its evaluation and row are not.
        self._is_epoch_open = self._progress.is_epoch_open
        self._updates_per_epoch = samples.updates_per_epoch
        total_updates = options.num_epochs * self._updates_per_epoch
        self._last_update = min(total_updates, options.max_updates or total_updates)

    def run(self, folder: Path | None) -> None:
        """Train to the end, or until a signal asks to stop.

        Args:
            folder: the run folder, which exists; None on other ranks than the first.

        Raises:
            UserError: the loss is no longer a finite number, too many updates in a row had inf or
                NaN in their gradients, or an image cannot be decoded.
            Stopped: a signal asked to stop; the last checkpoint holds all that was done.
        """
        epoch, update = divmod(self.step.updates_done, self._updates_per_epoch)
        self._folder = folder
        minutes = self._options.checkpoint_minutes
        self._checkpointer = Checkpointer(
            folder,
            self._options.keep_checkpoints,
            self._options.max_checkpoint_failures,
            None if minutes is None else 60 * minutes,
            lambda saved: self._trackers.log_checkpoint(saved),
        )
        self._log = RunLog(folder)
        for line in self.introduction:
            logger.info(line)
        if self.step.updates_done:
            logger.info("resuming at epoch %d, update %d", epoch + 1, update + 1)
            # The rate of the last update, which is in a checkpoint written before the next one.
            self.schedule.step(self.step.updates_done - 1)
            if self.step.updates_done >= self._last_update:
                logger.warning(
                    "the run is at its end, %d updates: nothing is left to train; raise "
                    "schedule.epochs or run.max_steps to go on",
                    self._last_update,
                )
        self._trackers = start_trackers(self._run_info(folder))
        if folder is not None:
            record_start(folder, self._session())
        self._meter = Meter(self.processes, self.samples.layout.global_batch)
        if self._progress.meter is not None:
            self._meter.load_state_dict(self._progress.meter, self._progress.partial_sums)
        self._agreement = Agreement(self.processes)
        # One stream for all epochs: the next one's first batches come during an evaluation.
        specs = self.samples.stream(epoch, self._options.num_epochs, update)
        batches = self.loader.batches(self._remembered(specs))
        self._batches = self._meter.timed(batches)
        try:
            with stop_requests() as self._stop_request:
                if self._options.warm_up and self.step.updates_done < self._last_update:
                    self._warm_up(epoch, update)
                self._start_s, self._start_updates = time.perf_counter(), self.step.updates_done
                if self._is_epoch_open and self._is_at_an_end:
                    self._finish_epoch()
                self._is_epoch_open = False
                while self.step.updates_done < self._last_update:
                    self._train_epoch()
                    self._finish_epoch()
            if not self._checkpointer.wait():
                raise UserError(self._checkpointer.failure())
            if best := self._checkpointer.best:
                has_ema = self.step.ema is not None
                for line in best_lines(self._best_top1, best, has_ema, self._val_top1):
                    logger.info(line)
        finally:
            if folder is not None:
                record_end(folder, divmod(self.step.updates_done, self._updates_per_epoch))
            self._checkpointer.close()
            self._trackers.close()
            self._log.close()
            batches.close()
            self.loader.close()
            self.validation.loader.close()

    @property
    def _is_at_an_end(self) -> bool:
        """Of an epoch, or of the run."""
        done = self.step.updates_done
        return done % self._updates_per_epoch == 0 or done == self._last_update

    def _remembered(self, specs: Iterator[BatchSpec]) -> Iterator[BatchSpec]:
        """The same specs; the last one that was asked for is kept for messages."""
        for spec in specs:
            self._last_spec = spec
            yield spec

    def _describe_update(self, epoch: int, update: int) -> str:
        """Where this process stands: an update, and what it loaded last.

        Called by the heartbeat at any moment.
        """
        place = f"epoch {epoch + 1}, update {update}/{self._updates_per_epoch}"
        if self._last_spec is None:
            return f"{place}; nothing loaded yet"
        name, rows = self.samples.index.name, self._last_spec.indices
        return (
            f"{place}; last to be loaded: {len(rows)} images, {name(rows[0])} to {name(rows[-1])}"
        )

    def _run_info(self, folder: Path | None) -> RunInfo | None:
        if folder is None:
            return None
        done, is_open, last = self.step.updates_done, self._is_epoch_open, self._checkpointer.last
        saved = None
        if done and last is not None:
            saved = SavedCheckpoint(done, is_open, last, self._checkpointer.best)
        return RunInfo(
            folder,
            self.config,
            self._updates_per_epoch,
            done,
            is_open,
            self.samples.layout.global_batch,
            self._run_id,
            {**environment(self.processes), **machine()},
            self._tracking,
            saved,
        )

    def _session(self) -> Session:
        """How this session's updates are made."""
        layout, index = self.samples.layout, self.samples.index
        first = divmod(self.step.updates_done, self._updates_per_epoch)
        return Session(
            world_size=layout.world_size,
            device=self.processes.device.type,
            global_batch=layout.global_batch,
            batch_per_device=layout.batch_per_device,
            updates_per_epoch=self._updates_per_epoch,
            config_digest=digest_of(config_text(self.config)),
            dtype=str(self.validation.precision.input_dtype).removeprefix("torch."),
            num_images=len(index),
            num_classes=len(index.classes),
            images_digest=index.digest(),
            by_kernels=self.samples.transform.randaugment_by == "kernels",
            first=first,
            last=first,
        )

    def _warm_up(self, epoch: int, update: int) -> None:
        """Reach the pipelines' peak memory now, not hours into the run."""
        start_s = time.perf_counter()
        pixels = warm_up_training(
            self.loader, self.samples, epoch, self._options.num_epochs, update, self._is_asked
        )
        warm_up_evaluation(self.validation.loader, self.validation.samples, self._is_asked)
        logger.info(
            "warm-up: the largest batches, up to %.1f megapixels, in %.1f s%s",
            pixels / 1e6,
            time.perf_counter() - start_s,
            device_memory(self.processes.device),
        )

    def _train_epoch(self) -> None:
        """Train to the end of the epoch or of the run."""
        options, per_epoch = self._options, self._updates_per_epoch
        epoch, first_update = divmod(self.step.updates_done, per_epoch)
        last_update = min(per_epoch, self._last_update - epoch * per_epoch)
        self._log.start_epoch(epoch, options.num_epochs, first_update, last_update)
        self.step.train()
        self._check_stop(now=True)
        self._meter.restart()
        for update in range(first_update + 1, last_update + 1):
            self.processes.note(partial(self._describe_update, epoch, update))
            self.schedule.step(self.step.updates_done)
            self._meter.add(self.step.update(self._batches), self.step.skipped)
            self._is_epoch_open = update == last_update
            self._log.advance()
            if update % options.log_every == 0 or update == last_update:
                self._report(epoch, update)
            is_due_by_time = self._check_stop()
            is_due = options.checkpoint_every and update % options.checkpoint_every == 0
            if (is_due or is_due_by_time) and update < last_update:
                self._save()

    def _report(self, epoch: int, update: int) -> None:
        """Report the updates since the last report; waits for the device."""
        interval, updates_done = self._meter.read(), self.step.updates_done
        limit = self._options.max_skipped_updates
        if interval.skipped_in_row >= limit:
            last = self._checkpointer.last
            raise UserError(stuck(interval.skipped_in_row, updates_done, limit, last, self._folder))
        if not math.isfinite(interval.loss) and interval.skipped < interval.updates:
            first = updates_done - interval.updates + interval.finite + 1
            raise UserError(diverged(first, self._checkpointer.last, self._folder))
        row = UpdateRow(
            epoch=epoch + 1,
            num_epochs=self._options.num_epochs,
            update=update,
            num_updates=self._updates_per_epoch,
            loss=interval.loss,
            lr=self._lr,
            img_per_s=interval.img_per_s,
            data_wait_percent=interval.data_wait_percent,
            skipped=interval.skipped,
            replaced=interval.replaced,
            images=updates_done * self.samples.layout.global_batch,
        )
        spent_s = time.perf_counter() - self._start_s
        made = updates_done - self._start_updates
        self._log.log_update(row, left_s=spent_s * (self._last_update - updates_done) / made)
        self._trackers.log_update(row)
        device = self.processes.device
        if interval.updates == made and device.type == "cuda":  # the first report
            peak = torch.cuda.max_memory_allocated(device)
            logger.info("PyTorch's peak %.1f GiB%s", peak / 2**30, device_memory(device))

    def _finish_epoch(self) -> None:
        """Evaluate where it is time to, report the epoch, save: one transaction.

        Until the last checkpoint is in its place, the one before stands: a run that goes on from
        there evaluates again, drops the row and writes the same best checkpoint.
        """
        epoch = math.ceil(self.step.updates_done / self._updates_per_epoch)
        is_last = self.step.updates_done == self._last_update
        val, ema = None, None
        if is_last or epoch % self._options.eval_every == 0:
            val, ema = self._evaluate()
            self._val_top1 = val.top1
        interval = self._meter.read_epoch()
        row = EpochRow(
            epoch=epoch,
            updates=self.step.updates_done,
            train_loss=interval.loss,
            lr=self._lr,
            img_per_s=interval.img_per_s,
            data_wait_percent=interval.data_wait_percent,
            skipped=interval.skipped,
            val_loss=val.loss if val else None,
            val_top1=val.top1 if val else None,
            val_top5=val.top5 if val else None,
            ema_top1=ema.top1 if ema else None,
            ema_top5=ema.top5 if ema else None,
            time_s=time.perf_counter() - self._start_s,
        )
        self._log.log_epoch(row, self._options.num_epochs)
        self._trackers.log_epoch(row)
        judged = ema or val
        is_best = judged is not None and judged.top1 >= self._best_top1
        if judged is not None:
            self._best_top1 = max(self._best_top1, judged.top1)
        self._is_epoch_open = False
        if self.step.updates_done % self._updates_per_epoch == 0:
            self._meter.restart_epoch()
        self._save(is_best)

    def _evaluate(self) -> tuple[Accuracy, Accuracy | None]:
        """Accuracy of the weights and of their EMA."""
        models = [self.step.model]
        if self.step.ema is not None:
            models.append(self.step.ema.module)
        self._check_stop(now=True)
        for model in models:
            self.processes.average_buffers(model)
        results = self.validation.evaluate(models, self._check_stop_only)
        for result, subject in zip(results, ("the weights", "their EMA"), strict=False):
            if not math.isfinite(result.loss):
                logger.warning(no_number(result.loss, subject))
        return results[0], results[1] if self.step.ema is not None else None

    def _save(self, is_best: bool = False) -> None:
        """Save the run as it stands; all processes must call it."""
        state = run_state(
            self.step,
            self._meter,
            self._updates_per_epoch,
            self._best_top1,
            self._is_epoch_open,
            self.config,
            self.samples.index.classes,
            self.processes,
            self._run_id,
        )
        self._checkpointer.save(state, is_best)

    def _is_asked(self) -> bool:
        """Has this process been asked to stop?"""
        return self._stop_request.signal is not None

    def _check_stop(self, now: bool = False) -> bool:
        """Save and stop if any process has been asked to; see `Agreement` for `now`.

        Returns:
            Whether it is time for a checkpoint, by the clock.

        Raises:
            UserError: too many checkpoints in a row could not be written.
        """
        checkpointer = self._checkpointer
        is_asked, has_failed, is_due = self._agreement.any_of(
            self._is_asked(), checkpointer.has_failed, checkpointer.is_due, now=now
        )
        if has_failed:
            raise UserError(checkpointer.failure())
        if is_asked:
            self._stop()
        return is_due

    def _check_stop_only(self) -> None:
        self._check_stop()

    def _stop(self) -> None:
        """Save what was done, and stop."""
        epoch, update = divmod(self.step.updates_done - 1, self._updates_per_epoch)
        self._log.close_bar()
        if not self.step.updates_done:
            logger.info("asked to stop before the first update; there is nothing to save")
            raise Stopped(self._stop_request.signal or signal.SIGTERM, agreed=True)
        self._save()
        if self._checkpointer.wait():
            logger.info(
                "asked to stop: saved %s after epoch %d, update %d; --resume goes on from there",
                self._checkpointer.last,
                epoch + 1,
                update + 1,
            )
        else:
            logger.warning("asked to stop, and could not save; --resume goes on from before")
        raise Stopped(self._stop_request.signal or signal.SIGTERM, agreed=True)

    @property
    def _lr(self) -> float:
        """The learning rate of the last update, that of the head where it decays by layers."""
        return self.schedule.lr_at(self.step.updates_done - 1)

"""The training step: one optimizer update from its micro-batches, and the state it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dali_rsb.errors import UserError
from dali_rsb.loader.batch import Batch, MixedBatch
from dali_rsb.models.precision import Precision
from dali_rsb.optim import LossScaler, ModelEma, skips_by_itself, takes_norm
from dali_rsb.run.processes import Processes
from dali_rsb.training.compiling import compile_model, is_compiled, undo_compile
from dali_rsb.training.cuda_graph import CudaRecorder, StepGraph
from dali_rsb.weights.fitting import load_exactly


class TrainStep:
    """Mix, forward, loss, backward, optimizer, EMA. Nothing here waits for the device.

    An update whose gradients hold inf or NaN is skipped, in every precision and in all processes
    alike: parameters, moments, step count and norm statistics stay as they were. It counts in
    `updates_done`, which is the position in data and schedule, and the EMA moves on towards the
    unchanged weights. Only an optimizer without a way to skip by itself (apex's FusedLAMB) costs a
    synchronisation for this.

    Args:
        model: on its device; trained in place.
        criterion: loss of (logits, labels, partner labels, lambda), see `dali_rsb.training.losses`.
        optimizer: over the model's parameters; its learning rate is set from outside.
        ema: EMA of the model's weights, or None.
        precision: of the forward pass and loss.
        processes: this process among those that exchange gradients.
        accumulation: micro-batches of one update.
        mean, std: of the normalisation.
        clip_grad: limit of the gradients' norm, or None.
        compile: whether to compile the model; where that fails, it runs as it is.
        cuda_graph: whether to replay forward and backward pass as a CUDA graph; for one process
            on a GPU. Gradients keep their memory then.
        seed: of the model's own randomness (dropout, stochastic depth).
        frozen_norms: layers of the model that stay in evaluation mode.

    Attributes:
        updates_done: how many updates were made, skipped ones included.
        skipped: float32 scalar on the device: 1 if the last update was skipped, else 0.
    """

    skipped: Tensor

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ModelEma | None,
        precision: Precision,
        processes: Processes,
        *,
        accumulation: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        clip_grad: float | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        seed: int = 0,
        frozen_norms: Sequence[nn.Module] = (),
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.ema = ema
        self.scaler = LossScaler(processes.device, enabled=precision.dtype == torch.float16)
        self.updates_done = 0
        self._processes = processes
        self._precision = precision
        self._autocast = precision.autocast()
        self._accumulation = accumulation
        self._mean, self._std = mean, std
        self._clip_grad = clip_grad
        self._seed = seed
        self._frozen_norms = frozen_norms
        self._norm_statistics = _Rollback(model)
        if compile:
            compile_model(model)
        self._is_proved = not compile  # that a backward pass can be compiled
        self._forward = self._distribute(model)
        self._keeps_gradients = cuda_graph
        self._micro_batch: Callable[[MixedBatch], Tensor] = self._backward
        if cuda_graph:
            self._micro_batch = StepGraph(self._backward, CudaRecorder(processes.device))

    def train(self) -> None:
        """Put the model into training mode, but for its frozen norms."""
        self.model.train()
        for norm in self._frozen_norms:
            norm.eval()

    def update(self, batches: Iterator[Batch]) -> Tensor:
        """Make one update from the next micro-batches of `batches`.

        Returns:
            float32 scalar on the device: the loss, mean over this process's samples.
        """
        losses = self._accumulate(batches) if self._is_proved else self._prove(batches)
        if self.ema is not None:
            self.ema.hand_over(self.optimizer, self.updates_done + 1)
        self.skipped = self._optimize()
        self.scaler.update(self.skipped)
        self._norm_statistics.restore_if(self.skipped)
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        self.updates_done += 1
        if self.ema is not None:
            self.ema.update(self.model, self.updates_done)
        return losses

    def _accumulate(self, batches: Iterator[Batch]) -> Tensor:
        """Add up the gradients of an update; returns its loss."""
        self._seed_model_randomness()
        self._norm_statistics.save()
        losses = torch.zeros((), device=self._processes.device)
        for micro_batch in range(self._accumulation):
            batch = self._mixed(next(batches))
            with self._gradient_exchange(micro_batch == self._accumulation - 1):
                losses += self._micro_batch(batch)
        return losses

    def _prove(self, batches: Iterator[Batch]) -> Tensor:
        """The first `_accumulate`: where the backward pass cannot be compiled, once more without.

        The forward pass sees to itself (see `compile_model`).
        """
        self._is_proved = True
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        kept = [next(batches) for _ in range(self._accumulation)]
        try:
            return self._accumulate(iter(kept))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # see `compile_model`
            if not is_compiled(self.model):
                raise
            undo_compile(self.model, error)
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        for buffer, before in buffers:
            buffer.copy_(before)
        return self._accumulate(iter(kept))

    @torch.no_grad()
    def _optimize(self) -> Tensor:
        """Clip and make the optimizer's step, or skip it; returns the flag for `skipped`."""
        optimizer: Any = self.optimizer
        scale, norm, found_inf = self.scaler.tensor, None, None
        if self._clip_grad is not None:
            norm = self._clip(self._clip_grad, scale)
        if norm is None and not takes_norm(optimizer):
            norm = nn.utils.get_total_norm(self._gradients())
        if norm is not None:
            found_inf = norm.isfinite().logical_not().float()
        if skips_by_itself(optimizer):
            optimizer.grad_scale, optimizer.found_inf = scale, found_inf
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif not found_inf:  # on a CPU this waits for nothing
            if scale is not None:
                torch._foreach_div_(self._gradients(), scale)
            optimizer.step()
        if takes_norm(optimizer):
            found_inf = optimizer.skipped
        assert found_inf is not None
        return found_inf

    def _clip(self, limit: float, scale: Tensor | None) -> Tensor:
        """Clip the norm of the unscaled gradients, which stay scaled; returns the norm before."""
        norm = nn.utils.get_total_norm(self._gradients())
        if scale is not None:
            norm = norm / scale
        nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        return norm

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """All that a later run needs to go on with the same bits."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def norm_statistics(self) -> dict[str, dict[str, Tensor]]:
        """The floating-point buffers, in which processes differ, by part of the state and name."""
        return {
            part: {name: b for name, b in module.named_buffers() if b.is_floating_point()}
            for part, module in self._modules().items()
        }

    def load_norm_statistics(self, statistics: dict[str, dict[str, Tensor]]) -> None:
        """Take over this process's `norm_statistics`; what is missing stays as it is."""
        for part, own in self.norm_statistics().items():
            for name, value in statistics.get(part, {}).items():
                own[name].copy_(value)

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} | ({} if self.ema is None else {"ema": self.ema.module})

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Take over a state; a new EMA starts from the weights where the state has none.

        Raises:
            UserError: the weights are of another architecture, or the optimizer's parameter groups
            are others; `source` is named.
        """
        load_exactly(self.model, state["model"], str(source))
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"] or state["model"])
        self._load_optimizer(state["optimizer"], source)
        self.scaler.load_state_dict(state["scaler"])

    def _load_optimizer(self, state: dict[str, Any], source: Path) -> None:
        """Take over moments and step counts; hyper-parameters stay those of this run."""
        names = {*self.optimizer.defaults, "lr_scale"}
        own = [{n: v for n, v in g.items() if n in names} for g in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state)
        except ValueError as error:
            raise UserError(
                f"{source}: its optimizer state does not fit ({error}); resume with the same "
                f"optimizer settings, or start again from model.weights={source}"
            ) from error
        for group, options in zip(self.optimizer.param_groups, own, strict=True):
            group.pop("lr_scale", None)
            group.update(options)

    def _mixed(self, batch: Batch) -> MixedBatch:
        return batch.mixed(self._mean, self._std, self._precision.input_dtype)

    def _backward(self, batch: MixedBatch) -> Tensor:
        """Add the gradients of a micro-batch; returns its share of the update's loss."""
        loss = self._loss(batch) / self._accumulation
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _loss(self, batch: MixedBatch) -> Tensor:
        with self._autocast:
            logits = self._forward(batch.images)
            loss: Tensor = self.criterion(logits, batch.labels, batch.partner_labels, batch.lam)
        return loss

    def _distribute(self, model: nn.Module) -> nn.Module:
        if self._processes.world_size == 1:
            return model
        on_gpu = self._processes.device.type == "cuda"
        return DistributedDataParallel(
            model,
            device_ids=[self._processes.device.index] if on_gpu else None,
            # Norm statistics stay with their process, and are averaged before an evaluation.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def _gradient_exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once an update, with the last micro-batch."""
        if is_last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def _seed_model_randomness(self) -> None:
        """Make dropout and stochastic depth, like the data, a function of seed and position."""
        entropy = (self._seed, self.updates_done, self._processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


# The integer type as wide as a floating-point number of so many bytes.
_BITS_DTYPE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Rollback:
    """Brings a model's floating-point buffers (norm statistics) back, by a flag on the device.

    A forward pass that overflows would otherwise leave NaN in them for good: the optimizer skips
    the update, training goes on, and every evaluation is worthless.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]

    @torch.no_grad()
    def save(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._saved, self._buffers)

    @torch.no_grad()
    def restore_if(self, flag: Tensor) -> None:
        """Restore what `save` saw if `flag`, a scalar, is 1; change nothing if it is 0."""
        if not self._buffers:
            return
        # On the bits, as integers: as floats, 0 * NaN would be NaN.
        buffers, saved = (
            [tensor.view(_BITS_DTYPE[tensor.itemsize]) for tensor in tensors]
            for tensors in (self._buffers, self._saved)
        )
        restore = flag.to(torch.int32)
        torch._foreach_mul_(buffers, 1 - restore)
        torch._foreach_mul_(saved, restore)
        torch._foreach_add_(buffers, saved)

"""One LAMB step and the EMA of its parameters in five Triton launches, whatever their number.

The kernels find the tensors through a table of addresses and share the work in chunks of CHUNK
elements. Learning rate, step counts, loss scale and overflow flag lie on the device, so that no
launch waits for the host and a step can be captured in a CUDA graph.

1. `_square_sums_kernel`: the gradients' squares, summed for each chunk;
2. `_scalars_kernel`: from their norm the clipping and whether to skip; counts the step;
3. `_moments_kernel`: both moments; squares of parameter and update, summed for each chunk;
4. `_trust_kernel`: for each tensor its trust ratio, and with it the step size;
5. `_update_kernel`: the update again (cheaper than storing it), parameters and their EMA.

`dali_rsb.kernels.lamb` is the reference implementation, in PyTorch. Sums have a fixed order: the
same gradients give the same bits.
"""

# Triton gives the arguments of kernels their types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048  # elements of one program
# A thread of such a program has 8 elements, and its registers let 3 or 4 programs share an SM.
NUM_WARPS = 8
REDUCE_BLOCK = 4096  # chunk sums that `_scalars_kernel`, a single program, reads at once
# Chunk sums that a program of `_trust_kernel` reads at once, and its warps: one program a tensor.
TRUST_BLOCK, TRUST_WARPS = 1024, 4

# Rows of the table of addresses: one entry for each tensor, 0 where there is none. The addresses of
# the groups' step counts follow.
PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, AVERAGE = range(5)
_ALIGNED = 5  # 1 where all addresses allow reads of 16 bytes
_NUM_ROWS = 6
_PARAM, _GRAD, _EXP_AVG = tl.constexpr(PARAM), tl.constexpr(GRAD), tl.constexpr(EXP_AVG)
_EXP_AVG_SQ, _AVERAGE = tl.constexpr(EXP_AVG_SQ), tl.constexpr(AVERAGE)
_IS_ALIGNED = tl.constexpr(_ALIGNED)

# What the host sets: rows with one entry for each group, then a parameter's weight in its EMA.
_NUM_HYPER = 11
_LR, _LOG_BETA1, _LOG_BETA2, _BETA1, _BETA2 = (tl.constexpr(i) for i in range(5))
_GRAD_WEIGHT, _EPS, _WEIGHT_DECAY = (tl.constexpr(i) for i in range(5, 8))
_CORRECT_BIAS, _ADAPT, _CLIP_TRUST = (tl.constexpr(i) for i in range(8, 11))
_HYPER_ROWS = tl.constexpr(_NUM_HYPER)

# What `_scalars_kernel` leaves for the others: rows with one entry for each group, then the factor
# that unscales and clips the gradients.
_NUM_SCALARS = 4
_STEP_SIZE, _SCALED_EPS, _SCALED_DECAY, _SCALE = (tl.constexpr(i) for i in range(4))
_SCALAR_ROWS = tl.constexpr(_NUM_SCALARS)


@triton.jit
def _square_sums_kernel(
    table,  # int64 [_NUM_ROWS * T + G]
    chunk_tensor,  # int32 [C]: whose each chunk is
    first_chunk,  # int32 [T + 1]
    num_elements,  # int64 [T]
    sums,  # float32 [C]: out
    num_tensors,
    CHUNK: tl.constexpr,  # noqa: N803
):
    chunk = tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    start = (chunk - tl.load(first_chunk + tensor)).to(tl.int64) * CHUNK
    rest = tl.load(num_elements + tensor) - start
    grad = tl.load(table + _GRAD * num_tensors + tensor)
    aligned = tl.load(table + _IS_ALIGNED * num_tensors + tensor)
    if grad == 0:
        tl.store(sums + chunk, 0.0)
    else:
        if (rest >= CHUNK) & (aligned != 0):
            g = _load(grad, start, rest, True, CHUNK)
            tl.store(sums + chunk, tl.sum(g * g))
        else:
            g = _load(grad, start, rest, False, CHUNK)
            tl.store(sums + chunk, tl.sum(g * g))


@triton.jit
def _scalars_kernel(
    square_sums,  # float32 [C]
    step_addresses,  # int64 [G]
    hyper,  # float64 [_NUM_HYPER * G + 1]: learning rates and such
    scalars,  # float64 [_NUM_SCALARS * G + 1]: out
    skipped,  # float32 []: out
    grad_scale,  # float32 [], if HAS_SCALE
    found_inf,  # float32 [], if HAS_FLAG
    max_grad_norm,  # float32; inf for none
    num_chunks,
    num_groups,
    HAS_SCALE: tl.constexpr,  # noqa: N803
    HAS_FLAG: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
    NUM_BLOCKS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    squares = tl.full([BLOCK], 0.0, tl.float64)
    chunks = tl.arange(0, BLOCK)
    for _ in range(NUM_BLOCKS):
        squares += tl.load(square_sums + chunks, mask=chunks < num_chunks, other=0.0).to(tl.float64)
        chunks += BLOCK
    norm = tl.sqrt(tl.sum(squares))
    skip = (norm < float("inf")) == 0  # so that NaN is skipped too
    if HAS_FLAG:
        skip = skip | (tl.load(found_inf) != 0)
    divisor = tl.maximum(norm / max_grad_norm, 1.0)
    if HAS_SCALE:
        # scale * max(norm / scale / max_grad_norm, 1), as the norm still contains the scale.
        divisor = tl.maximum(norm / max_grad_norm, tl.load(grad_scale).to(tl.float64))
    tl.store(skipped, skip.to(tl.float32))
    tl.store(scalars + _SCALAR_ROWS * num_groups, 1.0 / divisor)

    groups = tl.arange(0, GROUPS)
    valid = groups < num_groups
    step_pointers = tl.load(step_addresses + groups, mask=valid, other=0)
    step_pointers = step_pointers.to(tl.pointer_type(tl.float32))
    step = tl.load(step_pointers, mask=valid, other=0.0)
    step = tl.where(skip, step, step + 1.0)
    tl.store(step_pointers, step, mask=valid)

    # In float64, as 1 - 0.999^t in float32 is off by 3e-5 at t = 1. With c1 = 1 - beta1^t,
    # c2 = 1 - beta2^t and scale = sqrt(c2) / c1 the update is scale times m / (sqrt(v) +
    # eps * sqrt(c2)) + weight_decay / scale * p; the kernels work without that factor.
    t = tl.maximum(step, 1.0).to(tl.float64)  # of a skipped first step nothing is used
    c1 = 1.0 - tl.exp(t * _group_row(hyper, _LOG_BETA1, groups, num_groups))
    c2 = 1.0 - tl.exp(t * _group_row(hyper, _LOG_BETA2, groups, num_groups))
    correct_bias = _group_row(hyper, _CORRECT_BIAS, groups, num_groups) != 0
    root_c2 = tl.where(correct_bias, tl.sqrt(c2), 1.0)
    scale = tl.where(correct_bias, root_c2 / c1, 1.0)
    step_size = _group_row(hyper, _LR, groups, num_groups) * scale
    scaled_eps = _group_row(hyper, _EPS, groups, num_groups) * root_c2
    scaled_decay = _group_row(hyper, _WEIGHT_DECAY, groups, num_groups) / scale
    tl.store(scalars + _STEP_SIZE * num_groups + groups, step_size, mask=valid)
    tl.store(scalars + _SCALED_EPS * num_groups + groups, scaled_eps, mask=valid)
    tl.store(scalars + _SCALED_DECAY * num_groups + groups, scaled_decay, mask=valid)
    tl.store(scalars + _SCALE * num_groups + groups, scale, mask=valid)


@triton.jit
def _moments_kernel(
    table,
    chunk_tensor,
    first_chunk,
    num_elements,
    group_of,  # int32 [T]
    hyper,
    scalars,
    skipped,
    param_sums,  # float32 [C]: out
    update_sums,  # float32 [C]: out
    num_tensors,
    num_groups,
    CHUNK: tl.constexpr,  # noqa: N803
):
    # Backwards: the gradients that were read last are still in the cache.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    start = (chunk - tl.load(first_chunk + tensor)).to(tl.int64) * CHUNK
    rest = tl.load(num_elements + tensor) - start
    aligned = tl.load(table + _IS_ALIGNED * num_tensors + tensor)
    grad = tl.load(table + _GRAD * num_tensors + tensor)
    if (grad != 0) & (tl.load(skipped) == 0):
        group = tl.load(group_of + tensor)
        if (rest >= CHUNK) & (aligned != 0):
            _update_moments(
                table, tensor, num_tensors, hyper, scalars, group, num_groups,
                param_sums + chunk, update_sums + chunk, start, rest, True, CHUNK,
            )  # fmt: skip
        else:
            _update_moments(
                table, tensor, num_tensors, hyper, scalars, group, num_groups,
                param_sums + chunk, update_sums + chunk, start, rest, False, CHUNK,
            )  # fmt: skip


@triton.jit
def _update_moments(
    table, tensor, num_tensors, hyper, scalars, group, num_groups,
    param_sum, update_sum, start, rest,
    FULL: tl.constexpr, CHUNK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    param = tl.load(table + _PARAM * num_tensors + tensor)
    grad = tl.load(table + _GRAD * num_tensors + tensor)
    exp_avg = tl.load(table + _EXP_AVG * num_tensors + tensor)
    exp_avg_sq = tl.load(table + _EXP_AVG_SQ * num_tensors + tensor)
    factor = tl.load(scalars + _SCALAR_ROWS * num_groups).to(tl.float32)
    beta1 = tl.load(hyper + _BETA1 * num_groups + group)
    beta2 = tl.load(hyper + _BETA2 * num_groups + group)
    grad_weight = tl.load(hyper + _GRAD_WEIGHT * num_groups + group).to(tl.float32)
    square_weight = (1.0 - beta2).to(tl.float32)

    p = _load(param, start, rest, FULL, CHUNK)
    g = _load(grad, start, rest, FULL, CHUNK) * factor
    m = _load(exp_avg, start, rest, FULL, CHUNK)
    v = _load(exp_avg_sq, start, rest, FULL, CHUNK)
    m = beta1.to(tl.float32) * m + grad_weight * g
    v = beta2.to(tl.float32) * v + square_weight * g * g
    _store(exp_avg, start, rest, m, FULL, CHUNK)
    _store(exp_avg_sq, start, rest, v, FULL, CHUNK)
    u = _lamb_update(p, m, v, scalars, group, num_groups)
    if not FULL:  # past the end the update is 0 / eps, and with eps = 0 not a number
        u = tl.where(tl.arange(0, CHUNK) < rest, u, 0.0)
    tl.store(param_sum, tl.sum(p * p))
    tl.store(update_sum, tl.sum(u * u))


@triton.jit
def _lamb_update(p, m, v, scalars, group, num_groups):
    """The update before the trust ratio, without the bias correction's factor."""
    eps = tl.load(scalars + _SCALED_EPS * num_groups + group).to(tl.float32)
    decay = tl.load(scalars + _SCALED_DECAY * num_groups + group).to(tl.float32)
    return m / (tl.sqrt(v) + eps) + decay * p


@triton.jit
def _trust_kernel(
    table,
    first_chunk,
    group_of,
    hyper,
    scalars,
    param_sums,  # float32 [C]; not written where nothing is updated
    update_sums,
    skipped,
    step_sizes,  # float32 [T]: out
    num_tensors,
    num_groups,
    BLOCK: tl.constexpr,  # noqa: N803
):
    tensor = tl.program_id(0)
    grad = tl.load(table + _GRAD * num_tensors + tensor)
    if (grad == 0) | (tl.load(skipped) != 0):
        tl.store(step_sizes + tensor, 0.0)
    else:
        group = tl.load(group_of + tensor)
        start = tl.load(first_chunk + tensor)
        end = tl.load(first_chunk + tensor + 1)
        param_squares = tl.full([BLOCK], 0.0, tl.float64)
        update_squares = tl.full([BLOCK], 0.0, tl.float64)
        while start < end:  # NumPy's newest does not let Triton's interpreter have a range here
            chunks = start + tl.arange(0, BLOCK)
            inside = chunks < end
            param_squares += tl.load(param_sums + chunks, mask=inside, other=0.0).to(tl.float64)
            update_squares += tl.load(update_sums + chunks, mask=inside, other=0.0).to(tl.float64)
            start += BLOCK
        scale = tl.load(scalars + _SCALE * num_groups + group)
        param_norm = tl.sqrt(tl.sum(param_squares))
        update_norm = tl.sqrt(tl.sum(update_squares)) * scale
        adapts = tl.load(hyper + _ADAPT * num_groups + group) != 0
        adapts = adapts & (param_norm > 0) & (update_norm > 0)
        ratio = tl.where(adapts, param_norm / tl.where(adapts, update_norm, 1.0), 1.0)
        if tl.load(hyper + _CLIP_TRUST * num_groups + group) != 0:
            ratio = tl.minimum(ratio, 1.0)
        step_size = tl.load(scalars + _STEP_SIZE * num_groups + group)
        tl.store(step_sizes + tensor, (ratio * step_size).to(tl.float32))


@triton.jit
def _update_kernel(
    table,
    chunk_tensor,
    first_chunk,
    num_elements,
    group_of,
    hyper,
    scalars,
    skipped,
    step_sizes,
    num_tensors,
    num_groups,
    AVERAGES: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr,  # noqa: N803
):
    chunk = tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    start = (chunk - tl.load(first_chunk + tensor)).to(tl.int64) * CHUNK
    rest = tl.load(num_elements + tensor) - start
    aligned = tl.load(table + _IS_ALIGNED * num_tensors + tensor)
    if (rest >= CHUNK) & (aligned != 0):
        _update_chunk(
            table, tensor, num_tensors, group_of, hyper, scalars, num_groups,
            skipped, step_sizes, start, rest, AVERAGES, True, CHUNK,
        )  # fmt: skip
    else:
        _update_chunk(
            table, tensor, num_tensors, group_of, hyper, scalars, num_groups,
            skipped, step_sizes, start, rest, AVERAGES, False, CHUNK,
        )  # fmt: skip


@triton.jit
def _update_chunk(
    table, tensor, num_tensors, group_of, hyper, scalars, num_groups,
    skipped, step_sizes, start, rest,
    AVERAGES: tl.constexpr, FULL: tl.constexpr, CHUNK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    param = tl.load(table + _PARAM * num_tensors + tensor)
    grad = tl.load(table + _GRAD * num_tensors + tensor)
    p = _load(param, start, rest, FULL, CHUNK)
    if AVERAGES:
        # Read early, so that all reads are in flight together; a tensor without an EMA reads
        # the parameter once more.
        average = tl.load(table + _AVERAGE * num_tensors + tensor)
        a = _load(tl.where(average != 0, average, param), start, rest, FULL, CHUNK)
    if (grad != 0) & (tl.load(skipped) == 0):
        group = tl.load(group_of + tensor)
        exp_avg = tl.load(table + _EXP_AVG * num_tensors + tensor)
        exp_avg_sq = tl.load(table + _EXP_AVG_SQ * num_tensors + tensor)
        m = _load(exp_avg, start, rest, FULL, CHUNK)
        v = _load(exp_avg_sq, start, rest, FULL, CHUNK)
        p -= tl.load(step_sizes + tensor) * _lamb_update(p, m, v, scalars, group, num_groups)
        _store(param, start, rest, p, FULL, CHUNK)
    if AVERAGES:
        weight = tl.load(hyper + _HYPER_ROWS * num_groups).to(tl.float32)
        # From the nearer end, as torch.lerp: exact at both.
        a = tl.where(weight < 0.5, a + weight * (p - a), p - (1.0 - weight) * (p - a))
        if average != 0:
            _store(average, start, rest, a, FULL, CHUNK)


@triton.jit
def _group_row(rows, ROW: tl.constexpr, groups, num_groups):  # noqa: N803
    return tl.load(rows + ROW * num_groups + groups, mask=groups < num_groups, other=0.0)


@triton.jit
def _load(address, start, rest, FULL: tl.constexpr, CHUNK: tl.constexpr):  # noqa: N803
    """A chunk of float32 from `start` on; FULL promises CHUNK elements, aligned to 16 bytes."""
    pointer = address.to(tl.pointer_type(tl.float32))
    offsets = tl.arange(0, CHUNK)
    if FULL:
        values = tl.load(tl.multiple_of(pointer, 16) + start + offsets)
    else:
        values = tl.load(pointer + start + offsets, mask=offsets < rest, other=0.0)
    return values


@triton.jit
def _store(address, start, rest, values, FULL: tl.constexpr, CHUNK: tl.constexpr):  # noqa: N803
    pointer = address.to(tl.pointer_type(tl.float32))
    offsets = tl.arange(0, CHUNK)
    if FULL:
        tl.store(tl.multiple_of(pointer, 16) + start + offsets, values)
    else:
        tl.store(pointer + start + offsets, values, mask=offsets < rest)


class LambKernels:
    """The tables and workspaces for a list of parameters, and the launches of a step.

    Args:
        params: float32, on one device, each dense in some order of its dimensions.
        group_of: number of each one's group.
        steps: step count of each group, 0-dim float32 on the same device, updated in place.

    Attributes:
        params, device: as given.
        skipped: 0-dim float32 on the device: 1 if the last step was skipped, else 0.
    """

    def __init__(
        self, params: Sequence[Tensor], group_of: Sequence[int], steps: Sequence[Tensor]
    ) -> None:
        self.params = list(params)
        self.device = params[0].device
        self._steps = list(steps)  # keeps the addresses valid
        counts = np.array([p.numel() for p in params], dtype=np.int64)
        chunks = -(-counts // CHUNK)
        owner = np.repeat(np.arange(len(params)), chunks)
        self._num_chunks = len(owner)
        self._chunk_tensor = self._tensor(owner.astype(np.int32))
        self._first_chunk = self._tensor(np.concatenate([[0], chunks.cumsum()]).astype(np.int32))
        self._num_elements = self._tensor(counts)
        self._group_of = self._tensor(np.array(group_of, dtype=np.int32))

        num_groups = len(steps)
        self._addresses: list[list[int]] = []
        self._table = torch.zeros(
            _NUM_ROWS * len(params) + num_groups, dtype=torch.int64, device=self.device
        )
        self._hyper_values: list[float] = []
        self._hyper = torch.zeros(
            _NUM_HYPER * num_groups + 1, dtype=torch.float64, device=self.device
        )
        self._scalars = torch.zeros(
            _NUM_SCALARS * num_groups + 1, dtype=torch.float64, device=self.device
        )
        self._sums = torch.zeros((2, self._num_chunks), device=self.device)
        self._step_sizes = torch.zeros(len(params), device=self.device)
        self.skipped = torch.zeros((), device=self.device)
        # A captured copy reads host memory at every replay: it needs memory of its own, kept here
        # and never written again. There is none to be had during a capture.
        self._spare: Tensor | None = None
        self._captured: list[tuple[list[list[int]], Tensor]] = []

    def set_hyper(self, values: Sequence[Sequence[float]], average_weight: float) -> None:
        """Upload what the host decides; no launch, and nothing to wait for.

        Args:
            values: for each group the learning rate, log beta1, log beta2, beta1, beta2, weight
                of a gradient in the first moment, eps, weight decay, and as 0 or 1 whether to
                correct the bias, to use the trust ratio, and to bound that by 1.
            average_weight: of a parameter in its EMA, 1 - decay.
        """
        flat = [value for row in zip(*values, strict=True) for value in row] + [average_weight]
        if flat != self._hyper_values:
            self._copy(np.array(flat), self._hyper)
            self._hyper_values = flat

    def set_lr(self, group: int, lr: Tensor) -> None:
        """Take a group's learning rate from a tensor; after `set_hyper`, which writes it too."""
        self._hyper[group].copy_(lr, non_blocking=True)
        self._hyper_values = []

    def step(
        self,
        grads: Sequence[Tensor | None],
        exp_avgs: Sequence[Tensor | None],
        exp_avg_sqs: Sequence[Tensor | None],
        averages: Sequence[Tensor | None] | None,
        max_grad_norm: float | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Launch the kernels of one step.

        Args:
            grads: float32, None for none; with the order of elements in memory of its parameter,
                like all tensors here.
            exp_avgs, exp_avg_sqs: where there is a gradient.
            averages: moving averages of the parameters; None where there is none to update.
            max_grad_norm: limit of the norm of all unscaled gradients; None for no limit.
            grad_scale: 0-dim float32, what the gradients were multiplied by; None for 1.
            found_inf: 0-dim float32, not 0 for a step to skip whatever the norm is.
        """
        rows = (self.params, grads, exp_avgs, exp_avg_sqs, averages or [None] * len(grads))
        table = self._addresses_on_device(
            [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in rows]
        )
        num_tensors, num_groups = len(self.params), len(self._steps)
        step_addresses = table[_NUM_ROWS * num_tensors :]
        chunks = (table, self._chunk_tensor, self._first_chunk, self._num_elements)
        square_sums, update_sums = self._sums
        with self._launching():
            if self._num_chunks:
                _square_sums_kernel[(self._num_chunks,)](
                    *chunks, square_sums, num_tensors, CHUNK=CHUNK, num_warps=NUM_WARPS
                )
            _scalars_kernel[(1,)](
                square_sums,
                step_addresses,
                self._hyper,
                self._scalars,
                self.skipped,
                self.skipped if grad_scale is None else grad_scale,
                self.skipped if found_inf is None else found_inf,
                float("inf") if max_grad_norm is None else max_grad_norm,
                self._num_chunks,
                num_groups,
                HAS_SCALE=grad_scale is not None,
                HAS_FLAG=found_inf is not None,
                GROUPS=triton.next_power_of_2(num_groups),
                NUM_BLOCKS=triton.cdiv(self._num_chunks, REDUCE_BLOCK),
                BLOCK=REDUCE_BLOCK,
                num_warps=NUM_WARPS,
            )
            if not self._num_chunks:
                return
            _moments_kernel[(self._num_chunks,)](
                *chunks,
                self._group_of,
                self._hyper,
                self._scalars,
                self.skipped,
                square_sums,
                update_sums,
                num_tensors,
                num_groups,
                CHUNK=CHUNK,
                num_warps=NUM_WARPS,
            )
            _trust_kernel[(num_tensors,)](
                table,
                self._first_chunk,
                self._group_of,
                self._hyper,
                self._scalars,
                square_sums,
                update_sums,
                self.skipped,
                self._step_sizes,
                num_tensors,
                num_groups,
                BLOCK=TRUST_BLOCK,
                num_warps=TRUST_WARPS,
            )
            _update_kernel[(self._num_chunks,)](
                *chunks,
                self._group_of,
                self._hyper,
                self._scalars,
                self.skipped,
                self._step_sizes,
                num_tensors,
                num_groups,
                AVERAGES=averages is not None,
                CHUNK=CHUNK,
                num_warps=NUM_WARPS,
            )

    def _addresses_on_device(self, addresses: list[list[int]]) -> Tensor:
        """The table with these addresses; uploaded only where they changed.

        A captured step has a table of its own, filled at every replay: steps made outside of the
        graph do not disturb it.
        """
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            table = torch.empty_like(self._table)
            table.copy_(self._staging(addresses), non_blocking=True)
            return table
        if addresses != self._addresses:
            self._copy(self._entries(addresses), self._table)
            self._addresses = addresses
        if self._spare is None and self.device.type == "cuda":
            self._spare = torch.empty(self._table.shape, dtype=torch.int64, pin_memory=True)
        return self._table

    def _staging(self, addresses: list[list[int]]) -> Tensor:
        """Pinned memory with a table for captured steps."""
        for known, staging in self._captured:
            if known == addresses:
                return staging
        if self._spare is None:
            raise RuntimeError("make a LAMB step outside of the CUDA graph before capturing one")
        staging, self._spare = self._spare, None
        staging.copy_(torch.from_numpy(self._entries(addresses)))
        self._captured.append((addresses, staging))
        return staging

    def _entries(self, addresses: list[list[int]]) -> npt.NDArray[np.int64]:
        rows = np.array(addresses, dtype=np.int64)
        is_aligned = (rows % 16 == 0).all(axis=0)
        steps = np.array([step.data_ptr() for step in self._steps], dtype=np.int64)
        return np.concatenate([rows.ravel(), is_aligned, steps])

    def _copy(self, values: npt.NDArray[np.generic], target: Tensor) -> None:
        """Copy from pinned memory; PyTorch does not give it to others before the copy is done."""
        source = torch.from_numpy(values)
        target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)

    def _tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _launching(self) -> AbstractContextManager[object]:
        """Triton launches on the current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

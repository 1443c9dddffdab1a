"""Every use of an image in a run: when, where and how, from the order of the epochs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dali_rsb.constants import PAIR_BLOCK
from dali_rsb.draws.drawn import drawn
from dali_rsb.draws.samples import BatchSpec, TrainSamples, replace_indices
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.pictures.past import Past, numbered
from dali_rsb.pictures.replaying import Replayer
from dali_rsb.pictures.rows import describe_row
from dali_rsb.run.sessions import Position, standing


@dataclass(frozen=True)
class Seen:
    """The uses of an image.

    Attributes:
        uses: of each the update (number in all and in its epoch, from 1), epoch from 1, rank,
            micro-batch, the image that it stands in for or None, and what `describe_row` says.
        stand_in: the image that is used in its place, if it cannot be used itself.
    """

    uses: list[dict[str, Any]]
    stand_in: str | None = None


def find_uses(
    pasts: Sequence[Past], name: str, to_the_end: bool = False, allow_changes: bool = False
) -> Seen:
    """Every use of an image in a run.

    Each update counts once, as the session made it that made it last. A mixing partner is named
    with each use: partners take each other's pixels, so that covers both ways.

    Args:
        pasts: the sessions of the run.
        name: of the image, absolute or relative to the dataset's folder.
        to_the_end: of the schedule, beyond what the log reports.
        allow_changes: of the dataset's files since the run.

    Raises:
        UserError: there is no such image, or the dataset has changed since the run.
    """
    uses: list[dict[str, Any]] = []
    stand_in = None
    for past, first, end in _parts(pasts, to_the_end):
        replayer = Replayer(past, allow_changes=allow_changes)
        (image,) = replayer.rows_of([name])
        replayer.check([image])
        (used,) = replayer.bad_images.stand_ins([image])
        if used != image:
            stand_in = replayer.index.name(used)
            continue
        asked = [image, *_replaced_by(replayer.bad_images, image, len(replayer.index))]
        uses += _uses(replayer, asked, first, end)
    return Seen(uses, stand_in)


def _parts(pasts: Sequence[Past], to_the_end: bool) -> Iterator[tuple[Past, Position, Position]]:
    """Each session with its updates, from one position to before another."""
    sessions = [past.session for past in pasts]
    if to_the_end:
        sessions[-1] = replace(sessions[-1], last=(pasts[-1].num_epochs, 0))
    by_start = dict(zip(sessions, pasts, strict=True))
    for session, first, end in standing(sessions):
        yield by_start[session], first, end


def _replaced_by(bad_images: BadImages, image: int, num_images: int) -> list[int]:
    """The bad images right before one, for which it stands in."""
    bad: list[int] = []
    while len(bad) < num_images - 1:
        before = (image - len(bad) - 1) % num_images
        if bad_images.stand_ins([before]) == [before]:
            break
        bad.append(before)
    return bad


def _uses(
    replayer: Replayer, asked: Sequence[int], first: Position, end: Position
) -> list[dict[str, Any]]:
    """The uses of some images in a part of a session."""
    samples, per_epoch = replayer.samples, replayer.samples.updates_per_epoch
    found: list[tuple[int, int, int, BatchSpec, int]] = []
    for epoch in range(first[0], end[0] + 1):
        order = samples.order(epoch)
        positions = np.flatnonzero(np.isin(order, asked))
        updates, micro_batches, ranks = samples.layout.places(positions)
        made = updates < per_epoch  # what does not fill an update is left out
        if epoch == first[0]:
            made &= updates >= first[1]
        if epoch == end[0]:
            made &= updates < end[1]
        columns = (positions[made], updates[made], micro_batches[made], ranks[made])
        for position, update, micro_batch, rank in zip(
            *map(np.ndarray.tolist, columns), strict=True
        ):
            block, row = _block(samples, order, epoch, update, micro_batch, rank, position)
            found.append((update, micro_batch, rank, block, row))
    _resolve(replayer, found)
    return [_use(replayer, *one) for one in found]


def _block(
    samples: TrainSamples,
    order: np.ndarray,
    epoch: int,
    update: int,
    micro_batch: int,
    rank: int,
    position: int,
) -> tuple[BatchSpec, int]:
    """The block of mixing partners that a position is in, and its row there."""
    layout = replace(samples.layout, rank=rank)
    of_batch = layout.positions(update, micro_batch)
    row = of_batch.index(position)
    start = row - row % PAIR_BLOCK
    positions = of_batch[start : start + PAIR_BLOCK]
    indices = order[positions.start : positions.stop : positions.step]
    return BatchSpec(indices, len(indices), epoch, positions), row - start


def _resolve(replayer: Replayer, found: Sequence[tuple[int, int, int, BatchSpec, int]]) -> None:
    """Find out which partners are bad and replaced."""
    partners = set()
    for *_, spec, row in found:
        mixing = replayer.samples.mix_draws(spec)
        if mixing is not None:
            partners.add(int(spec.indices[mixing.partner[row]]))
    replayer.bad_images.stand_ins(sorted(partners))


def _use(
    replayer: Replayer, update: int, micro_batch: int, rank: int, spec: BatchSpec, row: int
) -> dict[str, Any]:
    used = replace_indices(spec, replayer.bad_images.replacements)
    asked = int(spec.indices[row])
    is_replaced = asked != used.indices[row]
    index, samples = replayer.index, replayer.samples
    return {
        "update": numbered(replayer.past, (spec.epoch, update)),
        "epoch": spec.epoch + 1,
        "update_of_epoch": update + 1,
        "rank": rank,
        "micro_batch": micro_batch,
        **describe_row(index, used, drawn(samples, used), row),
        "stands_in_for": index.name(asked) if is_replaced else None,
    }

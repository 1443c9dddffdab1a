"""The page of one or more runs: what came out, how, where the time went, and what is confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import fmean

from dali_rsb.config.asking import differences
from dali_rsb.pictures.class_errors import ClassErrors
from dali_rsb.pictures.confusion_blocks import confusion_blocks
from dali_rsb.pictures.page import (
    Block,
    Facts,
    Gallery,
    Page,
    Section,
    Table,
    Tabs,
    Text,
)
from dali_rsb.pictures.published import Nearest
from dali_rsb.pictures.run_history import Epoch, RunHistory
from dali_rsb.pictures.run_plots import axes_of, curves, speeds, time_bars
from dali_rsb.pictures.time_spent import PARTS, duration, time_spent

_NONE = "-"


@dataclass(frozen=True)
class Reported:
    """A run with what was found out about it.

    Attributes:
        run: what its folder tells.
        nearest: the recipe that it is most like.
        published: top-1 in percent that was published for exactly this; None if nothing was.
        errors: of its best weights; a sentence where they could not be evaluated; None where
            nobody asked.
    """

    run: RunHistory
    nearest: Nearest
    published: float | None
    errors: ClassErrors | str | None = None


def report(reported: Sequence[Reported]) -> Page:
    """The page."""
    runs = [one.run for one in reported]
    sections = [
        Section("Results", _results(reported)),
        Section("Curves", _curves(runs)),
        Section("Where the time went", _times(runs)),
        Section("Configuration", _configuration(reported)),
    ]
    for one in reported:
        if one.errors is not None:
            heading = "Worst classes" + (f" of {one.run.name}" if len(runs) > 1 else "")
            blocks = confusion_blocks(one.errors) if isinstance(one.errors, ClassErrors) else []
            if isinstance(one.errors, str):
                blocks = [Text(one.errors, "bad")]
            sections.append(Section(heading, blocks))
    return Page(", ".join(run.name for run in runs), _lead(runs), sections)


def _lead(runs: Sequence[RunHistory]) -> str:
    config = runs[0].config
    if len(runs) > 1:
        return f"{len(runs)} training runs beside each other."
    return (
        f"A training run: {config.model.name} on {config.model.num_classes or 'its'} classes, "
        f"{config.schedule.epochs} epochs at {config.augment.size} px, evaluated at "
        f"{config.evaluation.size} px."
    )


def _results(reported: Sequence[Reported]) -> list[Block]:
    blocks: list[Block] = []
    for one in reported:
        name = f"{one.run.name}: " if len(reported) > 1 else ""
        blocks += [Text(f"{name}{fault}", "bad") for fault in _state(one.run)]
    has_published = any(one.published is not None for one in reported)
    facts = [_facts(one, has_published) for one in reported]
    if len(reported) == 1:
        return [*blocks, Facts(facts[0]), Text(_published(reported[0]))]
    names = [name for name, _, _ in facts[0]]
    rows = [
        [one.run.name, *(number for _, number, _ in its)]
        for one, its in zip(reported, facts, strict=True)
    ]
    blocks.append(Table(["run", *names], rows, numbers=range(1, len(names) + 1)))
    blocks += [Text(f"{one.run.name}: {_published(one)}") for one in reported]
    return blocks


def _state(run: RunHistory) -> list[str]:
    """What a reader must know before the numbers: an unfinished run, damaged files."""
    notes = list(run.faults)
    if not run.epochs and not run.intervals:
        return [*notes, "The run has reported nothing yet."]
    if not run.is_finished:
        at = f"epoch {run.in_epochs(run.updates_done):.3g} of {run.config.schedule.epochs}"
        when = "" if run.last_s is None else f", last heard of on {_date(run.last_s)}"
        notes.append(f"The run has not finished: it is at {at}{when}.")
    skipped = sum(one.row.skipped for one in run.epochs)
    if skipped:
        notes.append(f"{skipped} updates were skipped for inf or NaN in their gradients.")
    return notes


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _facts(one: Reported, has_published: bool) -> list[tuple[str, str, str]]:
    """The figures of a run, each with its name and a remark."""
    run, best, spent = one.run, one.run.best, time_spent(one.run)
    judged = [epoch for epoch in run.epochs if epoch.top1 is not None]
    rates = [row.row.img_per_s for row in run.epochs] or [i.img_per_s for i in run.intervals]
    facts = [
        ("best top-1", *_accuracy(best)),
        ("last top-1", *_accuracy(judged[-1] if judged else None)),
    ]
    if has_published:
        number = _NONE if one.published is None else f"{one.published:.1f} %"
        facts.append(("published", number, _distance(one)))
    done, planned = run.in_epochs(run.updates_done), run.config.schedule.epochs
    batch = run.config.optimizer.batch_size
    waiting = total = _NONE
    if spent is not None:
        waiting = f"{100 * spent.waiting_s / (spent.training_s + spent.waiting_s):.1f} %"
        total = duration(spent.total_s - spent.rest_s)
    facts += [
        ("epochs", f"{done:.4g} of {planned}", f"{run.updates_done:,} updates of {batch:,} images"),
        ("images per second", f"{fmean(rates):,.0f}" if rates else _NONE, "in training"),
        ("waiting for data", waiting, "of the time in training"),
        ("time", total, "training and evaluating"),
    ]
    return facts


def _accuracy(epoch: Epoch | None) -> tuple[str, str]:
    """The accuracy that an epoch is judged by, and what it is of."""
    if epoch is None:
        return _NONE, "not evaluated yet"
    weights = "" if epoch.row.ema_top1 is None else "EMA, "
    return _percent(epoch.top1), f"{weights}epoch {epoch.row.epoch}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f} %"


def _distance(one: Reported) -> str:
    best = one.run.best
    if one.published is None:
        return "nothing for this run"
    if best is None or best.top1 is None:
        return f"recipe {one.nearest.recipe}"
    return f"recipe {one.nearest.recipe}; here {best.top1 - one.published:+.2f}"


def _published(one: Reported) -> str:
    """The recipe's published figure beside what was reached, or why there is none."""
    recipe = one.nearest.recipe
    if one.published is not None:
        best = _percent(one.run.best.top1 if one.run.best else None)
        return (
            f"Recipe {recipe} was published with {one.published:.1f} % top-1 of ResNet-50 on "
            f"ImageNet-1k at 224 px (arXiv:2110.00476); this run's best is {best}."
        )
    if one.nearest.differing:
        keys = list(one.nearest.differing)
        some = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        return (
            f"No published figure for this run: it learns otherwise than every recipe; the nearest "
            f"is {recipe}, from which it differs in {some}."
        )
    return f"Recipe {recipe}: no published figure for this data."


def _curves(runs: Sequence[RunHistory]) -> list[Block]:
    views: list[tuple[str, list[Block]]] = []
    for axis in axes_of(runs):
        if drawings := curves(runs, axis):
            views.append((axis.name, [Gallery(drawings)]))
    if not views:
        return [Text("There are no curves yet: nothing was reported.")]
    return [Tabs("curves", views)]


def _times(runs: Sequence[RunHistory]) -> list[Block]:
    spent = [(run.name, found) for run in runs if (found := time_spent(run)) is not None]
    if not spent:
        return [Text("Nobody knows yet: no updates were reported.")]
    rows = [
        [name, duration(one.total_s)]
        + [
            f"{duration(getattr(one, part))} ({100 * getattr(one, part) / one.total_s:.1f} %)"
            for part in PARTS
        ]
        for name, one in spent
    ]
    text = (
        "From the first report to the last. Waiting: the device had nothing to do because the "
        "next batch was not there. Training: updates without it. The rest: starts, checkpoints "
        "that were waited for, and the pauses of a run that was resumed."
    )
    return [
        time_bars(spent),
        Table(["run", "in all", *PARTS.values()], rows, numbers=range(1, 2 + len(PARTS))),
        Text(text),
        Gallery(speeds(runs, axes_of(runs)[0])),
    ]


def _configuration(reported: Sequence[Reported]) -> list[Block]:
    """The keys in which several runs differ, or one from the recipe that is nearest."""
    if len(reported) == 1:
        return _beside_recipe(reported[0])
    configs = [one.run.config for one in reported]
    keys: dict[str, None] = {}
    for other in configs[1:]:
        keys |= dict.fromkeys(differences(configs[0], other))
    for key in ("name", "run.dir"):
        keys.pop(key, None)
    if not keys:
        return [Text("The configurations are the same in every key.")]
    trees = [config.model_dump(mode="json") for config in configs]
    rows = []
    for key in keys:
        section, _, name = key.partition(".")
        rows.append([key, *(_value(tree[section][name]) for tree in trees)])
    return [
        Text("The keys in which these runs differ; all others are the same."),
        Table(["key", *(one.run.name for one in reported)], rows),
    ]


def _beside_recipe(one: Reported) -> list[Block]:
    recipe, found = one.nearest.recipe, one.nearest.differing
    if not found:
        return [Text(f"As the recipe {recipe} in every key that changes what is learnt.")]
    rows = [[key, _value(there), _value(here)] for key, (there, here) in found.items()]
    return [
        Text(f"The keys in which this run learns otherwise than the nearest recipe, {recipe}."),
        Table(["key", recipe, one.run.name], rows),
    ]


def _value(value: object) -> str:
    return "none" if value is None else str(value)

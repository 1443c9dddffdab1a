"""What is known of the accuracy of exported weights: numbers that the run measured of them alone.

A run's best accuracy is not that of its last checkpoint, nor the EMA's that of the trained weights:
what nobody measured of these very weights is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dali_rsb.run.checkpointer import checkpoint_to_evaluate, is_best
from dali_rsb.run.records import EpochRow
from dali_rsb.run.trackers.csv_file import read_epochs
from dali_rsb.system.names import short_path
from dali_rsb.weights.weights import Weights


@dataclass(frozen=True)
class KnownAccuracy:
    """An accuracy with the images and the preprocessing that it belongs to.

    Attributes:
        top1, top5: in percent; None where it was not kept.
        images: what they are called, such as "imagenet/val"; None if that is not known.
        size, crop_ratio, interpolation: of the evaluation, see `Preprocessing`.
        has_chosen: the weights were chosen among others by accuracy on these images.
    """

    top1: float
    top5: float | None
    images: str | None
    size: int
    crop_ratio: float
    interpolation: str
    has_chosen: bool = False


def known_accuracy(weights: Weights) -> KnownAccuracy | None:
    """The accuracy that a run has measured of these weights, None if there is none."""
    run = weights.run
    if "accuracy" in run:  # an export or an average that kept it
        try:
            return KnownAccuracy(**run["accuracy"])
        except TypeError:  # of another version, or written by hand
            return None
    if "config" not in run:
        return None
    top1, top5 = _measured(weights)
    if top1 is None:
        return None
    config = run["config"]
    evaluation = config["evaluation"]
    return KnownAccuracy(
        top1,
        top5,
        named_images(run).get("val"),
        evaluation["size"],
        evaluation["crop_ratio"],
        evaluation["interpolation"],
        # The run keeps the checkpoint of its best epoch, judged on the same images.
        has_chosen=is_best(_checkpoint(weights)),
    )


def curve(weights: Weights) -> list[EpochRow]:
    """The epochs that the run of a checkpoint has reported, from 1; none if they are not kept."""
    path = _checkpoint(weights)
    return read_epochs(path.parent) if "config" in weights.run and path.suffix == ".pt" else []


def named_images(run: Mapping[str, Any]) -> dict[str, str]:
    """What the images of a run are called, by "train" and "val", as far as it says.

    Args:
        run: see `Weights`.
    """
    if "images" in run:  # an export, which has no paths any more
        return dict(run["images"])
    data = run.get("config", {}).get("data", {})
    paths = {split: data.get("digits") or data.get(split) for split in ("train", "val")}
    names = {split: short_path(path) for split, path in paths.items() if path is not None}
    if "train" in names and data.get("val_fraction") is not None:
        names["val"] = f"{names['train']} ({data['val_fraction']:g} of it, held out)"
    return names


def _checkpoint(weights: Weights) -> Path:
    """The file that the weights come from, if their source is a run or a checkpoint."""
    return checkpoint_to_evaluate(Path(weights.source).expanduser())


def _measured(weights: Weights) -> tuple[float | None, float | None]:
    run, is_ema = weights.run, weights.kind == "EMA"
    for row in curve(weights):
        if row.updates == run.get("updates"):
            return (row.ema_top1, row.ema_top5) if is_ema else (row.val_top1, row.val_top5)
    # The best checkpoint says how good it is; it was judged by the EMA, if there is one.
    is_judged = is_ema or run["config"]["ema"]["decay"] is None
    if is_judged and "top1" in run and is_best(_checkpoint(weights)):
        return run["top1"], None
    return None, None

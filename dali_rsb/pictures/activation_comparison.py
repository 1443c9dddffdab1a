"""Several networks on the same images: what each says and where it finds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_rsb import config as cfg
from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.building import index_samples
from dali_rsb.dataset.image_names import is_image_name
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.order import epoch_order
from dali_rsb.errors import UserError, suggestion
from dali_rsb.evaluation import imagenet
from dali_rsb.evaluation.rows import Model, check_fits
from dali_rsb.evaluation.sets import EvaluationSet, labels_by_name, open_set
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.pictures.activation_maps import Maps, Method, activation_maps, choose_layer
from dali_rsb.pictures.activation_page import Column, Row
from dali_rsb.run.processes import Processes
from dali_rsb.system.names import printable, short_path
from dali_rsb.training.assembly import eval_loader
from dali_rsb.training.datasets import open_other_validation
from dali_rsb.training.subjects import OpenedSubject

_BATCH = 16  # images whose activations are in memory at once
PREDICTED, LABEL = "predicted", "label"


@dataclass(frozen=True)
class Question:
    """Whose maps are asked for, and how they are made.

    Attributes:
        target: "predicted", "label" or the name of a class.
        layer: name of a module, None for the last that gives maps.
        method: of the maps.
    """

    target: str = PREDICTED
    layer: str | None = None
    method: Method = "gradcam"


def open_images(words: Sequence[str], data: cfg.Data) -> EvaluationSet:
    """The images that a command line names: a dataset, a flat folder, or files.

    Args:
        data: says how a dataset is read.

    Raises:
        UserError: there are none.
    """
    paths = [Path(word).expanduser() for word in words]
    if len(paths) == 1 and not (is_image_name(paths[0].name) and paths[0].is_file()):
        return open_set(
            words[0], paths[0], lambda path: open_other_validation(data, path), needs_labels=False
        )
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"--images {printable(path, 150)} is no file: give one dataset or folder, or any "
                "number of image files"
            )
    index = index_samples([(path, 0) for path in paths], ("unknown",), progress=False)
    return EvaluationSet("files", index, is_labelled=False)


def some(images: EvaluationSet, count: int, seed: int) -> EvaluationSet:
    """At most `count` images, chosen at random and in their order."""
    rows = np.sort(epoch_order(len(images.index), seed, 0)[:count])
    return EvaluationSet(images.name, images.index.select(rows), images.is_labelled)


def rows_of(images: EvaluationSet, first: OpenedSubject) -> list[Row]:
    """The images' names and classes, these as the first network's classes are called if it can be.

    Another network's classes are called the same where their names are.
    """
    index, classes = images.index, first.subject.classes
    titles: list[str | None] = [None] * len(index)
    if images.is_labelled:
        try:
            labels = labels_by_name(index, classes, f"the classes of {first.subject.name}")
        except UserError:
            labels, classes = index.labels, index.classes
        names = imagenet.titles(classes)
        titles = [names[label] for label in labels]
    return [Row(short_path(index.store.name(row)), title) for row, title in enumerate(titles)]


def column_of(
    one: OpenedSubject, images: EvaluationSet, question: Question, processes: Processes
) -> Column:
    """One network's predictions and maps.

    Raises:
        UserError: the network takes no such images, has no such class or layer, or an image cannot
            be decoded.
    """
    (model,), (way,) = one.models(processes.device), one.ways
    check_fits(model, way.size)
    targets = _targets(model, images, question.target)
    layer = choose_layer(model.module, way.size, question.layer, model.subject.name)
    pixels: list[npt.NDArray[np.uint8]] = []
    maps: list[Maps] = []
    done = 0
    for batch in _batches(one.config, images.index, processes):
        part = None if targets is None else targets[done : done + len(batch)]
        normalized = normalize_mix(batch, model.mean, model.std, torch.float32)
        maps.append(activation_maps(model.module, normalized, layer, part, question.method))
        pixels.append(batch.cpu().numpy())
        done += len(batch)
    subject = model.subject
    height, width = maps[0].heat.shape[1:]
    facts = {
        "weights": subject.source,
        "model": f"{subject.architecture or 'no name'}, {model.kind}",
        "epoch": "" if subject.epoch is None else f"{subject.epoch:g}",
        "classes": f"{len(subject.classes):,}",
        "layer": f"{layer}, {height} x {width}",
        "images": f"{way.size} px of {EvalGeometry(way.size, way.crop_ratio).resize_px}",
    }
    return Column(
        f"{subject.number} {short_path(subject.source)}",
        {key: printable(value) for key, value in facts.items()},
        imagenet.titles(subject.classes),
        np.concatenate(pixels),
        _joined(maps),
    )


def _batches(config: cfg.Config, index: DatasetIndex, processes: Processes) -> Iterator[Tensor]:
    """The images as an evaluation with this configuration sees them: uint8 [B, H, W, 3] each."""
    batch = min(len(index), config.evaluation.batch_per_device, _BATCH)
    evaluation = config.evaluation.model_copy(update={"batch_per_device": batch})
    config = config.model_copy(update={"evaluation": evaluation})
    samples, loader = eval_loader(config, index, processes)
    with closing(loader), closing(loader.batches(samples.specs())) as batches:
        for loaded in batches:
            yield loaded.images[: loaded.num_valid].contiguous()


def _targets(model: Model, images: EvaluationSet, target: str) -> list[int] | None:
    """The classes whose maps are asked for, by their numbers in this model; None for the likeliest.

    Raises:
        UserError: the model has no such class, or nobody knows the images' labels.
    """
    classes = model.subject.classes
    if target == PREDICTED:
        return None
    if target == LABEL:
        if not images.is_labelled:
            raise UserError(
                "--class label: nobody says the classes of these images; give class folders, or "
                "leave --class out for the likeliest class"
            )
        return [int(label) for label in labels_by_name(images.index, classes, model.whose)]
    if target not in classes:
        raise UserError(
            f"--class {printable(target, 60)} is none of the {len(classes)} classes of "
            f"{model.subject.name}{suggestion(target, classes)}"
        )
    return [classes.index(target)] * len(images.index)


def _joined(parts: Sequence[Maps]) -> Maps:
    return Maps(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("probabilities", "targets", "heat")
        )
    )

"""The rows of the table: several models on one set of images, seen in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dali_rsb.draws.samples import EvalSamples
from dali_rsb.errors import UserError
from dali_rsb.evaluation.metrics import class_results, metrics, metrics_of_answers
from dali_rsb.evaluation.predictions import Batches, Candidate, Predictions, predict
from dali_rsb.evaluation.report import Result, Row, Subject, Way
from dali_rsb.evaluation.sets import EvaluationSet, Questions
from dali_rsb.loader.batch import Channels
from dali_rsb.models.precision import Precision
from dali_rsb.run.processes import Processes


@dataclass(frozen=True)
class Model:
    """One model of a subject: its trained weights or its EMA.

    Attributes:
        subject: the weights.
        kind: see `Row`.
        module, mean, std, precision: see `Candidate`.
    """

    subject: Subject
    kind: str
    module: nn.Module
    mean: Channels
    std: Channels
    precision: Precision

    @property
    def whose(self) -> str:
        """Its classes for messages."""
        return f"the classes of {self.subject.name}"


@dataclass(frozen=True)
class View:
    """One way to see a set's images: their geometry, and who decodes them.

    Attributes:
        samples: the images of this process and their geometry.
        interpolation: filter of the resize.
        loaders: by the name of the decoder, "DALI" and then, perhaps, "Pillow".
    """

    samples: EvalSamples
    interpolation: str
    loaders: Mapping[str, Batches]


def check_fits(model: Model, size_px: int) -> None:
    """Try a model on one black image.

    Raises:
        UserError: it takes no images of this size, or has other outputs than classes.
    """
    device = model.precision.device
    images = torch.zeros(1, 3, size_px, size_px, device=device)
    name = model.subject.name
    try:
        with torch.no_grad(), model.precision.autocast():
            logits = model.module(images.to(model.precision.input_dtype))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(
            f"{name} takes no images of {size_px} px ({reason}): give another --size"
        ) from error
    if logits.ndim != 2 or logits.shape[1] != len(model.subject.classes):
        raise UserError(
            f"{name} has {len(model.subject.classes)} class names and outputs of shape "
            f"{tuple(logits.shape[1:])}: give the name of output i in line i by --classes FILE"
        )


def rows_of(
    images: EvaluationSet, models: Sequence[Model], view: View, flip: bool, processes: Processes
) -> list[Row]:
    """Evaluate models on a set, each image decoded once by each decoder.

    Args:
        flip: see `Candidate`.

    Raises:
        UserError: a class of the images is none of a model's, or an image cannot be decoded.
    """
    questions = [images.questions(model.subject.classes, model.whose) for model in models]
    candidates = [
        Candidate(model.module, model.mean, model.std, model.precision, asked.choices, flip)
        for model, asked in zip(models, questions, strict=True)
    ]
    geometry, rows = view.samples.geometry, []
    by_dali: list[list[Predictions]] | None = None
    for decoder, loader in view.loaders.items():
        said = predict(candidates, view.samples, loader, processes)
        for i, (model, asked) in enumerate(zip(models, questions, strict=True)):
            way = Way(
                geometry.size_px,
                geometry.resize_px,
                view.interpolation,
                decoder,
                str(model.precision.input_dtype).removeprefix("torch."),
                flip,
            )
            for place, result in enumerate(_results(images, model, asked, said[i])):
                same = None
                if by_dali is not None and place == 0:
                    same = int(np.sum(by_dali[i][0].top[:, 0] == said[i][0].top[:, 0]))
                number = model.subject.number
                rows.append(Row(number, model.kind, images.name, way, result, same))
        by_dali = said
    return rows


def _results(
    images: EvaluationSet, model: Model, asked: Questions, predictions: Sequence[Predictions]
) -> list[Result]:
    """One model's results: among all classes, among the present ones, and by ReaL's labels."""
    num_classes, results = len(model.subject.classes), []
    if images.is_labelled:
        for choice, its_predictions in zip(asked.choices, predictions, strict=True):
            figures = metrics(its_predictions, asked.labels)
            by_class = class_results(its_predictions, asked.labels)
            if choice.among is None:
                results.append(Result("all", num_classes, figures, by_class))
            else:
                results.append(Result("present", len(choice.among), figures, by_class))
    if asked.answers is not None:
        figures = metrics_of_answers(predictions[0], asked.answers)
        results.append(Result("real", num_classes, figures))
    return results

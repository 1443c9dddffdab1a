"""Which classes a run's best weights confuse: from an evaluation on its own validation images."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dali_rsb.draws.samples import BatchSpec
from dali_rsb.evaluation import imagenet
from dali_rsb.evaluation.metrics import ClassResult, Metrics, class_results, metrics
from dali_rsb.evaluation.predictions import Batches, Candidate, Choice, Predictions, predict
from dali_rsb.evaluation.report import Subject
from dali_rsb.evaluation.rows import check_fits
from dali_rsb.evaluation.sets import labels_by_name
from dali_rsb.loader.batch import Batch
from dali_rsb.loader.pillow import eval_transform
from dali_rsb.run.processes import Processes
from dali_rsb.system.names import short_path
from dali_rsb.training.assembly import eval_loader
from dali_rsb.training.datasets import open_validation_as_found
from dali_rsb.training.subjects import open_subjects

NUM_WORST = 20
_NUM_EXAMPLES = 12
_MAX_SIDE_PX = 160  # of an example on the page


@dataclass(frozen=True, eq=False)
class Example:
    """A wrong answer: the image as the network saw it, its name, both classes, how sure it was."""

    image: Image.Image
    name: str
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True, eq=False)
class ClassErrors:
    """What came out.

    Attributes:
        subject: the weights.
        kind: "model" or "EMA".
        images: where they lie, in words.
        titles: names of the classes, for people.
        metrics: over all images.
        worst: the classes with the lowest accuracies that are not 100 %, at most 20, worst first.
        confusion: int64 [n, n + 1] of these n: images of the class of the row that get the class of
            the column; the last column is all other classes.
        examples: wrong answers of the worst classes.
    """

    subject: Subject
    kind: str
    images: str
    titles: Sequence[str]
    metrics: Metrics
    worst: Sequence[ClassResult]
    confusion: npt.NDArray[np.int64]
    examples: Sequence[Example]


def class_errors(folder: Path, processes: Processes) -> ClassErrors:
    """Evaluate the best checkpoint of a run on the run's validation images.

    Raises:
        UserError: there is no checkpoint, or it is damaged, or its images are gone or damaged.
    """
    # Its precision was for the device that it was trained on.
    (one,) = open_subjects([str(folder)], "judged", ["run.amp=auto"])
    (model,) = one.models(processes.device)
    index = open_validation_as_found(one.config.data)
    labels = labels_by_name(index, one.subject.classes, model.whose)
    check_fits(model, one.config.evaluation.size)
    samples, loader = eval_loader(one.config, index, processes)
    candidate = Candidate(model.module, model.mean, model.std, model.precision, [Choice(labels)])
    with closing(loader):
        shown = _Shown(loader, samples.layout.num_batches, folder.name)
        ((said,),) = predict([candidate], samples, shown, processes)
    results = sorted(class_results(said, labels), key=lambda one: one.right / one.images)
    worst = [result for result in results if result.right < result.images][:NUM_WORST]
    chosen = _example_rows(said, labels, worst)
    examples = []
    for row in chosen:
        with index.open(row) as file, Image.open(file) as image:
            seen = eval_transform(
                image.convert("RGB"), samples.geometry, one.config.evaluation.interpolation
            )
        seen.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
        name = short_path(index.store.name(row))
        predicted = int(said.top[row, 0])
        examples.append(
            Example(seen, name, int(labels[row]), predicted, float(said.confidence[row]))
        )
    return ClassErrors(
        one.subject,
        model.kind,
        f"{len(index):,} images of {short_path(index.origin)}",
        imagenet.titles(one.subject.classes),
        metrics(said, labels),
        worst,
        _confusion(said, labels, [result.label for result in worst]),
        examples,
    )


def _confusion(
    said: Predictions, labels: npt.NDArray[np.int64], chosen: Sequence[int]
) -> npt.NDArray[np.int64]:
    """See `ClassErrors.confusion`."""
    place = {label: number for number, label in enumerate(chosen)}
    counts = np.zeros((len(chosen), len(chosen) + 1), np.int64)
    for label, predicted in zip(labels.tolist(), said.top[:, 0].tolist(), strict=True):
        if label in place:
            counts[place[label], place.get(predicted, len(chosen))] += 1
    return counts


def _example_rows(
    said: Predictions, labels: npt.NDArray[np.int64], worst: Sequence[ClassResult]
) -> list[int]:
    """Images to show: the surest wrong answers of each of the worst classes, in turns."""
    is_wrong = said.top[:, 0] != labels
    queues = []
    for result in worst:
        rows = np.flatnonzero(is_wrong & (labels == result.label))
        queues.append(rows[np.argsort(-said.confidence[rows], kind="stable")].tolist())
    turns = max(map(len, queues), default=0)
    ordered = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return ordered[:_NUM_EXAMPLES]


class _Shown:
    """Batches with a progress bar, where stderr is a terminal."""

    def __init__(self, batches: Batches, total: int, name: str) -> None:
        self._batches, self._total, self._name = batches, total, name

    def batches(self, specs: Iterable[BatchSpec]) -> Generator[Batch, None, None]:
        with closing(self._batches.batches(specs)) as batches:
            yield from tqdm(
                batches, f"evaluating {self._name}", self._total, unit="batch", disable=None
            )

"""The evaluation of a run: which images, by which loader, in which precision."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from torch import nn

from dali_rsb.draws.samples import EvalSamples
from dali_rsb.evaluation.accuracy import Accuracy, evaluate
from dali_rsb.loader.batch import Batch
from dali_rsb.loader.loader import Loader
from dali_rsb.models.precision import Precision
from dali_rsb.run.processes import Processes


@dataclass(frozen=True)
class Validation:
    """All that an evaluation takes beside the models.

    Attributes:
        samples: the validation images of this process.
        loader: loads them.
        processes: those that share the images.
        precision: of the forward passes.
        mean, std: of the normalisation.
    """

    samples: EvalSamples
    loader: Loader
    processes: Processes
    precision: Precision
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def evaluate(
        self, models: Sequence[nn.Module], check: Callable[[], None] | None = None
    ) -> list[Accuracy]:
        """Accuracy of each model over all images, each counted once; all processes must call it.

        Args:
            check: called before each batch; what it raises ends the evaluation.
        """
        batches = self._checked(check)
        try:
            results = evaluate(models, batches, self.processes, self.precision, self.mean, self.std)
        finally:
            batches.close()
        num_images = len(self.samples.index)
        assert all(result.count == num_images for result in results), (results, num_images)
        return results

    def _checked(self, check: Callable[[], None] | None) -> Generator[Batch, None, None]:
        batches = self.loader.batches(self.samples.specs())
        with closing(batches):
            for batch in batches:
                if check is not None:
                    check()
                yield batch

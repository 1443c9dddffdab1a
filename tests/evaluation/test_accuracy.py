"""The evaluation of a run, against the same figures by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dali_rsb.evaluation.accuracy import evaluate
from dali_rsb.evaluation.validation import Validation
from dali_rsb.loader.batch import Batch
from dali_rsb.models.precision import choose_precision
from dali_rsb.run.processes import Processes

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CPU = Processes(torch.device("cpu"))
CLASSES, VALID, BATCH = 9, 5, 8


class _Ranks(nn.Module):
    """Logits whose class number `r` is ranked at place `r`; notes what it is given."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(-torch.arange(CLASSES, dtype=torch.float32))
        self.seen, self.modes = [], []

    def forward(self, images):
        self.seen.append(images)
        self.modes.append(self.training)
        return self.logits.expand(len(images), -1)


def _batches():
    """Right classes at all places; rows that fill the second batch up would all be right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(2)[: BATCH + VALID]
    for start, valid in ((0, BATCH), (BATCH, VALID)):
        images = torch.randint(256, (BATCH, 4, 4, 3), generator=generator, dtype=torch.uint8)
        padded = F.pad(labels[start : start + valid], (0, BATCH - valid))
        yield Batch(images, padded, valid)


def test_hits_losses_and_images_are_those_counted_by_hand():
    model, other = _Ranks(), _Ranks()
    other.logits.data *= -1  # the last class comes first
    model.train()
    other.eval()
    precision = choose_precision("none", CPU.device)
    results = evaluate([model, other], _batches(), CPU, precision, MEAN, STD)
    labels = np.concatenate([batch.labels[: batch.num_valid].numpy() for batch in _batches()])
    for result, net, places in ((results[0], model, labels), (results[1], other, 8 - labels)):
        assert result.count == len(labels) == 13
        assert result.top1 == pytest.approx(100 * np.mean(places < 1))
        assert result.top5 == pytest.approx(100 * np.mean(places < 5))
        log_shares = net.logits.detach().log_softmax(0).numpy()
        assert result.loss == pytest.approx(-log_shares[labels].mean(), rel=1e-6)
        assert net.modes == [False, False]
    assert results[0].top5 != results[1].top5
    assert (model.training, other.training) == (True, False)


def test_images_are_normalised_as_the_run_says():
    model = _Ranks()
    samples = type("Samples", (), {"index": range(13), "specs": lambda self: None})()
    loader = type("Loader", (), {"batches": lambda self, specs: (b for b in _batches())})()
    precision = choose_precision("none", CPU.device)
    checks = []
    validation = Validation(samples, loader, CPU, precision, MEAN, STD)
    (result,) = validation.evaluate([model], lambda: checks.append(1))
    assert (result.count, len(checks)) == (13, 2)
    for seen, batch in zip(model.seen, _batches(), strict=True):
        pixels = batch.images.permute(0, 3, 1, 2) / 255
        by_hand = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(seen, by_hand, atol=1e-5, rtol=1e-5)

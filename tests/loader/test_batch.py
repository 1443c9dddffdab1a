"""From a decoded batch to what a model takes: mixing, erasing and labels, in any division."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.kernels.mix import normalize_mix
from dali_rsb.loader.batch import Batch, BatchMixing

SIZE_PX, GLOBAL_BATCH = 24, 32
NORMALIZATION = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3), torch.float32)


def draw(positions, erasing=None, mixing=None):
    """The batch at some positions of an epoch whose images are made up."""
    generator = torch.Generator().manual_seed(0)
    shape = (GLOBAL_BATCH, SIZE_PX, SIZE_PX, 3)
    images = torch.randint(0, 256, shape, generator=generator).byte()
    rows = np.asarray(positions)
    mixed = None
    if mixing is not None:
        drawn = mixing.draw(1, 2, rows, SIZE_PX)
        mixed = BatchMixing(*(torch.from_numpy(values) for values in vars(drawn).values()))
    boxes = None if erasing is None else erasing.draw(1, 2, positions, SIZE_PX)
    return Batch(images[rows], torch.from_numpy(rows % 7), len(rows), mixed, boxes)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_does_not_depend_on_how_an_update_is_shared_out(mode):
    policy = ErasingPolicy(0.7, mode, max_count=3)
    whole = draw(range(GLOBAL_BATCH), policy).mixed(*NORMALIZATION).images
    assert not torch.equal(whole, draw(range(GLOBAL_BATCH)).mixed(*NORMALIZATION).images)
    for processes in (2, 4):
        for first in range(processes):
            spread = range(first, GLOBAL_BATCH, processes)
            got = draw(spread, policy).mixed(*NORMALIZATION).images
            assert torch.equal(got, whole[spread.start :: processes])
    together = range(8, 16)
    assert torch.equal(draw(together, policy).mixed(*NORMALIZATION).images, whole[8:16])


def test_noise_differs_from_box_to_box():
    images = draw(range(GLOBAL_BATCH), ErasingPolicy(1.0, "rand", max_count=3))
    assert len(set(images.erasing.seeds.tolist())) == len(images.erasing.seeds)
    assert len(images.erasing.seeds) > GLOBAL_BATCH


def test_erasing_follows_mixing_and_leaves_the_labels():
    mixing = MixPolicy(1.0, 0.0)
    batch = draw(range(GLOBAL_BATCH), ErasingPolicy(0.5, "const"), mixing)
    plain = replace(batch, erasing=None).mixed(*NORMALIZATION)
    mixed = batch.mixed(*NORMALIZATION)
    inside = torch.zeros(GLOBAL_BATCH, SIZE_PX, SIZE_PX, dtype=torch.bool)
    boxes = zip(batch.erasing.rows, batch.erasing.boxes, strict=True)
    for row, (top, bottom, left, right) in boxes:
        inside[row, top:bottom, left:right] = True
    assert 0 < len(set(batch.erasing.rows)) < GLOBAL_BATCH
    assert torch.equal(mixed.images, plain.images.masked_fill(inside[:, None], 0.0))
    for name in ("labels", "partner_labels", "lam"):
        assert torch.equal(getattr(mixed, name), getattr(plain, name))


def test_labels_go_with_the_partners():
    batch = draw(range(GLOBAL_BATCH), mixing=MixPolicy(1.0, 1.0, mode="pair"))
    mixing, mixed = batch.mixing, batch.mixed(*NORMALIZATION)
    drawn = (mixing.partner, mixing.pixel_lam, mixing.box)
    assert torch.equal(mixed.images, normalize_mix(batch.images, *NORMALIZATION, *drawn))
    assert torch.equal(mixed.partner_labels, batch.labels[mixing.partner])
    assert torch.equal(mixed.lam, mixing.lam)
    plain = replace(batch, mixing=None).mixed(*NORMALIZATION)
    assert torch.equal(plain.partner_labels, batch.labels)
    assert (plain.lam == 1).all()


def test_the_types_of_batches_need_no_dali():
    code = "import sys, dali_rsb.loader.batch; print('nvidia.dali' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"

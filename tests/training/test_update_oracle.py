"""One whole optimizer update of the trainer against the same update made of timm's parts."""

from unittest.mock import patch

import pytest
import timm
import timm.data.mixup
import timm.loss
import timm.optim
import timm.utils
import torch
from conftest import ROOT

from benchmarks import optimizer as optimizer_benchmark
from dali_rsb.config import load_config
from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.loader.batch import Batch, BatchMixing
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer

BATCH, SIZE_PX, CLASSES = 16, 64, 10


def _batch(generator, lam, box):
    is_cutmix = box[1] > box[0]
    return Batch(
        images=torch.randint(0, 256, (BATCH, SIZE_PX, SIZE_PX, 3), generator=generator).byte(),
        labels=torch.randint(0, CLASSES, (BATCH,), generator=generator),
        num_valid=BATCH,
        mixing=BatchMixing(
            partner=torch.arange(BATCH - 1, -1, -1),  # timm pairs first with last
            pixel_lam=torch.full((BATCH,), 1.0 if is_cutmix else lam),
            box=torch.tensor([box] * BATCH, dtype=torch.int32),
            lam=torch.full((BATCH,), lam),
        ),
    )


def _timm_loss(model, batch, lam, box):
    mixup = timm.data.mixup.Mixup(
        mixup_alpha=0.1, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES
    )
    images = batch.images.permute(0, 3, 1, 2).contiguous().float() / 255
    images = (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[
        :, None, None
    ]
    is_cutmix = box[1] > box[0]
    with (
        patch.object(mixup, "_params_per_batch", return_value=(lam, is_cutmix)),
        patch("timm.data.mixup.cutmix_bbox_and_lam", return_value=(box, lam)),
    ):
        images, targets = mixup(images, batch.labels)
    return timm.loss.BinaryCrossEntropy(target_threshold=0.2)(model(images), targets)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_updates_equal_timms(digits, accumulation):
    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        [
            f"data.digits={digits}",
            f"optimizer.batch_size={BATCH * accumulation}",
            f"run.batch_per_device={BATCH}",
            "optimizer.lr=8e-3",
            "schedule.epochs=100",
            "ema.decay=0.9",
            "run.device=cpu",
        ],
    )
    trainer = build_trainer(config, Processes(torch.device("cpu")))
    step, validation = trainer.step, trainer.validation
    assert (validation.mean, validation.std) == (IMAGENET_MEAN, IMAGENET_STD)
    step.model.train()

    model = timm.create_model("resnet18", num_classes=CLASSES)
    model.load_state_dict(step.model.state_dict())
    ema = timm.utils.ModelEmaV3(model, decay=0.9)
    groups = timm.optim.param_groups_weight_decay(model, config.optimizer.weight_decay)
    optimizer = timm.optim.Lamb(groups, lr=8e-3, weight_decay=0.0)
    model.train()

    generator = torch.Generator().manual_seed(0)
    mixes = [(0.3, (0, 0, 0, 0)), (1 - 30 * 24 / SIZE_PX**2, (10, 40, 0, 24))]
    for update in range(4):
        chosen = [mixes[(update + micro) % 2] for micro in range(accumulation)]
        batches = [_batch(generator, *mix) for mix in chosen]

        trainer.schedule.step(update)
        loss = step.update(iter(batches)).item()

        for group in optimizer.param_groups:
            group["lr"] = trainer.schedule.lr_at(update)
        expected = 0.0
        for batch, mix in zip(batches, chosen, strict=True):
            micro_loss = _timm_loss(model, batch, *mix) / accumulation
            micro_loss.backward()
            expected += micro_loss.item()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=update + 1)

        assert loss == pytest.approx(expected, abs=1e-6, rel=1e-5)
    theirs = model.state_dict()
    for name, ours in step.model.state_dict().items():
        torch.testing.assert_close(ours, theirs[name], atol=1e-5, rtol=1e-5)
    theirs = ema.module.state_dict()
    for name, ours in step.ema.state_dict().items():
        torch.testing.assert_close(ours, theirs[name], atol=1e-5, rtol=1e-5)


def test_the_benchmarks_candidates_do_the_same_work():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    for p in model.parameters():
        p.grad = torch.randn_like(p) * optimizer_benchmark.GRADIENT_SIZE
    other = optimizer_benchmark._copy(model)
    assert all(
        p.grad is q.grad for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )
    gradients = [p.grad.clone() for p in model.parameters()]
    updates = [
        optimizer_benchmark._update(model, "foreach"),
        optimizer_benchmark._timm_update(other),
    ]
    start = [p.detach().clone() for p in model.parameters()]
    for update in updates * 3:
        update()
    for p, q, old, gradient in zip(
        model.parameters(), other.parameters(), start, gradients, strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        assert not torch.equal(p, old)
        assert torch.equal(p.grad, gradient), "one candidate leaves other gradients to the next"

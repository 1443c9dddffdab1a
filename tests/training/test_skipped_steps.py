"""Updates with inf or NaN in their gradients: skipped, counted, and too many in a row an error."""

import csv
import json
import math

import pytest
import torch
from conftest import ROOT
from torch import nn

from dali_rsb.config import load_config
from dali_rsb.errors import UserError
from dali_rsb.loader.batch import Batch
from dali_rsb.models.precision import Precision
from dali_rsb.optim import LossScaler, ModelEma, create_optimizer, factory
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep, _Rollback

CPU = Processes(torch.device("cpu"))
OPTIMIZERS = ["lamb", "sgd", "adamw", "fused sgd", "fused adamw"]


def make_step(name="lamb", dtype=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    kind = name.removeprefix("fused ")
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    with pytest.MonkeyPatch.context() as patch:
        if kind != name:  # as on a GPU
            patch.setattr(factory, "_FUSED_DEVICES", ("cpu",))
        optimizer = create_optimizer(model, kind, lr=1e-2, weight_decay=0.05, **momentum)
    if kind != "lamb":
        assert bool(optimizer.defaults["fused"]) == (kind != name)
    return TrainStep(
        model,
        create_loss("bce", 0.0, None),
        optimizer,
        ModelEma(model, decay=0.5),
        Precision(torch.device("cpu"), dtype),
        CPU,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        **{"accumulation": 1, **options},
    )


def batches(count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randint(0, 256, (4, 8, 8, 3), generator=generator).byte()
        labels = torch.randint(0, 3, (4,), generator=generator)
        yield Batch(images=images, labels=labels, num_valid=4, mixing=None)


def spoil(step, bad):
    """Make the next backward pass put `bad` into one gradient."""
    weight = step.model[0].weight

    def hook(grad):
        handle.remove()
        return grad.index_fill(0, torch.tensor([1]), bad)

    handle = weight.register_hook(hook)


def tensors_of(step):
    """All that a skipped update must not change."""
    found = [*step.model.parameters()]
    found += [buffer for buffer in step.model.buffers() if buffer.is_floating_point()]
    for state in step.optimizer.state.values():
        found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    found += [group["step"] for group in step.optimizer.param_groups if "step" in group]
    return [tensor.detach().clone() for tensor in found]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_update_changes_nothing(name, dtype, bad):
    step = make_step(name, dtype)
    step.update(batches(seed=1))
    assert step.skipped == 0
    before = tensors_of(step)
    spoil(step, bad)
    step.update(batches(seed=2))
    assert step.skipped == 1
    assert step.updates_done == 2
    for a, b in zip(before, tensors_of(step), strict=True):
        assert torch.equal(a, b)
    step.update(batches(seed=3))
    assert step.skipped == 0
    assert not torch.equal(before[0], step.model[0].weight)


@pytest.mark.parametrize("clip_grad", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_a_first_skipped_update_had_not_been(name, clip_grad):
    plain, spoilt = (make_step(name, clip_grad=clip_grad) for _ in range(2))
    spoil(spoilt, math.nan)
    spoilt.update(batches(seed=9))
    for seed in range(3):
        plain.update(batches(seed=seed))
        spoilt.update(batches(seed=seed))
    for a, b in zip(tensors_of(plain), tensors_of(spoilt), strict=True):
        torch.testing.assert_close(a, b)


def test_one_bad_micro_batch_skips_the_whole_update():
    step = make_step(accumulation=2)
    step.update(batches(2))
    before = tensors_of(step)
    spoil(step, math.inf)
    step.update(batches(2))
    assert step.skipped == 1
    for a, b in zip(before, tensors_of(step), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_grad", [None, 1e-2])
def test_a_scaled_update_equals_a_plain_one(name, clip_grad):
    plain, scaled = (make_step(name, clip_grad=clip_grad) for _ in range(2))
    scaled.scaler = LossScaler(torch.device("cpu"))
    for seed in range(3):
        plain.update(batches(seed=seed))
        scaled.update(batches(seed=seed))
    # The convolution's bias stands before a norm layer: its gradients are rounding errors.
    for (key, a), b in zip(
        plain.model.state_dict().items(), scaled.model.state_dict().values(), strict=True
    ):
        if key != "0.bias":
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_norm_statistics_survive_a_forward_pass_that_overflows():
    step = make_step()
    step.update(batches(seed=1))
    before = tensors_of(step)
    with torch.no_grad():
        step.model[0].weight.view(-1)[0] = math.inf
    step.update(batches(seed=2))
    assert step.skipped == 1
    assert all(torch.isfinite(buffer).all() for buffer in step.model.buffers())
    with torch.no_grad():
        step.model[0].weight.copy_(before[0])
    for a, b in zip(before, tensors_of(step), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_rollback(flag):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(2).double())
    model[0].running_mean.copy_(torch.tensor([-0.0, math.inf, 1.5]))
    rollback = _Rollback(model)
    old = [buffer.clone() for buffer in model.buffers()]
    rollback.save()
    model[0].running_mean.copy_(torch.tensor([math.nan, 2.0, -0.0]))
    model[1].running_var.fill_(math.nan)
    new = [buffer.clone() for buffer in model.buffers()]
    rollback.restore_if(torch.tensor(flag))
    for buffer, expected in zip(model.buffers(), old if flag else new, strict=True):
        bits = {4: torch.int32, 8: torch.int64}[buffer.itemsize]
        assert torch.equal(buffer.view(bits), expected.view(bits))


# The loss scale


def test_the_scale_moves_like_grad_scalers():
    ours = LossScaler(torch.device("cpu"), init_scale=256.0, growth_interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
    p = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    for skipped in (1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0):
        theirs.scale(p.sum() * (math.inf if skipped else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(torch.tensor(float(skipped)))
        assert ours.state_dict() == theirs.state_dict()
        restored = LossScaler(torch.device("cpu"))
        restored.load_state_dict(theirs.state_dict())
        assert restored.state_dict() == ours.state_dict()


def test_a_disabled_scale_and_an_empty_state():
    off = LossScaler(torch.device("cpu"), enabled=False)
    loss = torch.tensor(3.0)
    assert off.scale(loss) is loss
    off.update(torch.tensor(1.0))
    assert off.state_dict() == {}
    on = LossScaler(torch.device("cpu"))
    on.load_state_dict(off.state_dict())  # a run in bfloat16 resumed in float16
    assert on.state_dict()["scale"] == 2**16
    assert on.scale(loss) == 3 * 2**16


def test_float16_finds_its_scale_and_trains():
    step = make_step("lamb", torch.float16)
    step.scaler = LossScaler(torch.device("cpu"), init_scale=2.0**40)
    flags = []
    for seed in range(40):
        step.update(batches(seed=seed))
        flags.append(int(step.skipped))
    assert 2 < sum(flags) < 40
    assert flags[-1] == 0
    assert flags == sorted(flags, reverse=True)  # the search comes first
    assert float(step.optimizer.param_groups[0]["step"]) == 40 - sum(flags)


# Counting


def test_meter_leaves_out_and_counts_skipped_updates():
    meter = Meter(CPU, images_per_update=4)
    for loss, skipped in ((1.0, 0), (math.nan, 1), (3.0, 0), (7.0, 1), (math.inf, 1)):
        meter.add(torch.tensor(loss), torch.tensor(float(skipped)))
    reading = meter.read()
    assert (reading.loss, reading.updates) == (2.0, 5)
    assert (reading.skipped, reading.skipped_in_row) == (3, 2)
    meter.add(torch.tensor(math.nan), torch.tensor(1.0))
    reading = meter.read()
    assert math.isnan(reading.loss)
    assert (reading.skipped, reading.skipped_in_row) == (1, 3)  # reaches back
    meter.add(torch.tensor(5.0), torch.tensor(0.0))
    reading = meter.read()
    assert (reading.loss, reading.skipped, reading.skipped_in_row) == (5.0, 0, 0)
    epoch = meter.read_epoch()
    assert (epoch.loss, epoch.skipped, epoch.updates) == (pytest.approx(3.0), 4, 7)


def test_meter_counts_replaced_images_across_a_checkpoint():
    meter = Meter(CPU, images_per_update=4)
    images, labels = torch.zeros(4, 1, 1, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    batches = [Batch(images, labels, 4, replaced=number) for number in (2, 0, 1, 5)]
    taken = meter.timed(iter(batches))
    for _ in range(3):
        next(taken)
        meter.add(torch.tensor(1.0), torch.tensor(0.0))
    resumed = Meter(CPU, images_per_update=4)
    resumed.load_state_dict(meter.state_dict(), [meter.partial_sums()])
    for each in (meter, resumed):
        assert each.read().replaced == 3
    next(taken)
    meter.add(torch.tensor(1.0), torch.tensor(0.0))
    of_earlier_version = meter.partial_sums()[:3]
    resumed.load_state_dict(meter.state_dict(), [of_earlier_version])
    assert (meter.read().replaced, resumed.read().replaced) == (5, 0)


def test_meter_finds_the_first_loss_that_is_not_finite_on_any_rank():
    class OtherRank(Processes):
        def sum(self, tensor):
            return tensor * 2

        def gather(self, value):
            return [value, 1]  # its second loss was not finite

    pair = OtherRank(CPU.device, world_size=2)
    for last, processes, finite in (
        *((math.inf, CPU, 4), (math.nan, CPU, 4), (1.0, CPU, 5)),
        *((math.inf, pair, 1), (1.0, pair, 5)),
    ):
        meter = Meter(processes, images_per_update=4)
        for loss, skipped in ((2.0, 0), (math.nan, 1), (3.0, 0), (4.0, 0), (last, 0)):
            meter.add(torch.tensor(loss), torch.tensor(float(skipped)))
        assert meter.read().finite == finite
        meter.add(torch.tensor(1.0), torch.tensor(0.0))
        assert meter.read().finite == 1  # of the next interval


@pytest.fixture
def trainer_with(digits):
    def build(*overrides, spoilt=(), resume=None):
        """A small run whose updates number `spoilt` (from 0) get a NaN gradient."""
        config = load_config(
            ROOT / "configs" / "quickstart.yaml",
            [
                f"data.digits={digits}",
                "augment.size=16",
                "evaluation.size=16",
                "optimizer.batch_size=96",
                "run.batch_per_device=48",
                "schedule.epochs=1",
                "schedule.warmup_epochs=0",
                "data.threads=1",
                "run.device=cpu",
                "run.log_every=2",
                "run.max_steps=7",
                "run.warm_up=false",
                *overrides,
            ],
        )
        trainer = build_trainer(config, CPU, resume)
        weight = next(trainer.step.model.parameters())
        weight.register_hook(
            lambda grad: grad * math.nan if trainer.step.updates_done in spoilt else grad
        )
        return trainer

    return build


def test_a_run_goes_on_after_skipped_updates_and_reports_them(trainer_with, tmp_path, caplog):
    caplog.set_level("INFO", logger="dali_rsb")
    # Four in all, but not in a row.
    trainer_with("run.max_skipped_steps=4", spoilt=(1, 2, 3, 5)).run(tmp_path)
    updates = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    skipped = [line.get("skipped") for line in updates if line["kind"] == "update"]
    assert skipped == [1, 2, 1, None]
    losses = [line["loss"] for line in updates if line["kind"] == "update"]
    assert losses[1] is None  # both updates were skipped
    assert all(loss > 0 for loss in (losses[0], losses[2], losses[3]))
    row = next(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert row["skipped"] == "4"
    assert float(row["train_loss"]) > 0
    log = (tmp_path / "train.log").read_text()
    assert "skipped 2" in log
    assert log.count("LAMB runs on PyTorch's foreach operations") == 1
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["updates_done"] == 7
    assert [float(group["step"]) for group in state["optimizer"]["param_groups"]] == [3.0, 3.0]


def test_too_many_skipped_updates_in_a_row_stop_the_run(trainer_with, tmp_path):
    trainer = trainer_with(
        "run.max_skipped_steps=3", "run.checkpoint_every=2", spoilt=(2, 3, 4, 5, 6)
    )
    with pytest.raises(UserError) as caught:
        trainer.run(tmp_path)
    message = str(caught.value)  # the row began before the last log line
    assert "the last 4 updates before update 6 had inf or NaN" in message
    assert "run.max_skipped_steps=3" in message
    assert f"the last good checkpoint is {tmp_path / 'last.pt'}" in message
    assert message.endswith(f"images of the first: dali-rsb replay {tmp_path} --update 3")
    # It is good, though it was written in between: skipped updates leave the weights alone.
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(t.isfinite().all() for t in state["model"].values() if t.is_floating_point())
    resumed = trainer_with("run.max_steps=5", resume=tmp_path / "last.pt")
    resumed.run(tmp_path)
    assert resumed.step.updates_done == 5

"""Weight averaging against timm's ModelEmaV3."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from dali_rsb.optim import ModelEma, unwrap_model


class Tied(nn.Module):
    """Batch norm, a buffer outside the state dict and a weight that stands in two places."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.twin = nn.Conv2d(3, 4, 3, bias=False)
        self.twin.weight = self.conv.weight
        self.register_buffer("fixed", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.twin(x)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def train_step(model, step):
    """Move weights and batch-norm statistics, deterministically."""
    generator = torch.Generator().manual_seed(step)
    model(torch.randn(4, 3, 6, 6, generator=generator))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("warmup", ["none", "timm"])
@pytest.mark.parametrize("decay", [0.9, 0.9998])
def test_equals_timm(warmup, decay):
    model = make_model()
    ours = ModelEma(model, decay=decay, warmup=warmup)
    theirs = ModelEmaV3(model, decay=decay, use_warmup=warmup == "timm")
    for step in range(1, 21):
        train_step(model, step)
        ours.update(model, step)
        theirs.update(model, step)
    state, oracle = ours.state_dict(), theirs.module.state_dict()
    assert list(state) == list(oracle) == list(model.state_dict())
    for name, value in oracle.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert ours.module[1].num_batches_tracked == 20
    assert not torch.equal(state["0.weight"], model.state_dict()["0.weight"])


def test_decay_golden_values():
    ema = ModelEma(make_model(), decay=0.9998, warmup="timm")
    golden = {1: 0.0, 2: 0.370039, 3: 0.519250, 10: 0.784557, 1000: 0.99, 31600: 0.998999}
    for step, decay in golden.items():
        assert ema.decay_at(step) == pytest.approx(decay, abs=1e-6)
    assert ema.decay_at(1_000_000) == 0.9998
    plain = ModelEma(make_model(), decay=0.9998)
    assert [plain.decay_at(step) for step in (0, 1, 2, 1000)] == [0.0, 0.0, 0.9998, 0.9998]


def test_decay_with_tensorflow_warmup():
    ema = ModelEma(make_model(), decay=0.9999, warmup="tf")
    assert ema.decay_at(1) == pytest.approx(2 / 11)
    assert ema.decay_at(89_989) < 0.9999
    assert ema.decay_at(89_991) == 0.9999


def test_decay_warmup_parameters():
    ema = ModelEma(make_model(), decay=0.99, warmup="timm", warmup_gamma=2.0, warmup_power=0.75)
    oracle = ModelEmaV3(
        make_model(), decay=0.99, use_warmup=True, warmup_gamma=2.0, warmup_power=0.75
    )
    for step in (1, 2, 5, 100, 10_000):
        assert ema.decay_at(step) == oracle.get_decay(step)


def test_first_update_copies_the_model():
    model = make_model()
    ema = ModelEma(model)
    train_step(model, 1)
    ema.update(model, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(ema.state_dict()[name], value)


def test_average_is_a_frozen_copy_in_evaluation_mode():
    model = make_model().to(memory_format=torch.channels_last).train()
    ema = ModelEma(model)
    assert not any(module.training for module in ema.module.modules())
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    train_step(model, 1)
    ema.update(model, 2)
    assert ema.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert ema.module[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_tied_weight_is_averaged_once():
    model = Tied()
    ema = ModelEma(model, decay=0.5)
    before = ema.module.conv.weight.clone()
    with torch.no_grad():
        model.conv.weight.add_(1.0)
    ema.update(model, 2)
    torch.testing.assert_close(ema.module.conv.weight.data, before + 0.5)
    assert ema.module.twin.weight is ema.module.conv.weight


def test_buffer_outside_the_state_dict_is_left_alone():
    model = Tied()
    ema = ModelEma(model, decay=0.5)
    model.fixed.fill_(7.0)
    ema.update(model, 1)
    assert torch.equal(ema.module.fixed, torch.ones(2))


class DataParallelStandIn(nn.parallel.DistributedDataParallel):
    """Has DDP's type and structure, and needs no process group."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


WRAPPERS = {
    "plain": lambda model: model,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DataParallelStandIn,
    "compile": torch.compile,
    "DDP of compile": lambda model: DataParallelStandIn(torch.compile(model)),
    "compile of DDP": lambda model: torch.compile(DataParallelStandIn(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("wrap_first", [False, True])
def test_wrapped_models(wrapper, wrap_first):
    model = make_model()
    wrapped = WRAPPERS[wrapper](model)
    assert unwrap_model(wrapped) is model
    ema = ModelEma(wrapped if wrap_first else model, decay=0.5)
    oracle = ModelEma(model, decay=0.5)
    for step in range(1, 4):
        train_step(model, step)
        ema.update(wrapped, step)
        oracle.update(model, step)
    assert type(ema.module) is nn.Sequential
    assert list(ema.state_dict()) == list(model.state_dict())
    for name, value in oracle.state_dict().items():
        assert torch.equal(ema.state_dict()[name], value)


def test_a_submodule_named_module_is_not_unwrapped():
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    assert unwrap_model(model) is model


def test_follows_tensors_that_are_replaced_in_the_model():
    model = make_model()
    ema = ModelEma(model, decay=0.5)
    model[1].running_mean = torch.full((4,), 3.0)  # as model.to(...) does with buffers
    model[3].weight = nn.Parameter(torch.full_like(model[3].weight, 5.0))
    ema.update(model, 1)
    assert torch.equal(ema.module[1].running_mean, torch.full((4,), 3.0))
    assert (ema.module[3].weight == 5.0).all()


def test_another_model_object_can_be_passed():
    model, other = make_model(0), make_model(1)
    ema = ModelEma(model)
    ema.update(other, 1)
    assert torch.equal(ema.module[0].weight, other[0].weight)
    with pytest.raises(ValueError, match="zip"):
        ema.update(nn.Linear(2, 2), 2)


def test_state_dict_round_trip():
    model = make_model()
    ema = ModelEma(model, decay=0.5)
    for step in (1, 2):
        train_step(model, step)
        ema.update(model, step)
    restored = ModelEma(make_model(seed=1), decay=0.5)
    restored.load_state_dict(copy.deepcopy(ema.state_dict()))
    for current in (ema, restored):
        current.update(model, 3)
    for name, value in ema.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value)
    make_model().load_state_dict(ema.state_dict())
    with pytest.raises(RuntimeError):
        restored.load_state_dict({"0.weight": torch.ones(1)})


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match="float32"):
        ModelEma(make_model().to(torch.bfloat16))


def test_invalid_decay():
    with pytest.raises(ValueError, match="decay"):
        ModelEma(make_model(), decay=1.5)


def test_update_reads_no_tensor_on_the_host():
    """Tensors on the meta device have no values: reading one raises."""
    with torch.device("meta"):
        model = make_model()
    ema = ModelEma(model)
    for step in (1, 2):
        ema.update(model, step)
    with pytest.raises(RuntimeError, match="meta"):
        ema.module[0].weight.sum().item()

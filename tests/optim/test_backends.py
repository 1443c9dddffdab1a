"""Which implementation an optimizer gets, what is said about it, and what cannot run."""

import copy
import sys
import types

import pytest
import torch
from conftest import ROOT
from torch import nn

from dali_rsb.config import load_config
from dali_rsb.errors import UserError
from dali_rsb.optim import create_optimizer, describe_backend, factory
from dali_rsb.optim import lamb as lamb_module

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def create(backend, name="lamb", model=None, **options):
    return create_optimizer(model or nn.Linear(3, 2), name, 0.1, 0.02, backend=backend, **options)


@pytest.fixture
def cpu_counts_as_gpu(monkeypatch):
    monkeypatch.setattr(lamb_module, "_TRITON_DEVICES", ("cpu",))
    monkeypatch.setattr(lamb_module, "triton_obstacle", lambda: None)


def test_auto_on_a_cpu_is_foreach_and_says_why():
    optimizer = create("auto")
    assert optimizer.backend == "foreach"
    assert describe_backend(optimizer) == (
        "LAMB runs on PyTorch's foreach operations (the parameters are not on a GPU)"
    )


def test_auto_on_a_gpu_is_triton(cpu_counts_as_gpu):
    optimizer = create("auto")
    assert optimizer.backend == "triton"
    assert describe_backend(optimizer) == "LAMB and the EMA of the parameters run in Triton kernels"


def test_auto_without_a_compiler_for_triton_is_foreach(cpu_counts_as_gpu, monkeypatch):
    monkeypatch.setattr(lamb_module, "triton_obstacle", lambda: "triton finds no C compiler")
    optimizer = create("auto")
    assert optimizer.backend == "foreach"
    assert "triton finds no C compiler" in describe_backend(optimizer)


def test_auto_with_one_float64_parameter_is_foreach(cpu_counts_as_gpu):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    assert create("auto", model=model).backend == "foreach"


def test_auto_with_parameters_on_several_devices_is_foreach(cpu_counts_as_gpu, monkeypatch):
    monkeypatch.setattr(lamb_module, "_TRITON_DEVICES", ("cpu", "meta"))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"))
    optimizer = create("auto", model=model)
    assert optimizer.backend == "foreach"
    assert "the parameters are on several devices" in describe_backend(optimizer)


def test_foreach_on_a_gpu(cpu_counts_as_gpu):
    optimizer = create("foreach")
    assert optimizer.backend == "foreach"
    assert "as optimizer.backend asks" in describe_backend(optimizer)


def test_the_choice_survives_a_copy_and_a_state(cpu_counts_as_gpu):
    optimizer = create("foreach")
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.backend == "foreach"
    assert "backend" not in optimizer.state_dict()["param_groups"][0]
    copied = copy.deepcopy(optimizer)
    assert copied.param_groups[0]["lr"] == 0.1


def test_other_optimizers_have_no_backends():
    for name in ("sgd", "adamw"):
        assert describe_backend(create("auto", name)) is None
        with pytest.raises(
            UserError, match=r"optimizer\.backend=triton is for optimizer\.name=lamb"
        ):
            create("triton", name)
    with pytest.raises(UserError, match=r"optimizer\.backend: only optimizer\.name=lamb"):
        load_config(QUICKSTART, ["optimizer.name=sgd", "optimizer.backend=foreach"])
    with pytest.raises(UserError, match=r"optimizer\.backend"):
        load_config(QUICKSTART, ["optimizer.backend=fused"])


def test_triton_on_a_cpu():
    with pytest.raises(UserError, match=r"not on a GPU; set optimizer\.backend=auto"):
        create("triton")


# apex


@pytest.fixture
def no_apex(monkeypatch):
    for name in ("apex", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(factory.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "apex", None)  # what makes its import fail


def fake_module(name, **attributes):
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    module.__spec__ = types.SimpleNamespace(name=name)
    return module


class FusedLAMB(torch.optim.Optimizer):
    """Has the options and the state of apex's; the arithmetic is not what is tested here."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, max_grad_norm=1.0
    ):
        defaults = {
            "lr": lr,
            "bias_correction": True,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": True,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                self.state[p] = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}


def install_apex(monkeypatch, optimizer_class):
    apex = fake_module("apex", __path__=[])
    monkeypatch.setitem(sys.modules, "apex", apex)
    optimizers = fake_module("apex.optimizers", FusedLAMB=optimizer_class)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


def test_apex_is_not_installed(no_apex):
    with pytest.raises(UserError, match="needs NVIDIA apex; build NVIDIA's from source: pip"):
        create("apex")


def test_the_package_indexs_apex_is_recognised(monkeypatch):
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    monkeypatch.setitem(sys.modules, "apex", fake_module("apex", __path__=[]))
    with pytest.raises(UserError, match="the package index's apex is another project: pip uninst"):
        create("apex")


def test_apex_without_its_kernels(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("apex.optimizers.FusedLAMB requires cuda extensions")

    install_apex(monkeypatch, refuse)
    monkeypatch.setattr(factory, "_APEX_DEVICES", ("cpu",))
    with pytest.raises(UserError, match=r"built without its kernels.*requires cuda extensions"):
        create("apex")


def test_apex_needs_a_gpu(monkeypatch):
    install_apex(monkeypatch, FusedLAMB)
    with pytest.raises(UserError, match=r"needs a GPU; set optimizer\.backend=auto"):
        create("apex")


def test_apex(monkeypatch):
    install_apex(monkeypatch, FusedLAMB)
    monkeypatch.setattr(factory, "_APEX_DEVICES", ("cpu",))
    model = nn.Linear(3, 2)
    optimizer = create("apex", model=model, betas=(0.8, 0.9), max_grad_norm=2.0)
    assert type(optimizer) is FusedLAMB
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["max_grad_norm"] == 2.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.02]
    assert "synchronisation" in describe_backend(optimizer)

    # Its state goes to ours and back, although it has fewer options and counts in an int.
    optimizer.step()
    ours = create("foreach", model=model)
    ours.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    ours.step()
    optimizer.load_state_dict(copy.deepcopy(ours.state_dict()))
    steps = [group["step"] for group in optimizer.param_groups]
    assert steps == [2, 2]
    assert all(type(step) is int for step in steps)


# SGD and AdamW


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("saved_fused", [True, False])
def test_a_state_from_another_device_does_not_change_the_implementation(
    name, saved_fused, monkeypatch
):
    made = {}
    model = nn.Linear(3, 2)
    for fused in (True, False):
        monkeypatch.setattr(factory, "_FUSED_DEVICES", ("cpu",) if fused else ())
        made[fused] = create("auto", name, model, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    saved, loaded = made[saved_fused], made[not saved_fused]
    saved.step()
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert {bool(group["fused"]) for group in loaded.param_groups} == {not saved_fused}
    loaded.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_equals_the_ordinary_implementation(name, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 4)).to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    ordinary = create("auto", name, model, momentum=0.9, nesterov=True)
    monkeypatch.setattr(factory, "_FUSED_DEVICES", ("cpu",))
    fused = create("auto", name, other, momentum=0.9, nesterov=True)
    for _ in range(4):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ordinary.step()
        fused.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)

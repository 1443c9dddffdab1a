"""LAMB against timm's and against the formulas written out tensor by tensor."""

import copy
import math

import pytest
import timm.optim
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dali_rsb.kernels import lamb as twin
from dali_rsb.models import create_model
from dali_rsb.optim import Lamb
from dali_rsb.optim.lamb import _same_order

# ResNet-like: together more than one CPU bucket; the last two are not decayed.
SHAPES = [(64, 3, 7, 7), (128, 64, 3, 3), (256, 128, 3, 3), (256, 64, 1, 1), (100, 256)]
SHAPES_NOT_DECAYED = [(64,), (256,)]
OPTIONS = {"lr": 5e-3, "weight_decay": 0.02}


def make_params(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES + SHAPES_NOT_DECAYED
    # From float64, so that both dtypes start from the same numbers.
    values = [torch.randn(s, generator=generator, dtype=torch.float64) * 0.1 for s in shapes]
    return [nn.Parameter(value.to(dtype)) for value in values]


def groups_of(params):
    num_decayed = len(SHAPES)
    return [
        {"params": params[num_decayed:], "weight_decay": 0.0},
        {"params": params[:num_decayed]},
    ]


def set_grads(params, step, size=1e-3):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * size
        p.grad = grad.to(p.dtype)


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        difference = torch.linalg.vector_norm(a.detach().double() - b.detach().double())
        assert difference <= tolerance * torch.linalg.vector_norm(b.detach().double())


def bits(tensor):
    return tensor.detach().view({4: torch.int32, 8: torch.int64}[tensor.itemsize]).clone()


def snapshot(optimizer, params):
    """The bits of parameters, moments and step counts."""
    tensors = list(params)
    for p in params:
        tensors += list(optimizer.state[p].values())
    tensors += [group["step"] for group in optimizer.param_groups if "step" in group]
    return [bits(tensor) for tensor in tensors]


def reference_lamb_step(params, state, step, *, lr, decay_of, max_grad_norm=1.0):
    """One step in the order of the paper's algorithm, without any rearrangement."""
    beta1, beta2, eps = 0.9, 0.999, 1e-6
    norm = torch.stack([p.grad.square().sum() for p in params]).sum().sqrt()
    for i, p in enumerate(params):
        m, v = state.setdefault(i, [torch.zeros_like(p.data), torch.zeros_like(p.data)])
        g = p.grad / torch.clamp(norm / max_grad_norm, min=1.0)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        state[i] = [m, v]
        u = (m / (1 - beta1**step)) / (torch.sqrt(v / (1 - beta2**step)) + eps)
        trust = 1.0
        if decay_of[i] != 0:
            u = u + decay_of[i] * p.data
            if p.data.norm() > 0 and u.norm() > 0:
                trust = p.data.norm() / u.norm()
        p.data = p.data - lr * trust * u


@pytest.fixture(params=["flag on the host", "flag on the device"])
def flag(request, monkeypatch):
    """Runs a test twice: on the CPU the flag to skip is read, on a GPU never."""
    if request.param == "flag on the device":
        monkeypatch.setattr(twin, "_flag_is_at_hand", lambda *arguments: False)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
def test_fifty_steps_on_resnet18_equal_timm(dtype, tolerance):
    torch.manual_seed(0)
    model = create_model("resnet18").to(dtype, memory_format=torch.channels_last)
    # Its last stage has three quarters of the weights, and shapes like the others'.
    model.layer4 = nn.Identity()
    other = copy.deepcopy(model)
    optimizer = Lamb(timm.optim.param_groups_weight_decay(model, 0.02), lr=5e-3)
    oracle = timm.optim.Lamb(timm.optim.param_groups_weight_decay(other, 0.02), lr=5e-3)
    # Gradients that turn from step to step, of sizes from below eps to where the norm is clipped.
    basis = [[torch.randn_like(p) * 1e-3 for p in model.parameters()] for _ in range(2)]
    for step in range(50):
        size = 10.0 ** (step % 5 - 3)
        weights = size * math.cos(1.7 * step), size * math.sin(1.7 * step)
        for p, q, a, b in zip(model.parameters(), other.parameters(), *basis, strict=True):
            p.grad = torch.mul(a, weights[0]).add_(b, alpha=weights[1])
            q.grad = p.grad.clone()
        optimizer.step()
        oracle.step()
    assert_close(model.parameters(), other.parameters(), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grad_size", [1e-6, 1e-1], ids=["unclipped", "clipped"])
def test_equals_timm(dtype, grad_size, flag):
    tolerance, num_steps = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype], 10
    ours, theirs = make_params(dtype), make_params(dtype)
    optimizer = Lamb(groups_of(ours), **OPTIONS)
    oracle = timm.optim.Lamb(groups_of(theirs), **OPTIONS)
    for step in range(num_steps):
        for params, stepper in ((ours, optimizer), (theirs, oracle)):
            set_grads(params, step, grad_size)
            stepper.step()
    assert_close(ours, theirs, tolerance)
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(
            [optimizer.state[p][name] for p in ours],
            [oracle.state[p][name] for p in theirs],
            tolerance,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"bias_correction": False},
        {"grad_averaging": False},
        {"max_grad_norm": None},
        {"max_grad_norm": 0.05},
        {"trust_clip": True, "lr": 1e-4},
        {"always_adapt": True},
        {"weight_decay": 0.0},
        {"betas": (0.8, 0.95), "eps": 1e-4},
    ],
    ids=str,
)
def test_options_equal_timm(options, flag):
    ours, theirs = make_params(torch.float64), make_params(torch.float64)
    optimizer = Lamb(groups_of(ours), **OPTIONS | options)
    oracle = timm.optim.Lamb(groups_of(theirs), **OPTIONS | options)
    plain = make_params(torch.float64)
    default = Lamb(groups_of(plain), **OPTIONS)
    for step in range(4):
        for params, stepper in ((ours, optimizer), (theirs, oracle), (plain, default)):
            set_grads(params, step, 1e-1)
            stepper.step()
    assert_close(ours, theirs, 1e-10)
    assert any((a != b).any() for a, b in zip(ours, plain, strict=True)), "the option does nothing"


@pytest.mark.parametrize("grad_size", [1e-6, 1e-1], ids=["unclipped", "clipped"])
def test_equals_written_out_formulas(grad_size):
    ours, reference = make_params(torch.float64), make_params(torch.float64)
    optimizer = Lamb(groups_of(ours), **OPTIONS)
    decay_of = [0.02] * len(SHAPES) + [0.0] * len(SHAPES_NOT_DECAYED)
    state = {}
    for step in range(1, 6):
        set_grads(ours, step, grad_size)
        set_grads(reference, step, grad_size)
        optimizer.step()
        reference_lamb_step(reference, state, step, lr=5e-3, decay_of=decay_of)
    assert_close(ours, reference, 1e-10)


def test_not_decayed_tensor_takes_an_adam_step_of_the_full_rate():
    p = nn.Parameter(torch.full((3,), 100.0))
    p.grad = torch.tensor([1e-2, -1e-2, 1e-2])
    Lamb([p], lr=5e-3, weight_decay=0.0).step()
    torch.testing.assert_close(p.data, torch.tensor([99.995, 100.005, 99.995]))


@pytest.mark.parametrize(
    ("value", "grad"), [(0.0, 1e-3), (0.0, 0.0), (0.5, 0.0)], ids=["p=0", "p=g=0", "g=0"]
)
def test_trust_ratio_at_zero_norms(value, grad):
    ours, theirs = (nn.Parameter(torch.full((4, 5), value)) for _ in range(2))
    optimizer, oracle = Lamb([ours], **OPTIONS), timm.optim.Lamb([theirs], **OPTIONS)
    for _ in range(3):
        ours.grad, theirs.grad = (torch.full((4, 5), grad) for _ in range(2))
        optimizer.step()
        oracle.step()
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs)
    if value == 0 and grad != 0:
        assert (ours != 0).all()


@pytest.mark.parametrize("ours_first", [True, False])
def test_state_dict_interchange_with_timm(ours_first):
    first_class, second_class = (Lamb, timm.optim.Lamb) if ours_first else (timm.optim.Lamb, Lamb)
    params = make_params()
    first = first_class(groups_of(params), **OPTIONS)
    for step in range(3):
        set_grads(params, step)
        first.step()
    resumed_params = copy.deepcopy(params)
    second = second_class(groups_of(resumed_params), lr=1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 6):
        for current, optimizer in ((params, first), (resumed_params, second)):
            set_grads(current, step)
            optimizer.step()
    assert_close(resumed_params, params, 1e-6)
    assert [float(group["step"]) for group in second.param_groups] == [6.0, 6.0]
    assert first.state_dict()["state"].keys() == second.state_dict()["state"].keys()


def test_resume_is_exact():
    params = make_params()
    first = Lamb(groups_of(params), **OPTIONS)
    set_grads(params, 0)
    first.step()
    resumed_params = copy.deepcopy(params)
    second = Lamb(groups_of(resumed_params))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for current, optimizer in ((params, first), (resumed_params, second)):
        set_grads(current, 1)
        optimizer.step()
    for a, b in zip(snapshot(first, params), snapshot(second, resumed_params), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("step", [7, torch.tensor(7), torch.tensor(7.0, dtype=torch.float64)])
def test_loaded_step_becomes_a_float32_tensor(step):
    params = make_params()
    optimizer = Lamb(groups_of(params))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["step"] = step
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        assert group["step"].dtype == torch.float32
        assert group["step"].device == params[0].device
        assert float(group["step"]) == 7


def test_loaded_moments_take_the_memory_format_of_the_parameters():
    params = make_params()
    first = Lamb(groups_of(params), **OPTIONS)
    set_grads(params, 0)
    first.step()
    channels_last = [nn.Parameter(p.detach().clone()) for p in params]
    for p in channels_last:
        if p.ndim == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    second = Lamb(groups_of(channels_last))
    second.load_state_dict(first.state_dict())
    for p, q in zip(params, channels_last, strict=True):
        assert second.state[q]["exp_avg"].stride() == q.stride()
        assert torch.equal(second.state[q]["exp_avg"], first.state[p]["exp_avg"])


@pytest.mark.parametrize("variant", ["caution", "decoupled_decay"])
def test_state_of_another_variant_is_refused(variant):
    state = timm.optim.Lamb(groups_of(make_params()), **{variant: True}).state_dict()
    with pytest.raises(ValueError, match=variant):
        Lamb(groups_of(make_params())).load_state_dict(state)


def test_channels_last_equals_contiguous():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3))
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for current in (model, twin):
        optimizer = Lamb(current.parameters(), **OPTIONS)
        for step in range(3):
            set_grads(current.parameters(), step)
            for p in current.parameters():
                p.grad = torch.empty_like(p).copy_(p.grad)
            optimizer.step()
    assert twin[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[twin[0].weight]["exp_avg"].stride() == twin[0].weight.stride()
    assert_close(twin.parameters(), model.parameters(), 1e-6)


def test_mixed_dtypes_share_one_gradient_norm():
    values = [torch.full((3, 3), 0.5), torch.full((4, 2), 0.25, dtype=torch.float64)]
    ours, theirs = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    optimizer, oracle = Lamb(ours, **OPTIONS), timm.optim.Lamb(theirs, **OPTIONS, foreach=False)
    for p in ours + theirs:
        p.grad = torch.full_like(p, 3.0)
    norm = (3.0**2 * 17) ** 0.5
    optimizer.step()
    for p in theirs:
        p.grad /= norm  # timm cannot stack norms of two dtypes: clip for it
    oracle.step()
    assert_close(ours, theirs, 1e-6)
    torch.testing.assert_close(ours[1].grad, torch.full_like(ours[1], 3.0 / norm))


def test_parameters_without_gradient_are_skipped_but_steps_are_counted():
    params = make_params()
    before = [p.detach().clone() for p in params]
    optimizer = Lamb(groups_of(params), **OPTIONS)
    params[0].grad = torch.full_like(params[0], 1e-3)
    optimizer.step()
    assert not torch.equal(params[0], before[0])
    for p, old in zip(params[1:], before[1:], strict=True):
        assert torch.equal(p, old)
        assert p not in optimizer.state
    assert [float(group["step"]) for group in optimizer.param_groups] == [1.0, 1.0]


def test_no_gradient_at_all():
    params = make_params()
    optimizer = Lamb(groups_of(params), **OPTIONS)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), 0  # as GradScaler has it then
    optimizer.step()
    assert not optimizer.state
    assert [float(group["step"]) for group in optimizer.param_groups] == [1.0, 1.0]


def test_closure_runs_with_gradients():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([p])

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert (p != 1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"betas": (1.0, 0.9)},
        {"max_grad_norm": 0.0},
    ],
    ids=str,
)
def test_invalid_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Lamb([nn.Parameter(torch.ones(1))], **options)


def test_sparse_gradients_are_refused():
    p = nn.Parameter(torch.ones(4, 2))
    p.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        Lamb([p]).step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_refused(dtype):
    p = nn.Parameter(torch.ones(4, dtype=dtype))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="autocast"):
        Lamb([p]).step()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_gradient_that_is_no_number_skips_the_step(bad, max_grad_norm, flag):
    params = make_params()
    optimizer = Lamb(groups_of(params), **OPTIONS, max_grad_norm=max_grad_norm)
    set_grads(params, 0)
    optimizer.step()
    assert optimizer.skipped == 0
    before = snapshot(optimizer, params)
    set_grads(params, 1)
    params[1].grad.view(-1)[3] = bad
    optimizer.step()
    assert optimizer.skipped == 1
    for a, b in zip(before, snapshot(optimizer, params), strict=True):
        assert torch.equal(a, b)


def test_an_empty_group():
    params = make_params()
    optimizer = Lamb([{"params": []}, {"params": params}], **OPTIONS)
    set_grads(params, 0)
    optimizer.step()
    assert [float(group["step"]) for group in optimizer.param_groups] == [1.0, 1.0]
    restored = Lamb([{"params": []}, {"params": make_params()}])
    restored.load_state_dict(optimizer.state_dict())
    assert restored.param_groups[0]["step"].device == params[0].device


def test_a_state_of_apex_has_fewer_options():
    params = make_params()
    optimizer = Lamb(groups_of(params), **OPTIONS)
    set_grads(params, 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["trust_clip"], group["always_adapt"]
        group["step"] = 1
    resumed_params = copy.deepcopy(params)
    resumed = Lamb(groups_of(resumed_params))
    resumed.load_state_dict(state)
    for current, tensors in ((optimizer, params), (resumed, resumed_params)):
        set_grads(tensors, 1)
        current.step()
    assert_close(resumed_params, params, 1e-6)


# torch.amp.GradScaler


def set_amp(optimizer, scale, overflow):
    """What GradScaler.step sets on an optimizer that takes the scale itself."""
    optimizer.grad_scale = None if scale is None else torch.tensor(scale)
    optimizer.found_inf = torch.tensor(float(overflow))


@pytest.mark.parametrize("max_grad_norm", [None, 1.0, 1e-3])
@pytest.mark.parametrize("scale", [None, 3.0, 65536.0])
@pytest.mark.parametrize("grad_averaging", [True, False])
def test_scaled_step_equals_plain_step(scale, max_grad_norm, grad_averaging):
    options = OPTIONS | {"max_grad_norm": max_grad_norm, "grad_averaging": grad_averaging}
    plain, scaled = make_params(), make_params()
    plain_optimizer = Lamb(groups_of(plain), **options)
    scaled_optimizer = Lamb(groups_of(scaled), **options)
    for step in range(3):
        set_grads(plain, step)
        plain_optimizer.step()
        set_grads(scaled, step, 1e-3 * (scale or 1.0))
        set_amp(scaled_optimizer, scale, overflow=False)
        scaled_optimizer.step()
    assert_close(scaled, plain, 1e-6)
    assert_close([p.grad for p in scaled], [p.grad for p in plain], 1e-6)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("scale", [None, 65536.0])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_overflow_changes_no_bit(steps_before, max_grad_norm, scale, eps, flag):
    params = make_params()
    optimizer = Lamb(
        groups_of(params), **OPTIONS, max_grad_norm=max_grad_norm, eps=eps, always_adapt=True
    )
    for step in range(steps_before):
        set_grads(params, step)
        optimizer.step()
    set_grads(params, 10)
    params[0].grad.view(-1)[5] = torch.inf
    params[1].grad.view(-1)[7] = -torch.inf
    params[-1].grad[3] = torch.nan
    # A first step creates the state: zeros are what it must leave.
    before = snapshot(optimizer, params) if steps_before else [bits(p) for p in params]
    set_amp(optimizer, scale, overflow=True)
    optimizer.step()
    after = snapshot(optimizer, params)
    for a, b in zip(before, after, strict=steps_before > 0):
        assert torch.equal(a, b)
    for tensor in after[len(before) :]:
        assert (tensor == 0).all()


def test_training_goes_on_after_overflows_as_if_they_had_not_been(flag):
    params, plain = make_params(), make_params()
    optimizer, plain_optimizer = (
        Lamb(groups_of(params), **OPTIONS),
        Lamb(groups_of(plain), **OPTIONS),
    )
    for step in range(8):
        overflow = step in (0, 1, 4)
        set_grads(params, step, 1e-3 * 1024)
        if overflow:
            params[2].grad.fill_(torch.inf)
        set_amp(optimizer, 1024.0, overflow)
        optimizer.step()
        if not overflow:
            set_grads(plain, step)
            plain_optimizer.step()
    assert_close(params, plain, 1e-6)
    assert [float(group["step"]) for group in optimizer.param_groups] == [5.0, 5.0]


def test_moment_of_negative_zero_survives_an_overflow(flag):
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([p])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.state[p]["exp_avg"].fill_(-0.0)
    before = snapshot(optimizer, [p])
    p.grad = torch.full_like(p, torch.inf)
    set_amp(optimizer, 2.0, overflow=True)
    optimizer.step()
    for a, b in zip(before, snapshot(optimizer, [p]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("unscale_first", [False, True])
def test_with_the_real_grad_scaler(unscale_first, flag):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    twin = copy.deepcopy(model)
    optimizer, oracle = (
        Lamb(model.parameters(), **OPTIONS),
        timm.optim.Lamb(twin.parameters(), **OPTIONS),
    )
    # timm's optimizer has no part in the protocol: there GradScaler reads the flag on the host.
    scaler, oracle_scaler = (torch.amp.GradScaler("cpu", init_scale=256.0) for _ in range(2))
    for step in range(6):
        x = torch.randn(5, 6)
        if step in (0, 3):
            x[0, 0] = torch.inf
        for current, stepper, current_scaler in (
            (model, optimizer, scaler),
            (twin, oracle, oracle_scaler),
        ):
            stepper.zero_grad()
            current_scaler.scale(current(x).square().mean()).backward()
            if unscale_first:
                current_scaler.unscale_(stepper)
            current_scaler.step(stepper)
            current_scaler.update()
    assert scaler.get_scale() == oracle_scaler.get_scale() == 64.0
    assert not hasattr(optimizer, "found_inf")
    assert float(optimizer.param_groups[0]["step"]) == 4
    assert_close(model.parameters(), twin.parameters(), 1e-5)


# Waiting for the device


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("options", [{}, {"always_adapt": True, "grad_averaging": False}], ids=str)
def test_step_reads_nothing_back_from_a_gpu(amp, options):
    """Fake CUDA tensors have no values: reading one, or mixing in a CPU tensor, raises."""
    with FakeTensorMode():
        params = [
            nn.Parameter(torch.empty(shape, device="cuda:0")) for shape in ((8, 4, 3, 3), (8,))
        ]
        optimizer = Lamb(
            [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}],
            backend="foreach",
            **options,
        )
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p)
            if amp:
                optimizer.grad_scale = torch.empty((), device="cuda:0")
                optimizer.found_inf = torch.empty((), device="cuda:0")
            optimizer.step()
        assert optimizer.skipped.device == torch.device("cuda:0")
        for group in optimizer.param_groups:
            assert group["step"].device == torch.device("cuda:0")
        with pytest.raises(Exception, match="_local_scalar_dense"):
            params[0].sum().item()


@pytest.mark.parametrize("amp", [False, True])
def test_step_converts_no_tensor_to_a_number(monkeypatch, amp):
    monkeypatch.setattr(twin, "_flag_is_at_hand", lambda *arguments: False)
    params = make_params()
    optimizer = Lamb(groups_of(params), **OPTIONS)
    set_grads(params, 0)
    if amp:
        set_amp(optimizer, 2.0, overflow=False)

    def read(self, *args, **kwargs):
        raise AssertionError("read a tensor on the host")

    for method in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, method, read)
    optimizer.step()


@pytest.mark.parametrize(
    ("strides", "others", "same"),
    [((3, 1), (3, 1), True), ((1, 2), (3, 1), False), ((9, 1), (3, 1), False)],
)
def test_elements_of_one_order_may_be_stepped_over_alike(strides, others, same):
    ours, theirs = (torch.empty_strided((2, 3), each) for each in (strides, others))
    assert _same_order(ours, theirs) is same
    wide, narrow = torch.empty_strided((1, 3), (7, 1)), torch.empty_strided((1, 3), (3, 1))
    assert _same_order(wide, narrow)  # nobody steps along a side of one

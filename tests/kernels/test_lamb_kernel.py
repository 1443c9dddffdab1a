"""The Triton LAMB against its plain PyTorch twin, by Triton's interpreter; and compiled ahead."""

import copy
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx import CAPABILITIES, compile_ahead, interpreted
from torch import nn

from dali_rsb.kernels import lamb_triton
from dali_rsb.optim import Lamb, ModelEma
from dali_rsb.optim import lamb as lamb_module

KERNELS = [
    "_square_sums_kernel",
    "_scalars_kernel",
    "_moments_kernel",
    "_trust_kernel",
    "_update_kernel",
]
COMPILED_KERNELS = {name: getattr(lamb_triton, name) for name in KERNELS}


class Interpreted:
    """A kernel that runs in Triton's interpreter; notes each launch."""

    launched: ClassVar[list[str]] = []

    def __init__(self, name):
        self.name, self.kernel = name, interpreted(COMPILED_KERNELS[name])

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(lamb_triton, name, Interpreted(name))
        patch.setattr(lamb_module, "_TRITON_DEVICES", ("cpu",))
        patch.setattr(lamb_module, "triton_obstacle", lambda: None)
        yield


# Layouts of a parameter in memory, each made from the values of a contiguous one.


def contiguous(values):
    return values.clone()


def channels_last(values):
    return values.clone(memory_format=torch.channels_last) if values.ndim == 4 else values.clone()


def transposed(values):
    return values.clone().transpose(0, -1).contiguous().transpose(0, -1)


def unaligned(values):
    """A view that starts 4 bytes into its memory: no 16-byte reads."""
    return torch.empty(values.numel() + 1)[1:].view(values.shape).copy_(values)


LAYOUTS = [contiguous, channels_last, transposed, unaligned]
SHAPES = [(1,), (7,), (3, 5), (4, 3, 2, 2), (8, 4, 1, 1), (2, 3, 3, 3), (0,), (2100,), (43, 100)]


@st.composite
def cases(draw):
    """Groups of parameters, and for each step gradients and what goes with them."""
    num_groups = draw(st.integers(1, 3))
    decays = st.sampled_from([0.0, 0.02])
    groups = [
        {
            "tensors": draw(
                st.lists(
                    st.tuples(
                        st.sampled_from(SHAPES),
                        st.sampled_from(LAYOUTS),
                        st.sampled_from([0.0, 0.1, 10.0]),  # size of the values
                    ),
                    min_size=1 if number == 0 else 0,
                    max_size=3,
                )
            ),
            "weight_decay": draw(decays),
            "lr": draw(st.sampled_from([0.0, 5e-3])),
            "betas": draw(st.sampled_from([(0.9, 0.999), (0.0, 0.95)])),
            "eps": draw(st.sampled_from([1e-6, 1e-3])),
        }
        for number in range(num_groups)
    ]
    num_tensors = sum(len(group["tensors"]) for group in groups)
    steps = [
        {
            "sizes": draw(
                st.lists(
                    st.sampled_from([None, 0.0, 1e-4, 3.0]),  # None: no gradient
                    min_size=num_tensors,
                    max_size=num_tensors,
                )
            ),
            "bad": draw(st.sampled_from([None, None, torch.inf, -torch.inf, torch.nan])),
            "scale": draw(st.sampled_from([None, 1024.0, 3.0])),
            "found_inf": draw(st.sampled_from([None, False, False, True])),
            "other_order": draw(st.booleans()),
        }
        for _ in range(draw(st.integers(1, 3)))
    ]
    options = {
        "max_grad_norm": draw(st.sampled_from([None, 1.0, 0.01])),
        "always_adapt": draw(st.booleans()),
        "trust_clip": draw(st.booleans()),
        "bias_correction": draw(st.booleans()),
        "grad_averaging": draw(st.booleans()),
    }
    return groups, steps, options, draw(st.sampled_from([0.0, 0.3, 0.9]))


def build(groups, options, backend):
    generator = torch.Generator().manual_seed(0)
    made = []
    for group in groups:
        params = [
            nn.Parameter(layout(torch.randn(shape, generator=generator) * size))
            for shape, layout, size in group["tensors"]
        ]
        made.append({**{k: v for k, v in group.items() if k != "tensors"}, "params": params})
    params = [p for group in made for p in group["params"]]
    return Lamb(made, **options, backend=backend), params


def set_grads(params, step, number):
    generator = torch.Generator().manual_seed(100 + number)
    has_bad = False
    for p, size in zip(params, step["sizes"], strict=True):
        p.grad = None
        if size is None:
            continue
        grad = torch.randn(p.shape, generator=generator) * size * (step["scale"] or 1.0)
        p.grad = grad if step["other_order"] else torch.empty_like(p).copy_(grad)
        if step["bad"] is not None and p.numel() and not has_bad:
            p.grad[tuple(size - 1 for size in p.shape)] = step["bad"]
            has_bad = True
    return has_bad


def set_amp(optimizer, step):
    optimizer.grad_scale = None if step["scale"] is None else torch.tensor(step["scale"])
    optimizer.found_inf = None
    if step["found_inf"] is not None:
        optimizer.found_inf = torch.tensor(float(step["found_inf"]))


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int32).clone()


@settings(max_examples=40)
@given(cases())
def test_equals_the_twin(case):
    groups, steps, options, decay = case
    kernel, ours = build(groups, options, "triton")
    twin, theirs = build(groups, options, "foreach")
    averages = {p: p.detach().clone() for p in ours[::2]}
    expected_averages = [average.clone() for average in averages.values()]
    for number, step in enumerate(steps):
        before = [bits(p) for p in ours]
        has_bad = set_grads(ours, step, number)
        set_grads(theirs, step, number)
        for optimizer in (kernel, twin):
            set_amp(optimizer, step)
        assert kernel.fuse_averages(averages, 1 - decay) == set(averages)
        kernel.step()
        twin.step()
        for average, p in zip(expected_averages, theirs[::2], strict=True):
            average.lerp_(p.detach(), 1 - decay)

        assert kernel.skipped == twin.skipped == float(has_bad or step["found_inf"] is True)
        if kernel.skipped:
            assert all(torch.equal(a, bits(p)) for a, p in zip(before, ours, strict=True))
        assert_same_state(kernel, ours, twin, theirs)
    for average, expected in zip(averages.values(), expected_averages, strict=True):
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)


def assert_same_state(kernel, ours, twin, theirs):
    for ours_group, group in zip(kernel.param_groups, twin.param_groups, strict=True):
        assert float(ours_group["step"]) == float(group["step"])
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert kernel.state[p].keys() == twin.state[q].keys()
        for name, moment in twin.state[q].items():
            assert kernel.state[p][name].stride() == p.stride()
            # Sums of large and small: relative to the largest.
            size = float(moment.abs().max()) if moment.numel() else 0.0
            torch.testing.assert_close(
                kernel.state[p][name], moment, rtol=1e-5, atol=1e-6 * max(size, 1e-12)
            )


RESNET_LIKE = [
    {"tensors": [((64,), contiguous, 1.0), ((10,), contiguous, 0.0)], "weight_decay": 0.0},
    {
        "tensors": [
            ((16, 3, 7, 7), channels_last, 0.1),
            ((64, 64, 1, 1), channels_last, 0.1),
            ((10, 500), unaligned, 0.1),
        ],
        "weight_decay": 0.02,
    },
]
GOOD_STEP = {
    "sizes": [1e-2] * 5,
    "bad": None,
    "scale": 256.0,
    "found_inf": False,
    "other_order": False,
}


def test_twenty_steps_of_several_chunks():
    options = {"lr": 5e-3}
    kernel, ours = build(RESNET_LIKE, options, "triton")
    twin, theirs = build(RESNET_LIKE, options, "foreach")
    for number in range(20):
        for optimizer, params in ((kernel, ours), (twin, theirs)):
            optimizer.param_groups[1]["lr"] = 1e-3 * (number + 1)
            set_grads(params, GOOD_STEP, number)
            set_amp(optimizer, GOOD_STEP)
            optimizer.step()
    assert_same_state(kernel, ours, twin, theirs)


def test_without_eps_nothing_past_the_end_of_a_tensor_counts():
    kernel, ours = build(RESNET_LIKE, {"eps": 0.0}, "triton")
    twin, theirs = build(RESNET_LIKE, {"eps": 0.0}, "foreach")
    for number in range(2):
        for optimizer, params in ((kernel, ours), (twin, theirs)):
            set_grads(params, GOOD_STEP, number)
            set_amp(optimizer, GOOD_STEP)
            optimizer.step()
    assert_same_state(kernel, ours, twin, theirs)


def test_five_launches_whatever_the_number_of_tensors():
    optimizer, params = build(RESNET_LIKE, {}, "triton")
    Interpreted.launched.clear()
    for number in range(2):
        set_grads(params, GOOD_STEP, number)
        optimizer.step()
    assert Interpreted.launched == KERNELS * 2


def test_the_same_bits_again():
    results = []
    for _ in range(2):
        optimizer, params = build(RESNET_LIKE, {}, "triton")
        for number in range(2):
            set_grads(params, GOOD_STEP, number)
            optimizer.step()
        results.append([bits(p) for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradients_at_new_addresses_are_found():
    optimizer, params = build(RESNET_LIKE, {}, "triton")
    twin, theirs = build(RESNET_LIKE, {}, "foreach")
    kept = []  # so that no address comes back
    for number in range(3):
        for current, tensors in ((optimizer, params), (twin, theirs)):
            set_grads(tensors, GOOD_STEP, number)
            kept += [p.grad for p in tensors]
            current.step()
    assert_same_state(optimizer, params, twin, theirs)


@pytest.mark.parametrize("kernel_first", [True, False])
def test_state_dict_interchange_with_the_twin(kernel_first):
    names = ("triton", "foreach") if kernel_first else ("foreach", "triton")
    first, params = build(RESNET_LIKE, {}, names[0])
    for number in range(2):
        set_grads(params, GOOD_STEP, number)
        first.step()
    second, resumed = build(RESNET_LIKE, {}, names[1])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for p, q in zip(params, resumed, strict=True):
        q.data.copy_(p.data)
    for optimizer, tensors in ((first, params), (second, resumed)):
        set_grads(tensors, GOOD_STEP, 2)
        optimizer.step()
    assert_same_state(second, resumed, first, params)


def test_a_learning_rate_in_a_tensor():
    optimizer, params = build(RESNET_LIKE, {}, "triton")
    twin, theirs = build(RESNET_LIKE, {}, "foreach")
    for group in (*optimizer.param_groups, *twin.param_groups):
        group["lr"] = torch.tensor(2e-3)
    for number in range(2):
        for current, tensors in ((optimizer, params), (twin, theirs)):
            for group in current.param_groups:
                group["lr"].mul_(0.5)
            set_grads(tensors, GOOD_STEP, number)
            current.step()
    assert_same_state(optimizer, params, twin, theirs)


def test_a_group_added_later():
    optimizer, params = build(RESNET_LIKE[:1], {}, "triton")
    twin, theirs = build(RESNET_LIKE[:1], {}, "foreach")
    for number in range(2):
        for current, tensors in ((optimizer, params), (twin, theirs)):
            if number == 1:
                new = nn.Parameter(torch.full((5, 5), 0.5))
                current.add_param_group({"params": [new]})
                tensors.append(new)
            set_grads(tensors, GOOD_STEP | {"sizes": [1e-2] * len(tensors)}, number)
            current.step()
    assert [float(group["step"]) for group in optimizer.param_groups] == [2.0, 1.0]
    assert_same_state(optimizer, params, twin, theirs)


# EMA


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4)
    )
    model[3].bias.requires_grad_(False)  # outside of the optimizer
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("warmup", ["none", "timm"])
def test_ema_in_the_kernel_equals_ema_after_the_step(warmup):
    averages = []
    for backend in ("triton", "foreach"):
        model = make_model()
        optimizer = Lamb([p for p in model.parameters() if p.requires_grad], backend=backend)
        ema = ModelEma(model, decay=0.9, warmup=warmup)
        for step in range(1, 5):
            x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
            if step == 3:
                model[0].weight.grad[0, 0, 0, 0] = torch.nan
            ema.hand_over(optimizer, step)
            optimizer.step()
            ema.update(model, step)
            optimizer.zero_grad()
        averages.append(ema.state_dict())
    for name, average in averages[1].items():
        torch.testing.assert_close(averages[0][name], average, rtol=1e-5, atol=1e-6)


def test_update_leaves_out_what_was_handed_over(monkeypatch):
    model = make_model()
    optimizer = Lamb([p for p in model.parameters() if p.requires_grad], backend="triton")
    ema = ModelEma(model, decay=0.9)
    averaged = []
    lerp = torch._foreach_lerp_
    monkeypatch.setattr(
        torch, "_foreach_lerp_", lambda a, b, w: (averaged.append(len(a)), lerp(a, b, w))
    )
    ema.update(model, 1)
    ema.hand_over(optimizer, 2)
    optimizer.step()
    ema.update(model, 2)
    ema.update(model, 3)
    assert averaged == [7, 3, 7]  # one frozen parameter and two statistics are left


def test_update_of_another_step_than_handed_over():
    model = make_model()
    optimizer = Lamb(model.parameters(), backend="triton")
    ema = ModelEma(model)
    ema.hand_over(optimizer, 4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="hand_over for update 4"):
        ema.update(model, 5)


# What the kernels refuse


@pytest.mark.parametrize(
    ("param", "reason"),
    [
        (torch.zeros(3, dtype=torch.float64), "float32"),
        (torch.zeros(4, 4)[:, ::2], "gaps"),
        (torch.zeros(3, device="meta"), "not on a GPU"),
    ],
    ids=["float64", "gaps", "device"],
)
def test_parameters_that_the_kernels_cannot_update(param, reason):
    with pytest.raises(ValueError, match=reason):
        Lamb([nn.Parameter(param)], backend="triton").step()
    assert Lamb([nn.Parameter(param)]).backend == "foreach"


def test_auto_takes_the_kernels_where_they_can():
    assert Lamb([nn.Parameter(torch.zeros(3))]).backend == "triton"
    assert Lamb([nn.Parameter(torch.zeros(3))], backend="foreach").backend == "foreach"


def test_sparse_gradients_are_refused():
    p = nn.Parameter(torch.ones(4, 2))
    p.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        Lamb([p], backend="triton").step()


# Machine code, without a GPU

TYPES = {
    "table": "*i64",
    "chunk_tensor": "*i32",
    "first_chunk": "*i32",
    "num_elements": "*i64",
    "group_of": "*i32",
    "step_addresses": "*i64",
    "hyper": "*fp64",
    "scalars": "*fp64",
    "max_grad_norm": "fp32",
    "num_tensors": "i32",
    "num_groups": "i32",
    "num_chunks": "i32",
}  # all others point to float32
CHUNKED = {"CHUNK": lamb_triton.CHUNK}
REDUCING = {"BLOCK": lamb_triton.REDUCE_BLOCK}
VARIANTS = {
    "_square_sums_kernel": [CHUNKED],
    "_scalars_kernel": [
        {"HAS_SCALE": True, "HAS_FLAG": False, "GROUPS": 2, "NUM_BLOCKS": 4, **REDUCING},
        {"HAS_SCALE": False, "HAS_FLAG": True, "GROUPS": 1, "NUM_BLOCKS": 4, **REDUCING},
    ],
    "_moments_kernel": [CHUNKED],
    "_trust_kernel": [{"BLOCK": lamb_triton.TRUST_BLOCK}],
    "_update_kernel": [{"AVERAGES": True, **CHUNKED}, {"AVERAGES": False, **CHUNKED}],
}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(name, capability):
    kernel = COMPILED_KERNELS[name]
    for constexprs in VARIANTS[name]:
        arguments = [a for a in kernel.arg_names if a not in constexprs]
        signature = {argument: TYPES.get(argument, "*fp32") for argument in arguments}
        num_warps = lamb_triton.TRUST_WARPS if name == "_trust_kernel" else lamb_triton.NUM_WARPS
        compiled = compile_ahead(kernel, signature, constexprs, capability, num_warps)
        assert compiled.spill_bytes == compiled.stack_bytes == 0
        if "CHUNK" in constexprs:  # three programs on an SM, and reads of 16 bytes
            assert compiled.registers <= 80
            assert "ld.global.v4" in compiled.ptx

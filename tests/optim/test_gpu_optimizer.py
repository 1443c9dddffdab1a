"""The LAMB kernels on a GPU: against their twin, without synchronisation, in a CUDA graph."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dali_rsb.loader.loader import Batch, Mixing
from dali_rsb.models import create_model
from dali_rsb.models.precision import Precision
from dali_rsb.optim import Lamb, ModelEma, create_optimizer, param_groups
from dali_rsb.run.processes import Processes
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep

pytestmark = pytest.mark.gpu

MAX_LAUNCHES = 6


def make_pair(backend, model):
    optimizer = Lamb(param_groups(model, 0.02), lr=5e-3, backend=backend)
    return optimizer, ModelEma(model, decay=0.9)


def make_model():
    torch.manual_seed(0)
    return create_model("resnet18").to("cuda", memory_format=torch.channels_last)


def set_grads(model, seed, size=1e-3):
    generator = torch.Generator("cuda").manual_seed(seed)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator, device="cuda") * size
        p.grad = torch.empty_like(p).copy_(noise)


def step_with_ema(optimizer, ema, model, number):
    ema.hand_over(optimizer, number)
    optimizer.step()
    ema.update(model, number)


def assert_same(model, other, rtol=1e-5):
    theirs = other.state_dict()
    for name, ours in model.state_dict().items():
        difference = torch.linalg.vector_norm(ours.double() - theirs[name].double())
        size = torch.linalg.vector_norm(theirs[name].double())
        assert difference <= rtol * size, name


@pytest.mark.parametrize("scale", [None, 65536.0])
def test_kernels_equal_the_twin(scale):
    model = make_model()
    other = copy.deepcopy(model)
    kernel, ema = make_pair("triton", model)
    twin, other_ema = make_pair("foreach", other)
    for number in range(1, 21):
        for current, optimizer, average in ((model, kernel, ema), (other, twin, other_ema)):
            set_grads(current, number, 10.0 ** (number % 5 - 4) * (scale or 1.0))
            if number == 7:
                current.fc.weight.grad[3, 5] = torch.nan
            if scale is not None:
                optimizer.grad_scale = torch.tensor(scale, device="cuda")
            step_with_ema(optimizer, average, current, number)
        assert kernel.skipped == twin.skipped == float(number == 7)
    assert [float(group["step"]) for group in kernel.param_groups] == [19.0, 19.0]
    assert_same(model, other)
    assert_same(ema.module, other_ema.module)


def test_unaligned_gradients_and_odd_sizes():
    torch.manual_seed(0)
    shapes = [(37,), (37, 2048), (5, 3, 7, 7), (2049,)]
    ours = [nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    kernel, twin = Lamb(ours, backend="triton"), Lamb(theirs, backend="foreach")
    bucket = torch.empty(sum(p.numel() for p in ours), device="cuda")  # as DDP has them
    for _ in range(5):
        bucket.normal_()
        for p, q, grad in zip(ours, theirs, bucket.split([p.numel() for p in ours]), strict=True):
            p.grad = grad.view(p.shape)
            q.grad = p.grad.clone()
        kernel.step()
        twin.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_same_bits_again():
    results = []
    for _ in range(2):
        model = make_model()
        optimizer, ema = make_pair("triton", model)
        for number in range(1, 4):
            set_grads(model, number)
            step_with_ema(optimizer, ema, model, number)
        results.append([*model.parameters(), *ema.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# The whole training step


def make_step(dtype, name="lamb"):
    device = torch.device("cuda", torch.cuda.current_device())
    model = make_model()
    return TrainStep(
        model,
        create_loss("bce", 0.0, 0.2),
        create_optimizer(model, name, lr=5e-3, weight_decay=0.02),
        ModelEma(model, decay=0.999),
        Precision(device, dtype),
        Processes(device),
        accumulation=1,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def make_batch(size=32):
    generator = torch.Generator("cuda").manual_seed(0)
    on_device = {"device": "cuda"}
    return Batch(
        images=torch.randint(0, 256, (size, 64, 64, 3), generator=generator, **on_device).byte(),
        labels=torch.randint(0, 1000, (size,), generator=generator, **on_device),
        num_valid=size,
        mixing=Mixing(
            partner=torch.arange(size - 1, -1, -1, **on_device),
            pixel_lam=torch.full((size,), 0.3, **on_device),
            box=torch.zeros((size, 4), dtype=torch.int32, **on_device),
            lam=torch.full((size,), 0.3, **on_device),
        ),
    )


@pytest.mark.parametrize("name", ["lamb", "sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None], ids=str)
def test_a_step_never_waits_for_the_device(dtype, name):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    step, batch = make_step(dtype, name), make_batch()

    def update(number):
        for group in step.optimizer.param_groups:
            group["lr"] = 1e-3 / (number + 1)
        step.update(iter([batch]))

    for number in range(3):  # compiles kernels, allocates
        update(number)
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=activities) as profiler:
            for number in range(3, 6):
                update(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in profiler.events()]
    copies = [name for name in names if "DtoH" in name or "Device -> Pageable" in name]
    assert copies == []
    # (The profiler itself ends with a cudaDeviceSynchronize.)
    waits = [name for name in names if name in ("cudaStreamSynchronize", "cudaEventSynchronize")]
    assert waits == []
    assert not any(name == "aten::_local_scalar_dense" for name in names)


def test_at_most_six_launches_for_the_optimizer_and_the_parameters_ema():
    model = make_model()
    optimizer, ema = make_pair("triton", model)
    optimizer.grad_scale = torch.tensor(1024.0, device="cuda")
    for number in (1, 2):
        set_grads(model, number)
        ema.hand_over(optimizer, number)
        optimizer.step()
        ema.update(model, number)
    ema.hand_over(optimizer, 3)
    optimizer.param_groups[0]["lr"] = 1e-3
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        optimizer.step()
        torch.cuda.synchronize()
    on_device = [
        event.name
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith("Optimizer.")
    ]
    launches = [name for name in on_device if not name.startswith("Mem")]
    assert 0 < len(launches) <= MAX_LAUNCHES, launches
    assert all("HtoD" in name for name in on_device if name.startswith("Memcpy"))


# CUDA graphs


def test_a_captured_step_replays_with_new_gradients_and_learning_rates():
    model = make_model()
    other = copy.deepcopy(model)
    optimizer, ema = make_pair("triton", model)
    twin, other_ema = make_pair("foreach", other)
    scale = torch.tensor(256.0, device="cuda")
    set_grads(model, 0)
    grads = [p.grad for p in model.parameters()]

    def new_gradients(number):
        set_grads(other, number, 1e-2)
        for grad, p in zip(grads, other.parameters(), strict=True):
            grad.copy_(p.grad).mul_(scale)
        if number == 4:
            grads[5].view(-1)[0] = torch.inf
            other.conv1.weight.grad.view(-1)[0] = torch.inf

    def twin_step(number):
        step_with_ema(twin, other_ema, other, number)

    stream = torch.cuda.Stream()
    optimizer.grad_scale = scale
    new_gradients(1)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        ema.hand_over(optimizer, 1)
        optimizer.step()
    torch.cuda.synchronize()
    twin_step(1)

    graph = torch.cuda.CUDAGraph()
    ema.hand_over(optimizer, 2)
    with torch.cuda.graph(graph, stream=stream):
        optimizer.step()
    for number in range(2, 8):
        lr = 5e-3 / number
        for group in (*optimizer.param_groups, *twin.param_groups):
            group["lr"] = lr
        new_gradients(number)
        ema.hand_over(optimizer, number)
        optimizer.upload()
        graph.replay()
        ema.update(model, number)
        twin_step(number)
        assert optimizer.skipped == twin.skipped == float(number == 4)

    # An ordinary step with gradients elsewhere in between does not disturb the graph.
    for number in (8, 9):
        new_gradients(number)
        ema.hand_over(optimizer, number)
        if number == 8:
            for p, grad in zip(model.parameters(), grads, strict=True):
                p.grad = grad.clone(memory_format=torch.preserve_format)
            optimizer.step()
        else:
            optimizer.upload()
            graph.replay()
        ema.update(model, number)
        twin_step(number)
    assert_same(model, other, rtol=1e-4)
    assert_same(ema.module, other_ema.module, rtol=1e-4)

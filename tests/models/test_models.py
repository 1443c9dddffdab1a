"""The ResNet family against timm: names, shapes, order, initial weights, logits and gradients."""

import dataclasses
import functools
import math
import re
import sys

import pytest
import torch
import torchvision
from torch import nn

from dali_rsb.errors import UserError
from dali_rsb.models import DropPath, ResNet, check_input_sizes, create_model, list_models
from dali_rsb.models.layers import SqueezeExcite
from dali_rsb.models.registry import RESNET_SPECS
from dali_rsb.models.resnet import BasicBlock, Bottleneck, ResidualBlock

timm = pytest.importorskip("timm", reason="timm is the oracle: pip install timm")

# timm 1.0.31; the plain ones are torchvision's published counts too.
NUM_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnet200d": 64_693_064,
    "seresnet18": 11_779_624,
    "seresnet34": 21_960_416,
    "seresnet50": 28_088_024,
    "seresnet101": 49_326_872,
    "seresnet152": 66_821_848,
    "resnetrs50": 35_691_912,
    "resnetrs101": 63_618_696,
    "resnetrs152": 86_621_576,
    "resnetrs200": 93_209_992,
    "resnetrs270": 129_861_448,
    "resnetrs350": 163_956_168,
    "resnetrs420": 191_891_656,
}


def meta_model(build, *args, **kwargs):
    """A model without storage: construction takes milliseconds at any size."""
    with torch.device("meta"):
        return build(*args, **kwargs)


def state_shapes(model):
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


@functools.cache
def random_pool(mean, deviation):
    """Normal numbers to be read at shifting offsets: fresh ones for 192 M weights take seconds."""
    return mean + deviation * torch.randn(3_000_000, generator=torch.Generator().manual_seed(0))


def random_state(model):
    """A state dict like `model`'s in which every branch, norm and bias matters to the logits.

    The last norms of the blocks, zero after construction, get weights of 0.1, small enough for
    activations to stay finite through the 139 blocks of the deepest model.
    """
    last_norms = {
        f"{name}.{module.last_norm_name}"
        for name, module in model.named_modules()
        if isinstance(module, ResidualBlock)
    }
    state = {}
    for index, (key, tensor) in enumerate(model.state_dict().items()):
        module_name, _, kind = key.rpartition(".")
        if kind == "num_batches_tracked":
            state[key] = torch.tensor(0)
            continue
        if kind in ("bias", "running_mean"):
            pool = random_pool(0.0, 0.05)
        elif tensor.ndim > 1:
            pool = random_pool(0.0, math.sqrt(2 / tensor[0].numel()))
        elif module_name in last_norms:
            pool = random_pool(0.1, 0.01)
        else:
            pool = random_pool(1.0, 0.1)
        offset = 100_003 * index % 611_953
        state[key] = pool[offset : offset + tensor.numel()].view(tensor.shape)
    return state


def images(batch_size=2, size_px=64, seed=1):
    """Noise around one colour per image: noise alone would be averaged out of deep features."""
    generator = torch.Generator().manual_seed(seed)
    colour = 2 * torch.randn(batch_size, 3, 1, 1, generator=generator)
    return colour + torch.randn(batch_size, 3, size_px, size_px, generator=generator)


def block_drop_path_rates(model):
    return [
        module.drop_path.drop_probability if isinstance(module.drop_path, DropPath) else 0.0
        for module in model.modules()
        if isinstance(module, ResidualBlock)
    ]


def test_list_models_is_the_tested_list():
    assert list_models() == list(NUM_PARAMETERS)


@pytest.fixture(scope="module", params=NUM_PARAMETERS)
def pair(request):
    """A name, our model and timm's; without storage, so that any size is built at once."""
    name = request.param
    return name, meta_model(create_model, name), meta_model(timm.create_model, name)


def test_state_dict_equals_timms_in_names_shapes_and_order(pair):
    name, ours, theirs = pair
    assert isinstance(ours, ResNet)
    assert state_shapes(ours) == state_shapes(theirs)
    # Optimizer states are saved by position, so the parameters' order is part of the contract.
    assert [key for key, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    assert sum(parameter.numel() for parameter in ours.parameters()) == NUM_PARAMETERS[name]


def test_logits_equal_timms_from_its_state_dict(pair):
    # 40 px give feature maps of 10, 5, 3 and 2: odd ones are where padding and ceil_mode matter.
    batch = images(size_px=40)
    _, ours, theirs = pair
    theirs.load_state_dict(random_state(ours), strict=True, assign=True)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    with torch.inference_mode():
        expected, actual = theirs.eval()(batch), ours.eval()(batch)
    # The comparison means something only if the logits have a sane scale and see the image.
    assert 0.1 < expected.std() < 100
    assert (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_plain_state_dict_equals_torchvisions(name):
    theirs = meta_model(getattr(torchvision.models, name))
    assert state_shapes(meta_model(create_model, name)) == state_shapes(theirs)


def test_timm_loads_our_state_dict():
    ours = create_model("seresnet18", num_classes=10).eval()
    theirs = timm.create_model("seresnet18", num_classes=10).eval()
    ours.load_state_dict(random_state(ours))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    batch = images()
    torch.testing.assert_close(theirs(batch), ours(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "drop_path", "dropout"), [("resnet50", 0.0, 0.0), ("resnetrs50", 0.3, 0.25)]
)
def test_training_step_equals_timms(name, drop_path, dropout):
    """Gradients and running statistics; one seed gives both models the same dropped paths."""
    ours = create_model(name, num_classes=10, drop_path=drop_path, dropout=dropout)
    theirs = timm.create_model(name, num_classes=10, drop_path_rate=drop_path, drop_rate=dropout)
    state = random_state(ours)
    batch, target = images(batch_size=4), torch.tensor([1, 5, 5, 9])
    for model in (ours, theirs):
        model.load_state_dict(state)
        model.train()
        torch.manual_seed(3)
        nn.functional.cross_entropy(model(batch), target).backward()
    for (key, actual), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert expected.grad.abs().max() > 0, key
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=key)
    for (key, actual), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["resnet34", "seresnet50", "resnetrs50"])
def test_one_seed_gives_timms_initial_weights(name):
    torch.manual_seed(0)
    theirs = timm.create_model(name).state_dict()
    torch.manual_seed(0)
    ours = create_model(name).state_dict()
    for key, expected in theirs.items():
        assert torch.equal(ours[key], expected), key


def test_initial_weights():
    torch.manual_seed(0)
    model = create_model("resnetrs50")
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            assert module.get_parameter(f"{module.last_norm_name}.weight").abs().max() == 0
            assert module.bn1.weight.min() == 1
            assert module.bn2.weight.min() == 1
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            sample_error = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(
                math.sqrt(2 / fan_out), rel=sample_error
            )
    assert model.layer1[0].se.fc1.bias.abs().max() > 0
    assert model.fc.weight.abs().max() <= 1 / math.sqrt(2048)
    assert next(model.parameters()).dtype == torch.float32
    assert model.conv1[3].weight.is_contiguous()


def test_drop_path_rates_grow_linearly():
    rates = block_drop_path_rates(create_model("resnet50", drop_path=0.05))
    assert rates == [0.05 * index / 15 for index in range(16)]
    theirs = timm.create_model("resnet50", drop_path_rate=0.05)
    assert rates[1:] == [
        module.drop_prob for module in theirs.modules() if isinstance(module, timm.layers.DropPath)
    ]
    assert block_drop_path_rates(create_model("resnet18")) == [0.0] * 8


def test_drop_path_drops_whole_samples_and_rescales_the_rest():
    torch.manual_seed(0)
    layer = DropPath(0.2).train()
    x = torch.rand(20_000, 3, 2, 2) + 0.5
    y = layer(x)
    ratio = (y / x).flatten(1)
    kept = ratio[:, 0] > 0
    assert (ratio[~kept] == 0).all()
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.8))
    # Five standard deviations of a binomial share of 20,000 samples.
    assert kept.float().mean().item() == pytest.approx(0.8, abs=5 * math.sqrt(0.16 / 20_000))


def test_drop_path_draws_as_timm_does():
    x = torch.randn(64, 8, 4, 4).to(memory_format=torch.channels_last)
    torch.manual_seed(5)
    actual = DropPath(0.3)(x)
    torch.manual_seed(5)
    expected = timm.layers.DropPath(0.3)(x)
    assert torch.equal(actual, expected)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert DropPath(0.3)(x.bfloat16()).dtype == torch.bfloat16


def test_drop_path_is_the_identity_in_evaluation():
    x = torch.randn(8, 4)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_dropout_is_before_the_classifier_only():
    model = create_model("resnet18", num_classes=10, dropout=0.5)
    assert [n for n, m in model.named_modules() if isinstance(m, nn.Dropout)] == ["dropout"]
    seen = []
    model.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.train()(images())
    features, dropped = seen[0].mean((2, 3)), seen[1]
    kept = dropped != 0
    assert 0.3 < kept.float().mean() / (features != 0).float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], features[kept] / 0.5)
    no_dropout = create_model("resnet18", num_classes=10)
    assert not any(isinstance(module, nn.Dropout) for module in no_dropout.modules())


@pytest.mark.parametrize("ratio", [1 / 16, 1 / 4])
@pytest.mark.parametrize("num_channels", [64, 72, 200, 256])
def test_squeeze_excite_equals_timms(num_channels, ratio):
    torch.manual_seed(0)
    ours, theirs = SqueezeExcite(num_channels, ratio), timm.layers.SEModule(num_channels, ratio)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, num_channels, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["resnet18d", "resnetrs50"])
def test_channels_last_equals_contiguous_and_is_kept_throughout(name):
    model = create_model(name, num_classes=10, drop_path=0.2)
    model.load_state_dict(random_state(model))
    batch = images(batch_size=4)
    torch.manual_seed(0)
    expected = model.train()(batch)

    formats = {}

    def record(module_name):
        def hook(module, inputs, output):
            if output.ndim == 4:
                formats[module_name] = output.is_contiguous(memory_format=torch.channels_last)

        return hook

    model = model.to(memory_format=torch.channels_last)
    for module_name, module in model.named_modules():
        module.register_forward_hook(record(module_name))
    torch.manual_seed(0)
    actual = model(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert "layer4.1" in formats
    assert [module_name for module_name, kept in formats.items() if not kept] == []


def test_autocast_keeps_activations_in_half_precision():
    """Promotion to float32 anywhere would double the memory traffic from there on."""
    model = create_model("resnetrs50", num_classes=10, drop_path=0.2).train()
    dtypes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: dtypes.update({name: output.dtype})
        )
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert {name: dtype for name, dtype in dtypes.items() if dtype != torch.bfloat16} == {}


def test_a_network_is_imagenets_and_drops_nothing_unless_asked():
    asked = {"num_classes": 1000, "drop_path": 0.0, "dropout": 0.0}
    expected = str(meta_model(create_model, "resnet18", **asked))
    assert "Drop" not in expected
    assert str(meta_model(create_model, "resnet18")) == expected
    assert str(meta_model(ResNet, RESNET_SPECS["resnet18"])) == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnetrs50"])
def test_compiles_to_one_graph(name, training):
    # Depth would add tracing time only: two blocks in a stage hold every kind of module.
    spec = dataclasses.replace(RESNET_SPECS[name], num_blocks=(1, 2, 1, 1))
    model = ResNet(spec, num_classes=10, drop_path=0.3, dropout=0.1).train(training)
    batch = images()
    model.load_state_dict(random_state(model))
    torch.manual_seed(0)
    expected = model(batch)
    model.load_state_dict(random_state(model))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(batch), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["resnet18", "resnetrs50"])
def test_forward_and_backward_never_read_a_value(name):
    """Tensors of the meta device have no values: control flow on data, or a sync, would raise."""
    model = meta_model(create_model, name, num_classes=7, drop_path=0.1, dropout=0.1).train()
    logits = model(torch.empty(2, 3, 64, 64, device="meta"))
    assert logits.shape == (2, 7)
    logits.sum().backward()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet5", "resnet50"), ("ResNet50", "resnet50"), ("resnet-rs152", "resnetrs152")],
)
def test_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"unknown model '{name}'.* {nearest}\b.*timm:NAME"):
        create_model(name)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"dropout": math.nan}, "dropout"),
    ],
)
def test_value_out_of_range_is_named(arguments, key):
    with pytest.raises(UserError, match=f"^{key} is "):
        create_model("resnet18", **arguments)


def test_timm_prefix_builds_the_timm_model_with_its_rates():
    model = meta_model(create_model, "timm:resnet26d", num_classes=5, drop_path=0.2, dropout=0.1)
    assert isinstance(model, timm.models.resnet.ResNet)
    assert model.fc.out_features == 5
    assert model.drop_rate == 0.1
    assert model.layer4[-1].drop_path.drop_prob == 0.2


def test_timm_rate_of_zero_overrides_the_models_own():
    name = "swin_tiny_patch4_window7_224"
    by_default = meta_model(timm.create_model, name)
    assert any(isinstance(module, timm.layers.DropPath) for module in by_default.modules())
    model = meta_model(create_model, f"timm:{name}")
    assert not any(isinstance(module, timm.layers.DropPath) for module in model.modules())


def test_timm_model_without_stochastic_depth():
    assert meta_model(create_model, "timm:vgg11", dropout=0.3).head.drop.p == 0.3
    with pytest.raises(UserError, match="'vgg11' has no drop_path; set drop_path to 0"):
        meta_model(create_model, "timm:vgg11", drop_path=0.1)


def test_timm_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match=r"timm has no model 'convnext_tny'.* convnext_tiny"):
        create_model("timm:convnext_tny")


def test_timm_weights_tag_is_refused():
    with pytest.raises(UserError, match=r"'a1_in1k'.* write timm:resnet50$"):
        create_model("timm:resnet50.a1_in1k")


def test_timm_missing_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"run: pip install timm$"):
        create_model("timm:resnet26d")


def test_sizes_that_a_model_does_not_take_are_refused_and_the_named_ones_work():
    name = "timm:test_vit"  # 160 px alone; a ResNet takes any size
    check_input_sizes(create_model("timm:test_resnet"), "timm:test_resnet", {"augment.size": 32})
    model = create_model(name, num_classes=2).eval()
    sizes = {"augment.size": 128, "evaluation.size": 224}
    with pytest.raises(UserError) as refused:
        check_input_sizes(model, name, sizes)
    fixed = dict(re.findall(r"(\w+\.size)=(\d+)", str(refused.value)))
    assert fixed.keys() == sizes.keys()
    check_input_sizes(model, name, {key: int(size) for key, size in fixed.items()})
    side = int(fixed["augment.size"])
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 2)

"""What is frozen neither learns nor drifts, whoever optimises it."""

import copy
from pathlib import Path

import pytest
import torch
from timm.optim import param_groups_layer_decay
from timm.utils import freeze as timms_freeze
from torch import nn

from dali_rsb.errors import UserError
from dali_rsb.loader.batch import Batch
from dali_rsb.models import create_model
from dali_rsb.models.classifier import classifier_parameters
from dali_rsb.models.precision import Precision
from dali_rsb.optim import ModelEma, create_optimizer
from dali_rsb.optim.freezing import freeze
from dali_rsb.run.processes import Processes
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep

CPU = torch.device("cpu")


def _frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def _prefixed(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


RESNET_STEM = ("conv1", "bn1")


@pytest.mark.parametrize(
    ("name", "part", "prefixes"),
    [
        ("resnet18", None, ()),
        ("resnet18", 1, (*RESNET_STEM, "layer1.")),
        ("resnet18d", 3, (*RESNET_STEM, "layer1.", "layer2.", "layer3.")),
        ("resnet18", 4, (*RESNET_STEM, "layer")),
        ("resnet18", "backbone", (*RESNET_STEM, "layer")),
        ("timm:resnet18", 2, (*RESNET_STEM, "layer1.", "layer2.")),
        ("timm:test_vit", 3, ("cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1.",
                              "blocks.2.")),
        ("timm:test_convnext", 1, ("stem", "stages.0.")),
    ],
)  # fmt: skip
def test_stages_are_counted_from_the_stem(name, part, prefixes):
    model = create_model(name, 3)
    norms = freeze(model, part, classifier_parameters(model))
    assert _frozen(model) == (_prefixed(model, *prefixes) if prefixes else set())
    of_frozen = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and f"{path}.weight" in _frozen(model)
    }
    assert {path for path, module in model.named_modules() if module in set(norms)} == of_frozen


def test_the_frozen_backbone_of_timm_is_all_but_the_head():
    model = create_model("timm:test_efficientnet", 3)
    freeze(model, "backbone", classifier_parameters(model))
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"classifier.weight", "classifier.bias"}


def test_all_norms_can_be_frozen_alone():
    model = create_model("resnet18", 3)
    norms = freeze(model, None, classifier_parameters(model), all_norms=True)
    own = {p for p, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert _frozen(model) == {f"{path}.{n}" for path in own for n in ("weight", "bias")}
    assert len(norms) == len(own) == 20


def test_a_part_that_is_not_there_is_refused():
    model = create_model("resnet18", 3)
    with pytest.raises(UserError, match=r"model\.freeze=5: the model has 4 stages; give fewer"):
        freeze(model, 5, classifier_parameters(model))
    with pytest.raises(UserError, match=r"no group_matcher\): model\.freeze counts stages"):
        freeze(nn.Linear(2, 2), 1, [])


def _step(optimizer, part, all_norms=False, compile=False):
    torch.manual_seed(0)
    model = create_model("timm:test_resnet", 3)
    with torch.no_grad():  # last norms of blocks begin at 0 and would hold the blocks' gradients up
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    norms = freeze(model, part, classifier_parameters(model), all_norms)
    return TrainStep(
        model,
        create_loss("ce"),
        create_optimizer(
            model, optimizer, lr=1e-2, weight_decay=0.05, momentum=0.9, layer_decay=0.8
        ),
        ModelEma(model, decay=0.7),
        Precision(CPU, None),
        Processes(CPU),
        accumulation=1,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        frozen_norms=norms,
        compile=compile,
    )


def _batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randint(256, (4, 48, 48, 3), generator=generator, dtype=torch.uint8)
        yield Batch(images, torch.randint(3, (4,), generator=generator), 4)


def _updated(step, count, seed=0):
    batches = _batches(count, seed)
    for _ in range(count):
        step.train()
        step.update(batches)
    return step


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_what_is_frozen_stays_to_the_bit_and_has_no_state(optimizer):
    step = _step(optimizer, 2)
    before = copy.deepcopy(step.model.state_dict())
    _updated(step, 3)
    frozen = ("conv1", "bn1", "layer1", "layer2")
    for state in (step.model.state_dict(), step.ema.state_dict()):
        for name, tensor in state.items():
            assert torch.equal(tensor, before[name]) == name.startswith(frozen), name
    learning = {p for p in step.model.parameters() if p.requires_grad}
    assert set(step.optimizer.state) == learning


def test_frozen_norms_stay_while_their_convolutions_learn():
    step = _step("adamw", None, all_norms=True)
    before = copy.deepcopy(step.model.state_dict())
    _updated(step, 2)
    norms = {p for p, module in step.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, tensor in step.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name.rpartition(".")[0] in norms), name


def test_it_is_plain_pytorch_with_timms_freezing():
    step = _step("sgd", 2)
    model = copy.deepcopy(step.model).requires_grad_(True)
    parts = [n for n, _ in model.named_children() if n in ("conv1", "bn1", "layer1", "layer2")]
    timms_freeze(model, parts)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.8)
    for group in groups:
        group["lr"] = 1e-2 * group["lr_scale"]
    optimizer = torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
    for batch in _batches(3):
        images = (batch.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
        nn.functional.cross_entropy(model.train()(images), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    _updated(step, 3)
    ours = step.model.state_dict()
    for name, theirs in model.state_dict().items():  # timm's frozen norms count no batches
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=1e-6)


def test_it_resumes_to_the_bit():
    whole = _updated(_updated(_step("lamb", 2), 2), 2, seed=1)
    state = copy.deepcopy(_updated(_step("lamb", 2), 2).state_dict())
    resumed = _step("lamb", 2)
    resumed.load_state_dict(state, Path("last.pt"))
    resumed.updates_done = 2
    _updated(resumed, 2, seed=1)
    for one, other in (
        (whole.model.state_dict(), resumed.model.state_dict()),
        (whole.ema.state_dict(), resumed.ema.state_dict()),
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_compiled_model_keeps_them_frozen(monkeypatch):
    def compile_module(self, **options):
        compile_as_asked(self, backend="eager", **options)

    compile_as_asked = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", compile_module)
    torch._dynamo.reset()
    compiled, plain = (_updated(_step("adamw", 2, compile=c), 2) for c in (True, False))
    torch._dynamo.reset()
    theirs = plain.model.state_dict()
    for name, tensor in compiled.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)
        if name.startswith(("conv1", "bn1", "layer1", "layer2")):
            assert torch.equal(tensor, theirs[name])

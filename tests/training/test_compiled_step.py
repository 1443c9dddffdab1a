"""`run.compile`: the compiled step is the step, and no graph is compiled for shapes in general."""

import copy
import json

import pytest
import torch
from conftest import ROOT, run_module
from torch import Tensor, nn

from dali_rsb.config import Config
from dali_rsb.evaluation.accuracy import evaluate
from dali_rsb.loader.batch import Batch
from dali_rsb.models import create_model
from dali_rsb.models.precision import Precision
from dali_rsb.optim import ModelEma, create_optimizer
from dali_rsb.run.processes import Processes
from dali_rsb.training import assembly, compiling
from dali_rsb.training.losses import create_loss
from dali_rsb.training.step import TrainStep

CPU = torch.device("cpu")
PROCESSES, PRECISION = Processes(CPU), Precision(CPU, None)
MEAN_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture
def graphs(monkeypatch):
    """Modules compile to the operations that they are made of; the list receives each graph."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compile_as_asked = nn.Module.compile

    def compile_module(self, **options):
        compile_as_asked(self, backend=backend, **options)

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


def make_step(model, compile):
    return TrainStep(
        model,
        create_loss("bce", 0.0, 0.2),
        create_optimizer(model, "lamb", lr=5e-3, weight_decay=0.02),
        ModelEma(model, decay=0.9),
        PRECISION,
        PROCESSES,
        accumulation=2,
        mean=MEAN_STD[0],
        std=MEAN_STD[1],
        compile=compile,
    )


def make_batch(seed, size_px):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, size_px, size_px, 3), generator=generator).byte()
    return Batch(images, torch.randint(0, 3, (4,), generator=generator), num_valid=4, mixing=None)


class TinyModel(nn.Module):
    """A class of its own: PyTorch compiles the insides of a Sequential alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc(self.dropout(self.norm(self.conv(images)).relu().mean((2, 3))))


def train_and_evaluate(step):
    losses = []
    for epoch in range(2):
        step.model.train()
        for update in range(2):
            seeds = (4 * epoch + 2 * update, 4 * epoch + 2 * update + 1)
            losses.append(float(step.update(iter([make_batch(seed, 32) for seed in seeds]))))
        models = [step.model, step.ema.module]
        batches = [make_batch(seed, 48) for seed in (20, 21)]
        results = evaluate(models, batches, PROCESSES, PRECISION, *MEAN_STD)
        losses += [result.loss for result in results]
    return losses


def test_a_compiled_step_gives_the_same_from_graphs_of_fixed_shapes(graphs):
    model = create_model("timm:test_resnet", num_classes=3)
    plain = train_and_evaluate(make_step(copy.deepcopy(model), compile=False))
    assert graphs == []
    step = make_step(model, compile=True)
    compiled = train_and_evaluate(step)
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert len(graphs) == 2  # of the training, and of the evaluation of the weights
    nodes = [node for graph in graphs for node in graph.graph.find_nodes(op="placeholder")]
    inputs = [node.meta["example_value"] for node in nodes]
    assert all(isinstance(value, Tensor) for value in inputs)  # no number that varies
    assert all(type(size) is int for value in inputs for size in value.shape)
    state = step.state_dict()["model"]
    assert list(state) == list(create_model("timm:test_resnet", num_classes=3).state_dict())


def _fails_forward(graph, inputs):
    raise ValueError("no code for\nthis card")


def _fails_backward(graph, inputs):
    """Compiles; the first backward pass finds that it cannot."""

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *values):
            return tuple(value.clone() for value in values)

        @staticmethod
        def backward(ctx, *gradients):
            raise ValueError("no code for\nthis card")

    def run(*values):
        return Backward.apply(*graph.forward(*values))

    return run


@pytest.mark.parametrize("backend", [_fails_forward, _fails_backward])
def test_a_compile_that_fails_leaves_a_step_that_trains(monkeypatch, caplog, backend):
    """The same bits as without, one line of log, and nothing of the failed attempt stays."""
    compile_as_asked = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_as_asked(self, backend=backend, **how)
    )
    torch._dynamo.reset()
    model = TinyModel()
    plain = make_step(copy.deepcopy(model), compile=False)
    expected = train_and_evaluate(plain)
    step = make_step(model, compile=True)
    assert train_and_evaluate(step) == expected
    (line,) = [r.getMessage() for r in caplog.records if r.name == compiling.__name__]
    assert "no code for this card" in line
    assert "run.compile=false" in line
    ours, theirs = step.state_dict(), plain.state_dict()
    for part in ("model", "ema"):
        for name, value in ours[part].items():
            assert torch.equal(value, theirs[part][name]), (part, name)
    torch._dynamo.reset()


def test_running_out_of_memory_is_no_failure_of_the_compiler(monkeypatch):
    def backend(graph, inputs):
        def run(*values):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    compile_as_asked = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_as_asked(self, backend=backend, **how)
    )
    torch._dynamo.reset()
    step = make_step(TinyModel(), compile=True)
    step.model.train()
    with pytest.raises(torch.OutOfMemoryError):
        step.update(iter([make_batch(0, 32), make_batch(1, 32)]))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("device", "world_size", "given", "expected"),
    [
        ("cpu", 1, {}, (False, False)),
        ("cuda", 1, {}, (True, True)),
        ("cuda", 4, {}, (True, False)),
        ("cuda", 1, {"compile": False, "cuda_graph": False}, (False, False)),
        ("cpu", 1, {"compile": True}, (True, False)),
    ],
)
def test_the_defaults_are_the_fast_ones(monkeypatch, device, world_size, given, expected):
    seen = {}

    def make(*arguments, **options):
        seen.update(options)

    monkeypatch.setattr(assembly, "TrainStep", make)
    config = Config.model_validate({"name": "x", "run": given})
    processes = Processes(torch.device(device), world_size=world_size)
    assembly.build_step(config, processes, 1, PRECISION, TinyModel())
    assert (seen["compile"], seen["cuda_graph"]) == expected


@pytest.mark.slow
def test_twenty_compiled_updates_of_the_quickstart_are_the_eager_ones(digits, tmp_path):
    """By PyTorch's compiler for CPUs: losses of each update, and the weights at the end."""
    results = {}
    for compile in ("false", "true"):
        folder = tmp_path / compile
        overrides = [f"data.digits={digits}", f"run.dir={folder}", "run.device=cpu"]
        overrides += ["run.max_steps=20", "run.log_every=1", f"run.compile={compile}"]
        config = ROOT / "configs/quickstart.yaml"
        result = run_module("dali_rsb.train", config, *overrides, timeout_s=900)
        assert result.returncode == 0, result.stderr
        assert "without torch.compile" not in result.stderr
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if line["kind"] == "update"]
        state = torch.load(folder / "last.pt", weights_only=True)
        results[compile] = losses, state["model"]
    (plain, weights), (compiled, ours) = results["false"], results["true"]
    assert len(plain) == 20
    assert compiled == pytest.approx(plain, rel=1e-4)
    # LAMB's first updates magnify rounding: measured 1.5e-4 of the norm after 20.
    difference, norm = (
        torch.cat([value.flatten() for value in values]).norm()
        for values in (
            [ours[name] - weights[name] for name in weights if weights[name].is_floating_point()],
            [value for value in weights.values() if value.is_floating_point()],
        )
    )
    assert difference <= 1e-3 * norm

"""`run.compile`: the compiled step is the step, and no graph is compiled for shapes in general."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dali_rsb.evaluation.accuracy import evaluate
from dali_rsb.loader.loader import Batch
from dali_rsb.models import create_model
from dali_rsb.models.precision import Precision
from dali_rsb.optim import ModelEma, create_optimizer
from dali_rsb.run.processes import Processes
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
    model = create_model("resnet18", num_classes=3)
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
    assert list(state) == list(create_model("resnet18", num_classes=3).state_dict())

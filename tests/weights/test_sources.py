"""Weights are opened with all that their source says about them."""

import pytest
import torch

from dali_rsb.config import Config
from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.run.checkpoint import save_checkpoint, with_judged_weights
from dali_rsb.weights.sources import open_weights

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def run(tmp_path):
    """A run folder with a best checkpoint of a ResNet-18, whose EMA is twice its weights."""
    model = create_model("resnet18", 3).state_dict()
    config = Config.model_validate({"name": "x", "model": {"name": "resnet18", "num_classes": 3}})
    state = {
        "model": model,
        "ema": {name: tensor * 2 for name, tensor in model.items()},
        "updates_done": 30,
        "updates_per_epoch": 10,
        "best_top1": 62.5,
        "config": config.model_dump(mode="json"),
        "classes": CLASSES,
    }
    save_checkpoint(tmp_path / "best.pt", with_judged_weights(state))
    return tmp_path


@pytest.mark.parametrize(("ema", "kind", "factor"), [(True, "EMA", 2), (False, "model", 1)])
def test_a_run_gives_its_best_weights_with_their_description(run, ema, kind, factor):
    weights = open_weights(str(run), ema)
    fresh = torch.load(run / "best.pt", weights_only=True)["trained_model"]
    assert torch.equal(weights.tensors["conv1.weight"], fresh["conv1.weight"] * factor)
    assert (weights.kind, weights.architecture, weights.classes) == (
        kind,
        "resnet18",
        tuple(CLASSES),
    )
    assert weights.preprocessing.size == 224
    assert (weights.run["epoch"], weights.run["top1"]) == (3.0, 62.5)
    images = torch.rand(2, 3, 64, 64)
    reference = create_model("resnet18", 3).eval()
    reference.load_state_dict(weights.tensors)
    assert torch.equal(weights.model()(images), reference(images))


def test_a_state_dict_needs_the_name_of_its_architecture(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create_model("resnet18", 3).state_dict(), path)
    weights = open_weights(str(path))
    with pytest.raises(UserError, match=r"give model\.name=NAME"):
        weights.model()
    assert weights.model("resnet18")(torch.rand(1, 3, 32, 32)).shape == (1, 3)

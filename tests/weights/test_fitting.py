"""Weights on other classes: which head is kept, in which order, and what is said of it."""

import pytest
import timm
import torch

from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.models.classifier import classifier_parameters
from dali_rsb.weights.fitting import load_initial
from dali_rsb.weights.weights import Weights

HEAD = ["fc.weight", "fc.bias"]


def _source(classes, num_classes=None):
    return Weights(
        create_model("resnet18", num_classes or len(classes)).state_dict(),
        "runs/first",
        "resnet18",
        classes,
    )


def _load(weights, classes, head="auto"):
    """The model's initial and final state, and the line."""
    model = create_model("resnet18", len(classes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    line = load_initial(model, weights, classes, head, classifier_parameters(model))
    assert line.startswith("weights from runs/first (model): ")
    after = model.state_dict()
    for name, tensor in after.items():
        if name not in HEAD:
            assert torch.equal(tensor, weights.tensors[name]), name
    return before, after, line


@pytest.mark.parametrize(
    ("theirs", "ours", "head", "rows", "said"),
    [
        ("abc", "abc", "auto", [0, 1, 2], "the head is kept, its classes are the same"),
        ("abc", "cab", "auto", [2, 0, 1], "its rows in the new order of the same classes"),
        ("abc", "cab", "keep", [2, 0, 1], "its rows in the new order of the same classes"),
        (None, "abc", "keep", [0, 1, 2], "as model.head=keep asks, as the weights do not name"),
        ("abc", "abd", "keep", [0, 1, 2], "asks, as the classes differ: c there, d here"),
        ("abc", "abc", "replace", None, "is new, as model.head=replace asks"),
        ("abc", "abd", "auto", None, "is new, as the classes differ: c there, d here"),
        ("abc", "ab", "auto", None, "(fc.weight, fc.bias) is new, for 2 classes in place of 3"),
        (None, "abc", "auto", None, "is new, as the weights do not name their classes"),
    ],
)
def test_the_head_goes_by_the_names_of_its_classes(theirs, ours, head, rows, said):
    weights = _source(theirs and tuple(theirs), 3)
    before, after, line = _load(weights, list(ours), head)
    for name in HEAD:
        expected = before[name] if rows is None else weights.tensors[name][rows]
        assert torch.equal(after[name], expected)
    assert said in line


def test_what_does_not_fit_is_refused():
    weights = _source(tuple("abc"))
    with pytest.raises(UserError, match=r"model\.head=keep: fc\.weight is \(3, 512\) in runs/firs"):
        _load(weights, list("abcd"), "keep")
    model = create_model("resnet34", 3)
    with pytest.raises(UserError, match=r"runs/first is of another architecture: layer1\.2\.conv1"):
        load_initial(model, weights, list("abc"), "auto", HEAD)
    more = Weights({**weights.tensors, "extra": torch.ones(1)}, "runs/first", None, tuple("abc"))
    with pytest.raises(UserError, match=r"extra is \(1,\) there and absent in the model"):
        load_initial(create_model("resnet18", 3), more, list("abc"), "auto", HEAD)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_efficientnet", "deit_tiny_distilled_patch16_224"]
)
def test_the_classifier_of_timms_models_is_what_depends_on_the_classes(name):
    few, many = (timm.create_model(name, num_classes=n).state_dict() for n in (3, 4))
    differing = [n for n in few if few[n].shape != many[n].shape]
    model = create_model(f"timm:{name}", 3)
    assert sorted(classifier_parameters(model)) == sorted(differing)

"""Weights are opened with all that their source says about them."""

import argparse
import json
import shutil
import time

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.data import ImageNetInfo, resolve_data_config
from timm.models import save_for_hf

from dali_rsb.config import Config
from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.run.checkpoint import save_checkpoint, with_judged_weights
from dali_rsb.weights.sources import open_weights

CLASSES = ["ant", "bee", "cat"]
# Ours of each kind of block, stem and shortcut, and three whose classifiers have other names.
MODELS = ["resnet18", "resnet18d", "seresnet18", "test_vit", "test_convnext", "test_efficientnet"]


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
    assert (weights.preprocessing.size, weights.preprocessing.train_size) == (224, 224)
    assert (weights.run["epoch"], weights.run["top1"]) == (3.0, 62.5)
    images = torch.rand(2, 3, 64, 64)
    reference = create_model("resnet18", 3).eval()
    reference.load_state_dict(weights.tensors)
    assert torch.equal(weights.model()(images), reference(images))


def test_a_checkpoint_must_be_that_of_a_run(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": {"weight": torch.ones(3)}, "ema": None})
    with pytest.raises(UserError, match=r"a\.pt is no whole checkpoint of a run \(KeyError: 'conf"):
        open_weights(str(tmp_path / "a.pt"))


def test_a_state_dict_needs_the_name_of_its_architecture(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create_model("resnet18", 3).state_dict(), path)
    weights = open_weights(str(path))
    with pytest.raises(UserError, match=r"give model\.name=NAME"):
        weights.model()
    assert weights.model("resnet18")(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def _of_timm(name, num_classes=5):
    """A model of timm whose norms have statistics and scales of their own."""
    model = timm.create_model(name, num_classes=num_classes)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def _ours(name):
    return f"timm:{name}" if name.startswith("test_") else name


def _assert_same(weights, model, architecture=None):
    """Every tensor to the bit, and the logits of the model made from them."""
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights.tensors[name], tensor), name
    images = torch.rand(2, 3, 160, 160)  # the size of timm's small models for tests
    with torch.no_grad():
        torch.testing.assert_close(
            weights.model(architecture)(images), model(images), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_of_timm_give_timms_logits(tmp_path, name, suffix):
    model, path = _of_timm(name), tmp_path / f"weights.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(model.state_dict(), path)
    _assert_same(open_weights(str(path)), model, _ours(name))


def test_torchvisions_names_are_ours(tmp_path):
    model = torchvision.models.resnet50(num_classes=4).eval()
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    _assert_same(open_weights(str(tmp_path / "a.pth")), model, "resnet50")


@pytest.mark.parametrize(
    ("saved", "ema", "kind", "factor"),
    [
        (lambda one, two: {"state_dict": one}, True, "model", 1),
        (lambda one, two: {"state_dict": one, "state_dict_ema": two, "epoch": 3}, True, "EMA", 2),
        (lambda one, two: {"state_dict": one, "state_dict_ema": two}, False, "model", 1),
        (lambda one, two: {f"module.{n}": t for n, t in one.items()}, True, "model", 1),
        (lambda one, two: {f"_orig_mod.module.{n}": t for n, t in one.items()}, True, "model", 1),
        (
            lambda one, two: {
                "model": one,
                "model_ema": {
                    "n_averaged": torch.tensor(9),
                    **{f"module.{n}": t for n, t in two.items()},
                },
            },
            True,
            "EMA",
            2,
        ),
    ],
)
def test_weights_are_found_among_what_programs_save(tmp_path, saved, ema, kind, factor):
    one = {"fc.weight": torch.rand(3, 4), "fc.bias": torch.rand(3)}
    two = {name: 2 * tensor for name, tensor in one.items()}
    torch.save(saved(one, two), tmp_path / "a.pth.tar")
    weights = open_weights(str(tmp_path / "a.pth.tar"), ema)
    assert weights.kind == kind
    assert weights.tensors.keys() == one.keys()
    assert torch.equal(weights.tensors["fc.weight"], factor * one["fc.weight"])


def test_a_checkpoint_of_timms_program_names_its_architecture(tmp_path):
    model = _of_timm("resnet18")
    state = {"arch": "resnet18", "state_dict": model.state_dict(), "args": argparse.Namespace(a=1)}
    torch.save(state, tmp_path / "a.pth.tar")
    weights = open_weights(str(tmp_path / "a.pth.tar"))
    assert weights.architecture == "resnet18"
    _assert_same(weights, model)


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
@pytest.mark.parametrize("given", [{}, {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.9, "img_size": 96}])
def test_a_checkpoint_of_timms_program_says_how_its_images_were_prepared(tmp_path, name, given):
    """As timm's train.py and validate.py take it from the same arguments."""
    model = _of_timm(name)
    state = {"arch": name, "state_dict": model.state_dict(), "args": argparse.Namespace(**given)}
    torch.save(state, tmp_path / "a.pth.tar")
    got = open_weights(str(tmp_path / "a.pth.tar")).preprocessing
    theirs = resolve_data_config(given, model.pretrained_cfg)
    assert (got.mean, got.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert (got.size, got.crop_ratio) == (theirs["input_size"][1], theirs["crop_pct"])
    assert got.interpolation == theirs["interpolation"]


@pytest.mark.parametrize("safe", ["both", False])
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_a_folder_of_timm_brings_names_and_preprocessing(tmp_path, name, safe):
    model = _of_timm(name)
    labels = ["owl", "ant", "bee", "elk", "cow"]
    save_for_hf(model, tmp_path, model_config={"label_names": labels}, safe_serialization=safe)
    if safe:
        (tmp_path / "pytorch_model.bin").unlink()
    weights = open_weights(str(tmp_path))
    assert weights.architecture == _ours(name)
    assert weights.classes == tuple(labels)
    theirs = resolve_data_config({}, model.pretrained_cfg, use_test_size=True)
    ours = weights.preprocessing
    assert (ours.mean, ours.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert (ours.size, ours.crop_ratio) == (theirs["input_size"][-1], theirs["crop_pct"])
    assert ours.interpolation == theirs["interpolation"]
    assert ours.train_size == model.pretrained_cfg["input_size"][-1]
    _assert_same(weights, model)


def test_a_safetensors_file_may_carry_its_description(tmp_path):
    model, path = _of_timm("resnet18"), tmp_path / "weights.safetensors"
    save_for_hf(model, tmp_path, model_config={"label_names": list("abcde")})
    text = (tmp_path / "config.json").read_text()
    save_file(model.state_dict(), path, {"config": text})
    weights = open_weights(str(path))
    assert (weights.architecture, weights.classes) == ("resnet18", tuple("abcde"))
    assert weights.preprocessing == open_weights(str(tmp_path)).preprocessing
    _assert_same(weights, model)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub, without the network, that holds what `put(repo, folder)` puts there."""
    root = tmp_path / "hub"
    root.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository, folder):
        place = root / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))

    return put


def test_the_hubs_cache_serves_without_a_network(tmp_path, cache):
    model = _of_timm("resnet18")
    save_for_hf(model, tmp_path / "a", model_config={"label_names": list("abcde")})
    cache("someone/birds", tmp_path / "a")
    weights = open_weights("hf:someone/birds")
    assert (weights.source, weights.classes) == ("hf:someone/birds", tuple("abcde"))
    _assert_same(weights, model)


def test_timms_weights_come_with_the_names_of_imagenets_classes(tmp_path, cache):
    model = _of_timm("test_resnet", 1000)
    save_for_hf(model, tmp_path / "a")
    cache("timm/test_resnet.r160_in1k", tmp_path / "a")
    weights = open_weights("timm:test_resnet.r160_in1k")
    assert weights.architecture == "timm:test_resnet"
    assert weights.classes == tuple(ImageNetInfo("imagenet-1k").label_names())
    assert (weights.preprocessing.size, weights.preprocessing.crop_ratio) == (160, 0.95)
    _assert_same(weights, model)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnet51", "timm has no such model; the nearest are resnet51q"),
        ("timm:resnet18.a9_in1k", "timm has no such weights; give timm:resnet18.a1_in1k"),
        ("timm:resnet18.a1_in1k", "is not in the cache and cannot be downloaded"),
        ("hf:someone/absent", "is not in the cache and cannot be downloaded"),
        ("hf:no/such/name", "cannot be loaded"),
        ("absent.pt", "no weights at absent.pt; give the path of a run"),
    ],
)
def test_what_cannot_be_had_is_one_line(cache, source, message):
    with pytest.raises(UserError, match=message) as caught:
        open_weights(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("source", ["timm:resnet18.a1_in1k", "hf:someone/absent"])
def test_a_hub_out_of_reach_is_said_at_once(cache, monkeypatch, caplog, source):
    """The hub's client alone would try each file six times, in a minute and a half."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http", "https", "all"):
        for variable in (f"{name}_proxy", f"{name.upper()}_PROXY"):
            monkeypatch.delenv(variable, raising=False)
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(UserError, match=r"out of reach; .* give their folder"):
        open_weights(source)
    assert not waited
    assert "http://127.0.0.1:9 is out of reach: looking into the cache alone" in caplog.text
    assert not constants.HF_HUB_OFFLINE


class _Code:
    def __reduce__(self):
        return (print, ("code from a file of weights",))


def _good(path):
    model = create_model("resnet18", 3)
    (save_file if path.suffix == ".safetensors" else torch.save)(model.state_dict(), path)


def _half(path):
    _good(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _infinite(path):
    tensors = {"fc.weight": torch.tensor([[1.0, float("nan")]])}
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", _half, "cannot be read"),
        ("a.safetensors", _half, "is no whole safetensors file"),
        ("a.pth", lambda path: path.write_text("words"), "cannot be read"),
        ("a.safetensors", lambda path: path.write_text("words"), "is no whole safetensors file"),
        ("a.pth", _infinite, r"holds inf or NaN in model\.fc\.weight"),
        ("a.safetensors", _infinite, r"holds inf or NaN in model\.fc\.weight"),
        ("a.pth", lambda path: torch.save({"a": 1}, path), "holds no model weights"),
        ("a.pth", lambda path: torch.save({}, path), "holds no model weights"),
        ("a.safetensors", lambda path: save_file({}, path), "holds no model weights"),
        (
            "a.pth",
            lambda path: torch.save({"w": torch.ones(1), "c": _Code()}, path),
            r"holds builtins\.print beside tensors, and code of a file is never run; save the",
        ),
        (
            "a.pth",
            lambda path: torch.save(torch.nn.Linear(2, 2), path),
            r"holds torch\.nn\.modules\.linear\.Linear beside tensors",
        ),
    ],
)
def test_a_file_that_is_no_good_is_one_line(tmp_path, capfd, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        open_weights(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert "code from" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, "names no architecture of timm"),
        ({"label_names": ["a", "b"]}, "are not the names of its 5 classes"),
        ({"label_names": ["a", "b", "c", "d", "a"]}, "names class a 2 times"),
        ({"pretrained_cfg": {"mean": [1, 2]}}, "pretrained_cfg of its config.json is not as timm"),
        ({"pretrained_cfg": 3}, "pretrained_cfg in its config.json is no mapping"),
    ],
)
def test_a_folders_description_must_make_sense(tmp_path, change, message):
    save_for_hf(_of_timm("resnet18"), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        open_weights(str(tmp_path))


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(UserError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        open_weights(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        open_weights(str(tmp_path))


def test_weights_of_another_architecture_are_named(tmp_path):
    _good(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is of another architecture: layer1"):
        open_weights(str(tmp_path / "a.pth")).model("resnet50")

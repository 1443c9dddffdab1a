"""What is exported is the model, to the bit or to rounding, and says no more than is known."""

import errno
import json
import os
import re
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import timm.models._hub
import torch
import torchvision
import yaml
from exporting import (
    ARCHITECTURE,
    CLASSES,
    SIZE,
    assert_same_bits,
    run_command,
    state_dict,
    write_checkpoint,
)
from PIL import Image
from timm.data import create_transform, resolve_data_config

from dali_rsb.errors import UserError
from dali_rsb.run.records import EpochRow, RunInfo
from dali_rsb.run.trackers.csv_file import CsvFile
from dali_rsb.weights.export import (
    hub_folder,
    model_card,
    onnx_file,
    safetensors_file,
    torch_export_file,
)
from dali_rsb.weights.export.accuracy import known_accuracy
from dali_rsb.weights.export.comparison import compare
from dali_rsb.weights.sources import open_weights


@pytest.fixture(scope="module")
def run(photo_folder, tmp_path_factory):
    """A run folder with an EMA, a best and a last checkpoint, and four epochs of metrics."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    write_checkpoint(folder / "best.pt", photo_folder, ema=True)
    write_checkpoint(folder / "last.pt", photo_folder, seed=1, ema=True)
    metrics = CsvFile(RunInfo(folder, {}, 10, 0))
    for epoch in range(1, 5):
        accuracies = (50.0 + epoch, 90.0 + epoch, 60.0 + epoch, 95.0 + epoch)
        metrics.log_epoch(
            EpochRow(epoch, 10 * epoch, 1 / epoch, 0.1, 100.0, 0.5, 0, 0.7, *accuracies, 3.0)
        )
    return folder


def _logits(model, images):
    with torch.no_grad():
        return model.eval()(images)


def _names(folder):
    return {path.name for path in folder.iterdir() if not path.name.endswith("_index")}


def _noise(count=3, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


NAMES = ("resnet18", "test_resnet", "mobilenetv3_small_050", "test_convnext", "regnetx_002")


@pytest.mark.parametrize(
    ("name", "size", "suffix"),
    [
        *((name, SIZE, suffix) for name in NAMES for suffix in (".safetensors", ".pth")),
        ("test_vit", 160, ".safetensors"),
        ("test_vit", 160, ".pth"),
        ("torchvision", SIZE, ".pth"),
    ],
)
def test_weights_of_others_come_out_as_they_went_in(
    monkeypatch, tmp_path, photo_folder, name, size, suffix
):
    if name == "torchvision":
        name, original = "resnet50", torchvision.models.resnet50(num_classes=5)
    else:
        original = timm.create_model(name, num_classes=5)
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    tensors = original.state_dict()
    source, target = tmp_path / f"weights{suffix}", tmp_path / "out"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(tensors, source)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    ours = name if name in ("resnet18", "resnet50") else f"timm:{name}"
    options = ["--model", ours, "--classes", tmp_path / "classes.txt", "--size", size]
    options += ["--images", photo_folder, "--num-images", 8, "--output", target]
    run_command(monkeypatch, "export", source, "--to", "hub", *options)
    loaded = timm.create_model(f"local-dir:{target}", pretrained=True)
    assert_same_bits(loaded.state_dict(), tensors)
    images = _noise(size=size)
    assert torch.allclose(_logits(loaded, images), _logits(original, images), rtol=0, atol=1e-5)
    assert tuple(loaded.pretrained_cfg["label_names"]) == tuple("abcde")
    config = json.loads((target / "config.json").read_text())
    assert config["num_features"] == loaded.num_features
    again = open_weights(str(target))
    assert (again.architecture, again.classes) == (ours, tuple("abcde"))
    assert_same_bits(again.tensors, tensors)


def test_a_safetensors_file_keeps_all_that_its_run_says(monkeypatch, tmp_path, run):
    target = tmp_path / "out.safetensors"
    run_command(monkeypatch, "export", run, "--to", "safetensors", "--output", target)
    before, after = open_weights(str(run)), open_weights(str(target))
    assert_same_bits(after.tensors, before.tensors)
    assert_same_bits(after.tensors, state_dict(100))
    for attribute in ("architecture", "classes", "preprocessing", "kind"):
        assert getattr(after, attribute) == getattr(before, attribute), attribute
    recipe = before.run["config"]
    for section in ("augment", "loss", "optimizer", "schedule", "ema", "evaluation"):
        assert after.run["config"][section] == recipe[section]
    assert known_accuracy(after) == known_accuracy(before)
    assert str(run.parent) not in json.dumps(after.run)  # no path of this disk


def test_another_preprocessing_is_the_exports_and_the_accuracy_keeps_its_own(
    monkeypatch, tmp_path, run
):
    target = tmp_path / "out.safetensors"
    options = ["--size", 96, "--crop-ratio", 1, "--mean", 0.5, 0.4, 0.3]
    run_command(monkeypatch, "export", run, "--to", "safetensors", "--output", target, *options)
    found = open_weights(str(target))
    assert (found.preprocessing.size, found.preprocessing.mean) == (96, (0.5, 0.4, 0.3))
    assert found.run["config"]["evaluation"]["size"] == 96  # for whoever asks the run
    assert known_accuracy(found) == known_accuracy(open_weights(str(run)))
    assert known_accuracy(found).size == SIZE


def test_weights_of_either_kind_can_be_chosen(monkeypatch, tmp_path, run, photo_folder):
    target = tmp_path / "out.safetensors"
    arguments = ["--to", "safetensors", "--output", target]
    run_command(monkeypatch, "export", run / "last.pt", "--weights", "model", *arguments)
    assert_same_bits(open_weights(str(target)).tensors, state_dict(1))
    assert open_weights(str(target)).kind == "model"
    write_checkpoint(tmp_path / "plain.pt", photo_folder)
    arguments[-1] = tmp_path / "none.safetensors"
    with pytest.raises(UserError, match="has no EMA; leave out --weights ema"):
        run_command(monkeypatch, "export", tmp_path / "plain.pt", "--weights", "ema", *arguments)


@pytest.fixture(scope="module")
def hub(run, tmp_path_factory):
    target = tmp_path_factory.mktemp("exports") / "a hub?#folder"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_command(monkeypatch, "export", run, "--to", "hub", "--output", target)
    return target


def test_timm_takes_a_hub_folder_with_its_images_and_another_head(hub, photographs):
    loaded = timm.create_model(f"local-dir:{hub}", pretrained=True)
    assert_same_bits(loaded.state_dict(), state_dict(100))
    data = resolve_data_config({}, model=loaded)
    assert list(data["input_size"]) == [3, SIZE, SIZE]
    assert (data["crop_pct"], data["interpolation"]) == (0.95, "bicubic")
    assert create_transform(**data)(photographs[0]).shape == (3, SIZE, SIZE)
    other = timm.create_model(f"local-dir:{hub}", pretrained=True, num_classes=9).state_dict()
    assert other["fc.weight"].shape[0] == 9
    # What timm knows of its own weights' last feature map is not so at this size.
    assert timm.get_pretrained_cfg("test_resnet").pool_size is not None
    assert json.loads((hub / "config.json").read_text())["pretrained_cfg"]["pool_size"] is None
    assert torch.equal(other["conv1.0.weight"], loaded.state_dict()["conv1.0.weight"])


def test_timm_takes_it_from_the_hub_too(hub, monkeypatch):
    monkeypatch.setattr(
        timm.models._hub, "hf_hub_download", lambda repo_id, filename, **_: str(hub / filename)
    )
    monkeypatch.setattr(
        timm.models._hub, "download_from_hf", lambda model_id, filename, **_: str(hub / filename)
    )
    loaded = timm.create_model("hf-hub:someone/tiny", pretrained=True)
    assert_same_bits(loaded.state_dict(), state_dict(100))


def test_the_card_says_what_the_run_has_recorded(hub, run):
    card = (hub / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    assert "license" not in front
    # Update 30 is the end of epoch 3: its EMA's row, not the best one of the run.
    assert "Top-1 63.00 %, top-5 98.00 %" in card
    assert f"at {SIZE} px, crop ratio 0.95, bicubic" in card
    assert "62.5" not in card
    assert "the EMA of the weights after 3 epochs" in card
    assert "| 2 | 0.5000 | 52.00 | 62.00 |" in card
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert (recipe["optimizer"]["lr"], recipe["schedule"]["epochs"]) == (0.0123, 4)
    assert "Trained on 3 x Abacus with torch 2.9.9" in card
    assert "14 images of" in card
    assert str(run.parent) not in card


@pytest.mark.parametrize(
    ("checkpoint", "options", "expected"),
    [
        ("best.pt", [], (62.5, True)),
        ("best.pt", ["--weights", "model"], None),  # the EMA was judged
        ("last.pt", [], None),  # 62.5 is the best checkpoint's
    ],
)
def test_without_metrics_the_best_checkpoint_alone_has_an_accuracy(
    monkeypatch, tmp_path, run, checkpoint, options, expected
):
    source = tmp_path / "moved" / checkpoint
    source.parent.mkdir()
    source.write_bytes((run / checkpoint).read_bytes())
    arguments = ["--to", "hub", "--output", tmp_path / "out", *options]
    run_command(monkeypatch, "export", source, *arguments)
    known = known_accuracy(open_weights(str(tmp_path / "out")))
    assert (known and (known.top1, known.has_chosen)) == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("Not known: no evaluation" in card) == (expected is None)
    assert "## Curve" not in card


def test_a_run_that_has_split_its_images_is_compared_on_those_held_out(
    monkeypatch, tmp_path, photo_folder, capsys
):
    write_checkpoint(tmp_path / "best.pt", photo_folder, val=None, val_fraction=0.7)
    target = tmp_path / "out"
    run_command(monkeypatch, "export", tmp_path / "best.pt", "--to", "hub", "--output", target)
    count = int(re.search(r"on (\d+) images of", capsys.readouterr().out)[1])
    assert 8 <= count < 14
    known = known_accuracy(open_weights(str(target)))
    assert known.images.endswith(f"{photo_folder.name} (0.7 of it, held out)")


def test_weights_without_a_description_claim_nothing(monkeypatch, tmp_path, caplog):
    torch.save(state_dict(0), tmp_path / "weights.pth")
    arguments = ["--to", "hub", "--output", tmp_path / "out", "--num-images", 8]
    run_command(
        monkeypatch, "export", tmp_path / "weights.pth", "--model", ARCHITECTURE, *arguments
    )
    assert "compared on synthetic images" in caplog.text
    card = (tmp_path / "out" / "README.md").read_text()
    for sentence in (
        "does not say what they are called",
        "an assumption of the export",
        "Not known",
        "Nothing is recorded of the training",
        "8 synthetic images",
    ):
        assert sentence in card
    assert "label_names" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ({}, "Exported by"),
        ({"config": {}}, "The environment of the training is not recorded. Exported by"),
        (
            {"config": {}, "environment": {"torch": "2.9.9"}},
            "Trained on devices that are not recorded with torch 2.9.9. Exported by",
        ),
    ],
)
def test_the_card_says_what_is_not_recorded_of_the_environment(run, sentence):
    subject = SimpleNamespace(weights=SimpleNamespace(run=run), images_are="8 synthetic images")
    assert model_card._environment(subject).startswith(sentence)


def test_onnx_takes_batches_of_any_size_and_normalises_if_asked(monkeypatch, tmp_path, run):
    import onnxruntime

    target = tmp_path / "out.onnx"
    run_command(
        monkeypatch, "export", run, "--to", "onnx", "--with-normalisation", "--output", target
    )
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, SIZE, SIZE)
    mean, std = (
        torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    model = open_weights(str(run)).model()
    expected = _logits(model, (images - mean) / std).numpy()
    for batch in (1, 2, 5):
        (logits,) = session.run(["logits"], {"images": images[:batch].numpy()})
        np.testing.assert_allclose(logits, expected[:batch], rtol=0, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["label_names"]) == CLASSES
    assert json.loads(metadata["config"])["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]


def test_torch_export_takes_batches_of_any_size(monkeypatch, tmp_path, run, capsys):
    target = tmp_path / "out.pt2"
    run_command(monkeypatch, "export", run, "--to", "torch-export", "--output", target)
    printed = re.search(r"largest difference .*: (\S+) on 14 images", capsys.readouterr().out)
    assert float(printed[1]) <= 1e-5
    texts = {"config": ""}
    program = torch.export.load(str(target), extra_files=texts).module()
    model = open_weights(str(run)).model()
    for batch in (1, 4):
        images = _noise(batch)
        expected = _logits(model, images)
        assert torch.allclose(program(images), expected, rtol=0, atol=1e-5)
    assert json.loads(texts["config"])["label_names"] == CLASSES


DIFFER = "logits differ from the model's by"


@pytest.mark.parametrize(
    ("name", "module", "fault", "message"),
    [
        ("safetensors", safetensors_file, "logits", DIFFER),
        ("hub", hub_folder, "logits", DIFFER),
        ("onnx", onnx_file, "logits", DIFFER),
        ("torch-export", torch_export_file, "logits", DIFFER),
        ("safetensors", safetensors_file, "classes", DIFFER),
        ("hub", hub_folder, "nan", DIFFER),
        ("onnx", onnx_file, "one batch", r"cannot be run \(IndexError"),
        ("onnx", onnx_file, "unreadable", r"cannot be read \(RuntimeError: no archive\)"),
        ("hub", hub_folder, "disk", r"cannot be written \(No space left on device\)"),
        ("torch-export", torch_export_file, "disk", r"cannot be written \(No space left"),
    ],
)
def test_an_export_that_differs_is_refused_and_leaves_nothing(
    monkeypatch, tmp_path, run, name, module, fault, message
):
    model = open_weights(str(run)).model()

    def reload(*_):
        if fault == "unreadable":
            raise RuntimeError("no archive")
        faults = {
            "logits": lambda logits: logits + 1e-3,
            "classes": lambda logits: logits[:, :1],
            "nan": lambda logits: logits * torch.nan,
            "one batch": lambda logits: logits[[0, 1]],
        }
        return lambda images: faults[fault](_logits(model, images))

    def write(_, path, *options):
        path = path / "model.safetensors" if name == "hub" else path
        path.write_bytes(b"an export")
        if fault == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write", write)
    monkeypatch.setattr(module, "reload", reload)
    with pytest.raises(UserError, match=message) as caught:
        run_command(monkeypatch, "export", run, "--to", name, "--output", tmp_path / "out")
    assert len(str(caught.value)) <= 300
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("largest", "difference", "is_same"),
    [(0.01, 5e-6, True), (0.01, 2e-5, False), (100.0, 5e-4, True), (100.0, 2e-3, False)],
)
def test_the_bound_is_relative_to_logits_above_1_and_absolute_below(largest, difference, is_same):
    def model(images):
        return largest * images.mean((2, 3))

    subject = SimpleNamespace(
        images=torch.ones(4, 3, 2, 2),
        normalise=lambda images: images,
        preprocessing=SimpleNamespace(size=2),
        model=model,
    )

    def reloaded(images):
        return model(images) + difference

    if is_same:
        found = compare(subject, reloaded, bound=1e-5)
        assert difference / 2 < found.largest < found.bound == pytest.approx(max(largest, 1) * 1e-5)
        return
    with pytest.raises(UserError, match=DIFFER):
        compare(subject, reloaded, bound=1e-5)


def test_a_model_that_cannot_be_traced_is_refused(monkeypatch, tmp_path, run):
    def export(*_, **__):
        raise ValueError("data-dependent\ncontrol flow")

    monkeypatch.setattr(torch.export, "export", export)
    for name in ("onnx", "torch-export"):
        with pytest.raises(UserError, match=r"cannot trace .* \(ValueError: data-dependent cont"):
            run_command(monkeypatch, "export", run, "--to", name, "--output", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_bit_is_refused_and_the_earlier_export_stays(monkeypatch, tmp_path, run):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"the earlier one")
    load_file = safetensors.torch.load_file

    def changed(path):
        tensors = load_file(path)
        tensors["bn1.running_mean"].view(torch.int32)[3] ^= 1
        return tensors

    monkeypatch.setattr(safetensors.torch, "load_file", changed)
    with pytest.raises(UserError, match=r"bn1\.running_mean reads otherwise than it was written"):
        run_command(
            monkeypatch, "export", run, "--to", "safetensors", "--output", target, "--overwrite"
        )
    assert target.read_bytes() == b"the earlier one"
    assert [*tmp_path.iterdir()] == [target]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", [], r"no weights at"),
        ("half.pt", [], r"half\.pt"),
        ("weights.pth", [], r"does not say its architecture; give it by --model NAME"),
        ("weights.pth", ["--model", "timm:test_vit"], r"of another architecture"),
        ("weights.pth", ["--model", "resnet99"], r"unknown model 'resnet99'"),
        ("best.pt", ["--model", "resnet50"], r"is a timm:test_resnet, not a resnet50"),
        ("best.pt", ["--classes", "three.txt"], r"names 3 classes, but .* has 2 outputs"),
        ("best.pt", ["--classes", "none.txt"], r"none\.txt does not exist"),
        ("best.pt", ["--images", "nowhere"], r"nowhere does not exist"),
        ("best.pt", ["--images", "few"], r"holds 1 images; give at least 8"),
        ("best.pt", ["--num-images", "7"], r"give at least 8"),
        ("best.pt", ["--ouput", "x"], r"unknown argument '--ouput', did you mean '--output'\?"),
        ("best.pt", ["--to", "tflite"], r"argument --to: invalid choice"),
        ("best.pt", ["--size", "0"], r"--size 0 is out of range"),
        ("best.pt", ["--crop-ratio", "95"], r"--crop-ratio 95\.0 is out of range"),
        ("best.pt", ["--std", "1", "0", "1"], r"three positive numbers"),
        ("best.pt", ["--with-normalisation"], r"use --to onnx or torch-export"),
        ("best.pt", ["--push", "a/b"], r"--push takes --to hub"),
        ("best.pt", ["--output", "no/folder/x"], r"there is no folder"),
        ("best.pt", ["--output", "three.txt"], r"exists already; give another --output"),
        ("best.pt", ["--output", "few", "--overwrite"], r"few is a folder"),
        ("best.pt", ["--to", "hub", "--output", "few", "--overwrite"], r"more than an export"),
        ("best.pt", ["--to", "hub", "--push", "a b/c"], r"no repository of the hub"),
        ("best.pt", ["--to", "hub", "--push", "a/b"], r"hf auth login"),
    ],
)
def test_a_mistake_is_one_line_that_says_the_fix(
    monkeypatch, tmp_path, run, source, options, message
):
    (tmp_path / "best.pt").write_bytes((run / "best.pt").read_bytes())
    (tmp_path / "half.pt").write_bytes((run / "best.pt").read_bytes()[:1_000_000])
    torch.save(state_dict(0), tmp_path / "weights.pth")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "few" / "a").mkdir(parents=True)
    Image.new("RGB", (80, 80)).save(tmp_path / "few" / "a" / "1.png")
    before = _names(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=message) as caught:
        run_command(monkeypatch, "export", source, "--to", "safetensors", *options)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == before


def test_a_model_of_a_fixed_size_says_that_it_takes_no_other(monkeypatch, tmp_path):
    name, source = "vit_tiny_patch16_224", tmp_path / "vit.pth"
    torch.save(timm.create_model(name, num_classes=2).state_dict(), source)
    options = ["--to", "safetensors", "--output", tmp_path / "x", "--model", f"timm:{name}"]
    with pytest.raises(UserError, match=f"timm:{name} takes no images of 64 px; give --size"):
        run_command(monkeypatch, "export", source, "--size", 64, *options)
    assert _names(tmp_path) == {"vit.pth"}


@pytest.mark.parametrize("name", ["hub", "onnx"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, tmp_path, run, name):
    package = {"hub": "huggingface_hub", "onnx": "onnxscript"}[name]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package} .*pip install 'dali_rsb\[export\]'"):
        run_command(monkeypatch, "export", run, "--to", name, "--output", tmp_path / "x")


class _Hub:
    """Stands for the hub's client."""

    pushed = None
    error = None

    def __init__(self, **_):
        pass

    def create_repo(self, repository, private, exist_ok):
        if self.error is not None:
            raise self.error
        assert exist_ok
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

    def upload_folder(self, repo_id, folder_path):
        _Hub.pushed = repo_id, sorted(path.name for path in folder_path.iterdir())
        return "https://huggingface.co/me/tiny/commit/1"


def test_push_uploads_the_folder_and_it_stays_where_that_fails(monkeypatch, tmp_path, run, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    target = tmp_path / "out"
    arguments = ["export", run, "--to", "hub", "--output", target, "--push", "me/tiny"]
    run_command(monkeypatch, *arguments)
    assert _Hub.pushed == ("me/tiny", ["README.md", "config.json", "model.safetensors"])
    assert "pushed: https://huggingface.co/me/tiny" in capsys.readouterr().out
    monkeypatch.setattr(_Hub, "error", ConnectionError("no route\nto host"))
    with pytest.raises(UserError, match=r"is complete, but pushing it .* failed \(no route\)"):
        run_command(monkeypatch, *arguments, "--overwrite")
    assert timm.create_model(f"local-dir:{target}", pretrained=True).num_classes == 2

"""`dali-rsb finetune`: from photographs and weights to a better model, and every mistake in a line.

A small ResNet of timm learns six photographs by their crops; four of them, under other names and by
other crops, are what it is fine-tuned on.
"""

import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from dali_rsb import finetune, train
from dali_rsb.errors import run_command
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.training.finetuning import images_in

MODEL = "timm:test_resnet"  # 370,000 parameters
QUICK = ("run.device=cpu", "run.warm_up=false", "schedule.warmup_epochs=0", "data.threads=1")
SIZE = ("augment.size=48", "evaluation.size=48", "augment.randaugment=null")


def _cut(root, photographs, count, seed):
    """Class folders of crops: photograph i is the class NAME-i."""
    draws = np.random.default_rng(seed)
    for number, photograph in enumerate(photographs):
        folder = root / f"{root.name}-{number}"
        folder.mkdir(parents=True)
        for crop in range(count):
            side = int(draws.integers(60, 140))
            left = int(draws.integers(photograph.width - side))
            top = int(draws.integers(photograph.height - side))
            box = (left, top, left + side, top + side)
            photograph.crop(box).resize((56, 56)).save(folder / f"{crop}.jpg", quality=90)
    return root


def _run(command, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [command.__name__, *map(str, arguments)])
    run_command(command.main)


@pytest.fixture(scope="module")
def photos(photographs, tmp_path_factory):
    """200 photographs of four classes."""
    return _cut(tmp_path_factory.mktemp("new") / "new", photographs[:4], 50, seed=1)


@pytest.fixture(scope="module")
def pretrained(photographs, tmp_path_factory):
    """A run of a few epochs on six classes, its images normalised by other numbers than ours."""
    root = tmp_path_factory.mktemp("pretrained")
    images = _cut(root / "old", [*photographs[:4], *photographs[8:10]], 60, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        _run(
            train,
            patch,
            "finetune",
            f"data.train={images}",
            "data.val_fraction=0.2",
            "data.mean=[0.5, 0.5, 0.5]",
            f"model.name={MODEL}",
            "model.num_classes=6",
            "optimizer.batch_size=32",
            "optimizer.lr=3e-3",
            "optimizer.layer_decay=null",
            "schedule.epochs=6",
            f"run.dir={root / 'run'}",
            *SIZE,
            *QUICK,
        )
    return root / "run"


SMALL_TRAINING = ("data.val_fraction=0.8", "schedule.epochs=2", "augment.randaugment=null")


@pytest.fixture(scope="module")
def fine(pretrained, photos, tmp_path_factory):
    """The pretrained model fine-tuned on 48 of the photographs, its backbone frozen."""
    folder = tmp_path_factory.mktemp("fine") / "run"
    with pytest.MonkeyPatch.context() as patch:
        _run(
            finetune,
            patch,
            photos,
            "--from",
            pretrained,
            "model.freeze=backbone",
            "optimizer.lr=2e-2",
            f"run.dir={folder}",
            *SMALL_TRAINING,
            *QUICK,
        )
    return folder


def test_it_beats_training_from_scratch(fine, photos, tmp_path, monkeypatch):
    scratch = (f"model.name={MODEL}", "model.num_classes=4", "optimizer.batch_size=8")
    _run(
        train,
        monkeypatch,
        "finetune",
        f"data.train={photos}",
        "optimizer.lr=2e-3",
        f"run.dir={tmp_path / 'scratch'}",
        *scratch,
        *SIZE,
        *SMALL_TRAINING,
        *QUICK,
    )
    tuned, fresh = (
        load_checkpoint(folder / "best.pt")["best_top1"] for folder in (fine, tmp_path / "scratch")
    )
    # Of 152 images: a standard error is at most 4 %.
    assert tuned > 85
    assert tuned > fresh + 12


def test_all_that_folder_and_weights_decide_is_in_the_runs_configuration(fine, pretrained, photos):
    config = yaml.safe_load((fine / "config.yaml").read_text())
    assert config["data"]["train"] == str(photos)
    assert config["data"]["mean"] == [0.5, 0.5, 0.5]
    assert config["model"] | {"name": MODEL, "num_classes": 4} == config["model"]
    assert config["model"]["weights"] == str(pretrained)
    assert (config["augment"]["size"], config["evaluation"]["size"]) == (48, 48)
    assert config["optimizer"]["batch_size"] == 8
    assert config["evaluation"]["batch_per_device"] <= 160
    log = (fine / "train.log").read_text()
    assert re.search(r"data\.val_fraction=0\.8: of 200 images 48 train and 152 validate", log)
    assert "from the weights: data.mean=[0.5,0.5,0.5] data.std=[" in log
    assert "the head (fc.weight, fc.bias) is new, for 4 classes in place of 6" in log
    assert "388 of 373,076 parameters learn" in log  # 96 features and a bias for each of 4 classes


def test_the_frozen_backbone_is_the_pretrained_one_to_the_bit(fine, pretrained):
    before, after = (load_checkpoint(run / "best.pt")["model"] for run in (pretrained, fine))
    assert {n for n in after if not torch.equal(before[n], after[n])} == {"fc.weight", "fc.bias"}


def test_it_goes_on_without_its_source(fine, pretrained, photos, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(fine, folder)
    source = pretrained.rename(pretrained.with_name("elsewhere"))
    try:
        more = (f"run.dir={folder}", "schedule.epochs=3", "run.warm_up=false")
        _run(finetune, monkeypatch, photos, "--resume", *more)
    finally:
        source.rename(pretrained)
    state = load_checkpoint(folder / "last.pt")
    assert state["updates_done"] == 3 * 6
    assert state["config"]["data"]["mean"] == [0.5, 0.5, 0.5]
    assert state["config"]["model"]["freeze"] == "backbone"
    before = load_checkpoint(pretrained / "best.pt")["model"]
    assert torch.equal(state["model"]["conv1.0.weight"], before["conv1.0.weight"])


def test_train_and_validation_folders_and_keys_of_the_user_are_taken(
    pretrained, photos, tmp_path, monkeypatch
):
    for split, first in (("train", 0), ("val", 40)):
        for folder in photos.iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                target = tmp_path / "both" / split / folder.name
                target.mkdir(parents=True)
                for number in range(first, first + 10):
                    shutil.copy(folder / f"{number}.jpg", target)
    _run(
        finetune,
        monkeypatch,
        tmp_path / "both",
        f"--from={pretrained / 'best.pt'}",
        "optimizer.batch_size=20",
        "evaluation.size=32",
        "data.sampling=balanced",
        "loss.class_weights=balanced",
        "model.freeze=2",
        "model.freeze_norm=true",
        "schedule.epochs=1",
        "augment.randaugment=null",
        f"run.dir={tmp_path / 'run'}",
        *QUICK,
    )
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["data"]["val"], config["data"]["val_fraction"]) == (
        str(tmp_path / "both" / "val"),
        None,
    )
    assert (config["optimizer"]["batch_size"], config["evaluation"]["size"]) == (20, 32)
    assert config["augment"]["size"] == 48
    before = load_checkpoint(pretrained / "best.pt")["model"]
    after = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    names = {n for n in after if n.startswith(("layer3", "layer4")) and after[n].ndim == 4}
    assert changed == {*names, "fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("train", "val"), {"data.train": "train", "data.val": "val"}),
        (("training", "validation"), {"data.train": "training", "data.val": "validation"}),
        (("train",), {"data.train": "train", "data.val_fraction": 0.2}),
        (("val", "cat"), {"data.train": "", "data.val_fraction": 0.2}),  # a class of that name
    ],
)
def test_only_a_whole_pair_of_folders_is_a_division(tmp_path, folders, found):
    for folder in folders:
        (tmp_path / folder / "class").mkdir(parents=True)
    for key in ("data.train", "data.val"):
        if key in found:
            found = {**found, key: str(tmp_path / found[key])}
    assert images_in(tmp_path, ()) == found


def _mistake(capsys, monkeypatch, *arguments):
    with pytest.raises(SystemExit) as caught:
        _run(finetune, monkeypatch, *arguments)
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) <= 300
    return errors[0]


def test_mistakes_are_one_line(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = tmp_path / "wrong.safetensors"
    save_file({"fc.weight": torch.ones(4, 8)}, wrong)
    (tmp_path / "half.pth").write_bytes(b"PK\3\4 half a file")
    (tmp_path / "nothing").mkdir()
    for arguments, message in (
        ([photos], "--from is missing"),
        ([photos, "--from", "absent"], "no weights at absent"),
        ([photos, "--from", "half.pth"], "half.pth cannot be read"),
        ([photos, "--from", wrong], "does not say its architecture; give model.name=NAME"),
        ([photos, "--from", wrong, "model.name=resnet18"], "is of another architecture: conv1"),
        ([tmp_path / "absent", "--from", wrong], "absent does not exist"),
        ([tmp_path / "nothing", "--from", wrong], "nothing"),
        ([photos, "--from", wrong, "data.val_fraction=2"], "data.val_fraction"),
        ([photos, "--from", wrong, "data.val_fraction=1e-9"], "leaves none of the 200 images"),
        ([photos, "--from", wrong, "model.freeze=head"], "model.freeze"),
        ([photos, "--form", wrong], "unknown option --form, did you mean '--from'?"),
    ):
        assert message in _mistake(capsys, monkeypatch, *arguments, "run.device=cpu")
    assert not (tmp_path / "runs").exists()

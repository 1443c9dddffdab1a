"""Mistakes of a user: one line that says what to do, exit code 2, nothing written."""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, run_module
from PIL import Image

from dali_rsb import train
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.checkpoint import load_checkpoint, save_checkpoint

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
A3 = ROOT / "configs" / "a3.yaml"


@pytest.fixture
def folder(tmp_path):
    """A tiny dataset: two classes, two splits, four images each."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(4):
                pixels = noise.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.jpg")
    return tmp_path


def _mistake(capsys, monkeypatch, folder, *arguments):
    """Run the command in-process; return its one error line after the checks all mistakes share."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run_command(train.main)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not (folder / "runs").exists()
    return lines[0]


SMALL = (
    "run.device=cpu",
    "model.name=resnet18",
    "model.num_classes=2",
    "augment.size=32",
    "optimizer.batch_size=8",
)
ONE = ("optimizer.batch_size=1", "mixing.mixup=0", "mixing.cutmix=0")
DATA = ("data.train=train", "data.val=val")


def test_the_command_line_reports_and_exits_with_2(tmp_path):
    result = run_module("dali_rsb.train", A3, "optimizer.lrr=1", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == ("error: unknown key optimizer.lrr; did you mean optimizer.lr?\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SMALL, "data.train is not set"),
        ((*SMALL, "data.train=train"), "data.val is not set"),
        ((*SMALL, "data.train=nowhere", "data.val=val"), "nowhere"),
        ((*SMALL, *DATA, "model.num_classes=3"), "has 2 classes, but model.num_classes=3"),
        ((*SMALL, *DATA, "model.name=resnet51"), "resnet50"),
        ((*SMALL, *DATA, "optimizer.batch_size=64"), "fewer than optimizer.batch_size=64"),
        ((*SMALL, *DATA, "run.amp=fp16"), "run.amp=fp16 needs a GPU"),
        (
            (*SMALL, *DATA, "augment.backend=triton"),
            "augment.backend=triton cannot run: it needs a GPU; set augment.backend=auto",
        ),
        ((*SMALL, *DATA, "--resume", "absent.pt"), "no checkpoint at absent.pt"),
        ((*SMALL, *DATA, "--resume"), "no checkpoint to resume in runs/a3"),
        ((*SMALL, *DATA, "model.weights=absent.pt"), "absent.pt; give the path of a run"),
        ((*SMALL, *DATA, "augment.repeats=3"), "needs at least 256"),
        ((*SMALL, *DATA, *ONE), "nothing to normalise in one image of 32 px: set optimizer.batch"),
    ],
)
def test_mistakes_name_the_mend(capsys, monkeypatch, folder, arguments, message):
    assert message in _mistake(capsys, monkeypatch, folder, A3, *arguments)


def test_a_gpu_asked_for_where_none_is(capsys, monkeypatch, folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = _mistake(capsys, monkeypatch, folder, A3, *DATA, "run.device=cuda")
    assert "set run.device=cpu" in line


def test_broken_folders(capsys, monkeypatch, folder):
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    assert "wolf" in _mistake(capsys, monkeypatch, folder, A3, *SMALL, *DATA)
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    assert "train" in _mistake(capsys, monkeypatch, folder, A3, *SMALL, *DATA)


def test_unusable_checkpoints(capsys, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "sys.argv", ["train", str(A3), *SMALL, *DATA, "run.dir=one", "run.max_steps=1"]
    )
    run_command(train.main)
    good = folder / "one" / "last.pt"

    line = _mistake(capsys, monkeypatch, folder, A3, *SMALL, *DATA, "run.dir=one")
    assert "already holds a run; add --resume" in line

    other = [*SMALL, *DATA, "model.name=resnet34", "--resume", good]
    assert "model.name=resnet18, not resnet34" in _mistake(capsys, monkeypatch, folder, A3, *other)
    weights = [*SMALL, *DATA, "model.name=resnet34", f"model.weights={good}"]
    assert "another architecture" in _mistake(capsys, monkeypatch, folder, A3, *weights)

    cut = folder / "cut.pt"
    cut.write_bytes(good.read_bytes()[:-5000])
    resumed = [*SMALL, *DATA, "--resume", cut]
    assert "cut.pt cannot be read" in _mistake(capsys, monkeypatch, folder, A3, *resumed)


def test_checkpoints_never_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code from a checkpoint",))

    torch.save({"format_version": 1, "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"holds builtins\.print beside tensors, and code"):
        load_checkpoint(tmp_path / "evil.pt")


def test_a_failing_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"weight": torch.ones(3)}, "ema": None})

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"model": {}})
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert torch.equal(load_checkpoint(path)["model"]["weight"], torch.ones(3))

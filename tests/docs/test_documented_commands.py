"""Every command of README and docs is run here, or named with the reason.

A command runs in a folder that holds what the pages speak of: photos, runs, weights. What would
take a GPU's time is made smaller: the model, the images, the number of updates.
"""

import contextlib
import os
import re
import shlex
import shutil
import sys
import traceback
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SERVER
from damage import encoded

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Run by another test, with files that take longer to make than to use.
ELSEWHERE = {
    "dali-rsb evaluate runs/a3 val --labels ILSVRC": "evaluation/test_evaluate.py",
    "dali-rsb evaluate runs/a3 val --labels LOC_val": "evaluation/test_evaluate.py",
    "dali-rsb evaluate runs/a3 val --labels val.txt": "evaluation/test_evaluate.py",
    "torchrun --nproc_per_node=8 -m dali_rsb.evaluate": "evaluation/test_evaluate.py",
    "torchrun --nproc_per_node=8 -m dali_rsb.train": "test_train.py",
    "torchrun --nproc_per_node=2 -m dali_rsb.finetune": "training/test_finetuning.py",
    "dali-rsb sweep": "sweeps/test_sweep.py",
    "dali-rsb doctor": "checks/test_doctor.py",
    "python -m dali_rsb.doctor": "checks/test_doctor.py",
}
# Nobody runs these here.
NEEDS = {"timm:resnet50.a1_in1k": "the Hugging Face hub"}

SMALLER = {
    "resnet50": "resnet18",
    "--size 224": "--size 64",
    "--epoch 12 --update 300": "--epoch 2 --update 1",
    "--update 31415": "--update 5",
    "n01440764/n01440764_10026.JPEG": "cats/ain3.jpg",
}
SMALL_MODEL = ["model.name=timm:test_resnet"]
SMALL_RUN = [
    "optimizer.batch_size=8",
    "run.batch_per_device=8",
    "run.max_steps=2",
    "run.warm_up=false",
    "run.device=cpu",
    "data.threads=1",
    "augment.size=32",
    "augment.repeats=1",
    "evaluation.size=32",
    "evaluation.batch_per_device=8",
]


def documented():
    """(page, command) of every command of ours in a block of shell lines."""
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL):
            if block.startswith("#!"):
                continue  # a script: tests/run/test_slurm.py
            for line in block.replace("\\\n", " ").splitlines():
                command = " ".join(shlex.split(line, comments=True)[:40])
                if re.match(r"dali-rsb |python -m dali_rsb|torchrun |cd ", command):
                    yield page.name, command


COMMANDS = list(documented())


def _run(folder, words, output):
    """A child's work: the command in a folder of its own; its output goes to a file."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = ["dali-rsb", *words]
    with (
        Path(output).open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        from dali_rsb.__main__ import script

        try:
            script()
        except SystemExit as end:
            file.flush()
            os._exit(end.code or 0)
        except BaseException:
            traceback.print_exc()
            file.flush()
            os._exit(70)


def run(folder, words):
    """Exit code and output of `dali-rsb WORDS`."""
    output = folder / "output.txt"
    process = SERVER.Process(target=_run, args=(folder, words, output))
    process.start()
    process.join(200)
    assert process.exitcode is not None, words
    return process.exitcode, output.read_text()


def _prepare(folder, words):
    code, said = run(folder, words)
    assert code == 0, said


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits):
    """A folder with all that the pages' commands name."""
    root = tmp_path_factory.mktemp("place")
    (root / "data").symlink_to(digits.parent)
    for folder, number in (("photos", 12), ("imagenet/train", 12), ("imagenet/val", 4)):
        for label, name in enumerate(("cats", "dogs")):
            (root / folder / name).mkdir(parents=True)
            for i in range(number):
                data = encoded(40, 40, seed=100 * len(folder) + 10 * i + label)
                (root / folder / name / f"{folder[-3:]}{i}.jpg").write_bytes(data)
    (root / "sets").mkdir()
    for name in ("one", "two"):
        shutil.copytree(root / "imagenet/val", root / "sets" / name)
    of_imagenet = ["data.train=imagenet/train", "data.val=imagenet/val", "model.num_classes=2"]
    several = ["run.max_steps=5", "run.checkpoint_every=1", "run.keep_checkpoints=3"]
    small = [*SMALL_MODEL, *SMALL_RUN, *several]
    _prepare(root, ["train", "a3", *of_imagenet, *small, "run.dir=runs/a3"])
    for name in ("a3-long", "first", "quickstart"):
        shutil.copytree(root / "runs/a3", root / "runs" / name)
    _prepare(root, ["export", "runs/first", "--to", "hub", "--output", "folder"])
    _prepare(root, ["finetune", "photos", "--from", "runs/first", *SMALL_RUN, "run.max_steps=1"])
    from dali_rsb import create_model

    for name in ("resnet18.pth", "weights.pth"):
        torch.save(create_model("resnet18", num_classes=2).state_dict(), root / name)
    (root / "names.txt").write_text("cats\ndogs\n")
    return root


def _words(command):
    """The words behind `dali-rsb`, made small; the folder that a `cd` before it went to."""
    words = re.sub(r"^(dali-rsb |python -m dali_rsb\.)", "", command)
    for large, small in SMALLER.items():
        words = words.replace(large, small)
    words = words.replace("/imagenet", "imagenet").replace("/sets", "sets").split()
    words = [re.sub(r"^configs/(\w+)\.yaml$", r"\1", word) for word in words]
    if words[0] in ("train", "finetune", "tune", "preview"):
        given = {word.partition("=")[0] for word in words}
        small = [word for word in SMALL_RUN if word.partition("=")[0] not in given]
        if words[0] != "finetune":
            small += SMALL_MODEL if {"a3", "resnetrs50", "quickstart"} & set(words) else []
            small += ["model.num_classes=2"] if "a3" in words else []
        words += small
    if words[0] == "tune":
        words += ["--seconds", "5"]
    if words[0] == "parity":
        words += ["--num-images", "2", "--size", "32"]
    return words


def _reason(command):
    """Why a command is not run here, or None."""
    for part, reason in NEEDS.items():
        if part in command:
            return f"needs {reason}"
    for start, test in ELSEWHERE.items():
        if command.startswith(start):
            assert (ROOT / "tests" / test).is_file()
            return f"run by {test}"
    return None


def _places():
    """(page, folder, command): a `cd` holds for the commands of its page that follow it."""
    folder = {}
    for page, command in COMMANDS:
        if command.startswith("cd "):
            folder[page] = command.removeprefix("cd ")
        else:
            yield page, folder.get(page, "."), command


@pytest.mark.parametrize(("page", "folder", "command"), list(_places()))
def test_a_documented_command_does_its_work(place, tmp_path, page, folder, command):
    if reason := _reason(command):
        pytest.skip(reason)
    copy = tmp_path / "place"
    # What is written again replaces a link; the digits are read alone.
    shutil.copytree(place, copy, copy_function=os.link, symlinks=True)
    code, said = run(copy / folder, _words(command))
    assert code == 0, said
    assert said.strip()
    assert "Traceback" not in said


def test_the_list_of_what_runs_elsewhere_holds_nothing_else():
    unused = [s for s in ELSEWHERE if not any(c.startswith(s) for _, c in COMMANDS)]
    unused += [part for part in NEEDS if not any(part in c for _, c in COMMANDS)]
    assert not unused
    assert len(COMMANDS) > 15

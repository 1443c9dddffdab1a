"""`dali-rsb COMMAND`: stands for `python -m dali_rsb.COMMAND`, and knows every command there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_module

from dali_rsb.__main__ import COMMANDS, main, script, usage
from dali_rsb.config.arguments import ConfigParser
from dali_rsb.errors import UserError, run_command


def test_every_command_is_listed():
    # A command is a module at the top of the package that can be run.
    runnable = {
        path.stem
        for path in (ROOT / "dali_rsb").glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert runnable - {"__main__"} == set(COMMANDS)


def test_without_a_command_the_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dali-rsb"])
    main()
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_the_list_fits_80_columns():
    assert max(map(len, usage().splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_80_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["dali-rsb", name, "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: dali-rsb {name}" in printed
    assert [line for line in printed.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["--resume", "trian", "Train", "dali_rsb"])
def test_an_unknown_command_is_one_line(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", ["dali-rsb", name])
    with pytest.raises(SystemExit) as caught:
        script()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert "dali-rsb --help" in line
    assert ("did you mean 'train'?" in line) == (name in ("trian", "Train"))


def test_a_command_gets_its_arguments(tmp_path):
    result = run_module(
        "dali_rsb", "train", ROOT / "configs/a3.yaml", "optimizer.lrr=1", cwd=tmp_path
    )
    direct = run_module("dali_rsb.train", ROOT / "configs/a3.yaml", "optimizer.lrr=1", cwd=tmp_path)
    assert result.returncode == direct.returncode == 2
    assert result.stderr == direct.stderr


def test_a_configuration_is_read_without_numpy_torch_or_dali():
    blocked = ("numpy", "torch", "nvidia", "PIL", "torchvision")
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"  # importing one is an ImportError now
        "from pathlib import Path\n"
        "from dali_rsb.config import load_config\n"
        "print(load_config(Path('configs/a3.yaml')).augment.randaugment)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("rand-m6")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train", "a3", "--lr", "1e-3"], "unknown option --lr: write optimizer.lr=1e-3"),
        (["finetune", "a3", "--lr", "1e-3"], "unknown option --lr: write optimizer.lr=1e-3"),
        (["finetune", "configs"], "--from is missing: give the weights to begin with"),
        (["finetune", "bilder", "--from", "runs/a3"], f"{ROOT}/bilder does not exist: give"),
        (["train", "a3", "data.train=bilder"], "bilder does not exist: give a folder"),
    ],
)
def test_a_mistake_is_answered_before_torch_and_dali_are_imported(words, answer):
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'nvidia')))\n"  # an ImportError now
        f"sys.argv = ['dali-rsb', *{words!r}]\n"
        "from dali_rsb.__main__ import script\n"
        "script()"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert answer in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["a3", "--lr", "1e-3"], "unknown option --lr: write optimizer.lr=1e-3"),
        (["a3", "--lr=1e-3"], "unknown option --lr: write optimizer.lr=1e-3"),
        (["a3", "-b", "64"], "unknown option -b: write optimizer.batch_size=64"),
        (["a3", "--drop-path", "0.1"], "unknown option --drop-path: write model.drop_path=0.1"),
        (["a3", "optimizer.lr", "1e-3"], "optimizer.lr has no value: write optimizer.lr=1e-3"),
        (["a3", "optimizer.lr"], "optimizer.lr has no value: write optimizer.lr=VALUE"),
        (["a3", "--resumee"], "unknown option --resumee, did you mean '--resume'?"),
        (["a3", "--xyzzy"], "unknown option --xyzzy; see dali-rsb train --help"),
        ([], "the following arguments are required: CONFIG; see dali-rsb"),
        (["a33"], "cannot read a33: no such file or recipe"),
    ],
)
def test_a_mistaken_command_line_says_how_to_write_it(arguments, answer):
    parser = ConfigParser("train", "")
    parser.add_argument("--resume", nargs="?", const="last")
    with pytest.raises(UserError) as caught:
        parser.read(arguments)
    assert str(caught.value).startswith(answer)
    if ": write " not in answer or "VALUE" in answer:
        return
    config, _ = parser.read(["a3", answer.rpartition(": write ")[2]])  # the fix works
    assert config.name == "a3"


@pytest.mark.parametrize(
    ("arguments", "resume", "lr"),
    [
        (["--resume", "optimizer.lr=2e-3"], "last", 2e-3),
        (["optimizer.lr=2e-3", "--resume"], "last", 2e-3),
        (["--resume", "optimizer.lr=1e-3", "optimizer.lr=2e-3"], "last", 2e-3),
        (["--resume", "runs/a3", "optimizer.lr=2e-3"], "runs/a3", 2e-3),
        (["--resume", "runs/a=b"], "runs/a=b", 8e-3),
        (["--resume=auto", "optimizer.lr=2e-3"], "auto", 2e-3),
        ([], None, 8e-3),
    ],
)
def test_an_override_is_no_path_to_resume_from(monkeypatch, arguments, resume, lr):
    parser = ConfigParser("train", "")
    parser.add_argument("--resume", nargs="?", const="last")
    monkeypatch.setattr("sys.argv", ["train", "a3", *arguments])
    for given in (["a3", *arguments], None):  # None is what a command passes
        config, options = parser.read(given)
        assert (options.resume, config.optimizer.lr) == (resume, lr)


def _refused(capsys, main):
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_what_a_file_system_refuses_is_one_line(capsys):
    line = _refused(capsys, lambda: Path("x" * 300).is_dir())
    assert line.endswith("xxx cannot be used (File name too long): give a shorter path")
    with pytest.raises(ProcessLookupError):  # no file's: a bug is not hidden
        run_command(lambda: os.kill(2**22 + 1, 0))


@pytest.mark.parametrize("given", ["k" * 5000, "k " * 2500, f"{'k' * 400} " * 3])
def test_what_a_user_gave_is_not_quoted_whole(capsys, given):
    def main():
        raise UserError(f"unknown key {given}; did you mean optimizer.lr?")

    line = _refused(capsys, main)
    assert len(line) <= 300
    assert line.startswith("unknown key ")
    assert line.endswith("; did you mean optimizer.lr?")

"""`dali-rsb COMMAND`: stands for `python -m dali_rsb.COMMAND`, and knows every command there is."""

import subprocess
import sys

import pytest
from conftest import ROOT, run_module

from dali_rsb.__main__ import COMMANDS, main, script


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

"""Installing: two builds of DALI, a constraints file for each, and one line where there is none."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

# What belongs to a CUDA major; all else is one version in both files.
_CUDA = re.compile(r"(nvidia-|cuda-|torch$|torchvision$|triton$)")


def _pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_constraints_differ_in_what_belongs_to_cuda_alone():
    cuda12, cuda13 = _pins("constraints.txt"), _pins("constraints-cuda13.txt")
    common = {name for name in cuda12 | cuda13 if not _CUDA.match(name)}
    assert {n: cuda12.get(n) for n in common} == {n: cuda13.get(n) for n in common}
    assert cuda12["nvidia-dali-cuda120"] == cuda13["nvidia-dali-cuda130"]
    assert not any("cu13" in name or name.endswith("cuda130") for name in cuda12)
    assert not any("cu12" in name or name.endswith("cuda120") for name in cuda13)


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-cuda13.txt"])
def test_the_constraints_are_sorted(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=str.lower)


@pytest.fixture
def without_dali(tmp_path):
    """The environment of a process to which DALI is not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('nvidia.dali'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "dali_rsb.train", "quickstart"],
        ["-m", "dali_rsb", "train", "quickstart"],
        ["-m", "dali_rsb.verify", "photos"],
        ["-m", "dali_rsb.parity", "quickstart"],
    ],
)
def test_a_command_without_dali_says_what_to_install(without_dali, tmp_path, arguments):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=without_dali,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert re.fullmatch(r"error: DALI is not installed: pip install .*\n", result.stderr)


def test_the_loader_without_dali_is_an_import_error_with_the_fix(without_dali, tmp_path):
    program = (
        "try:\n    from dali_rsb import DaliLoader\n"
        "except ImportError as error:\n    print(error)\n"
        "from dali_rsb import create_model, Lamb\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=without_dali,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "dali_rsb[cuda12]" in printed
    assert "dali_rsb[cuda13]" in printed

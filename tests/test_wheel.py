"""The wheel carries the recipes, and what is installed from it finds them by name."""

import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from conftest import ROOT

RECIPES = {path.name: path.read_text() for path in (ROOT / "configs").glob("*.yaml")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel of this checkout holds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("dali_rsb", "pipelines", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_the_wheel_holds_packages_and_recipes_and_nothing_else(installed):
    got = {path.name: path.read_text() for path in (installed / "dali_rsb/recipes").iterdir()}
    assert got == RECIPES
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"dali_rsb", "pipelines"}
    for name in ("py.typed", "pictures/page.html"):
        assert (installed / "dali_rsb" / name).is_file()


@pytest.mark.parametrize("name", ["quickstart", "a3", "configs/a3.yaml", "a3.yaml"])
def test_a_recipe_is_found_by_name_outside_of_a_checkout(installed, tmp_path, name):
    program = (
        "import sys, dali_rsb\n"
        "from dali_rsb.config.recipes import find_config\n"
        "assert dali_rsb.__file__.startswith(sys.argv[1]), dali_rsb.__file__\n"
        "print(find_config(sys.argv[2]).read_text())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(installed), name],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    assert yaml.safe_load(found) == yaml.safe_load(RECIPES[f"{stem}.yaml"])

"""Fixtures of tests that kill and stop runs: a configuration, and a run that nothing disturbed.

A module that names this in `pytest_plugins` has them.
"""

import pytest
from killed_runs import end, start, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The file of a configuration of 12 updates."""
    return write_recipe(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert end(start(recipe, folder)) == 0
    return folder

"""A checkpoint tells with which versions and devices its run was made."""

from importlib import metadata

import torch

import dali_rsb
from dali_rsb.run.environment import environment
from dali_rsb.run.processes import Processes


def test_the_environment_is_plain_text_with_the_versions():
    found = environment(Processes(torch.device("cpu"), world_size=3))
    # torch.__version__ has a class of its own, which no reader of a checkpoint would unpickle.
    assert {type(value) for value in found.values()} == {str}
    assert found["torch"].startswith(metadata.version("torch"))  # the build as well
    assert found["dali_rsb"] == dali_rsb.__version__
    assert found["DALI"] == metadata.version("nvidia-dali-cuda120")
    assert found["devices"] == "3 x CPU"

"""Opening the images of a run: what no training makes sense of is refused."""

import pytest
import torch
from damage import encoded

from dali_rsb import config as cfg
from dali_rsb.errors import UserError
from dali_rsb.run.processes import Processes
from dali_rsb.training.datasets import open_datasets


@pytest.fixture
def one_class(tmp_path):
    """Training and validation folders that hold one class, and processes to open them."""
    for split, number in (("train", 4), ("val", 2)):
        folder = tmp_path / split / "cats"
        folder.mkdir(parents=True)
        for i in range(number):
            (folder / f"{split}{i}.jpg").write_bytes(encoded(seed=10 * number + i))
    return tmp_path


def _open(**data):
    return open_datasets(cfg.Data(**data), None, Processes(torch.device("cpu")))


@pytest.mark.parametrize("split", [{"val_fraction": 0.5}, {"val": "val"}])
def test_a_single_class_is_refused_and_a_second_name_is_the_fix(one_class, split):
    paths = {key: one_class / value if key == "val" else value for key, value in split.items()}
    with pytest.raises(UserError, match=r"all images of .*train are of one class, 'cats'"):
        _open(train=one_class / "train", **paths)
    names = one_class / "classes.txt"
    names.write_text("cats\ndogs\n")
    opened = _open(train=one_class / "train", classes=names, **paths)
    assert opened.train.classes == ("cats", "dogs")

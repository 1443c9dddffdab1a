"""A dataset is split by the hash of each name, whatever lies around it."""

import hashlib
import shutil

import numpy as np
import pytest
from test_labels import tree

from dali_rsb.config import override_config
from dali_rsb.dataset import open_index
from dali_rsb.dataset.splitting import split_index
from dali_rsb.errors import UserError
from dali_rsb.run.processes import processes
from dali_rsb.training.datasets import open_datasets, open_training, open_validation

COUNTS = {"ant": 60, "bee": 40, "cat": 1}


def _names(index):
    return {index.store.name(row) for row in range(len(index))}


def _val(root, fraction=0.3):
    train, val = split_index(open_index(root), fraction)
    assert not _names(train) & _names(val)
    assert len(train) + len(val) == len(open_index(root))
    return _names(val)


def test_a_name_alone_decides(tmp_path):
    root = tree(tmp_path / "a", COUNTS)
    val = _val(root)
    by_hand = {
        f"{folder}/{number}.jpg"
        for folder, count in COUNTS.items()
        for number in range(count)
        if int.from_bytes(hashlib.sha256(f"{folder}/{number}.jpg".encode()).digest()[:8], "big")
        < 0.3 * 2**64
    }
    assert val == by_hand - {"cat/0.jpg"}
    assert 15 < len(val) < 45
    shutil.move(root, tmp_path / "elsewhere")
    more = tree(tmp_path / "elsewhere", {"ant": 80, "aardvark": 30})
    assert {name for name in _val(more) if name in by_hand} == val
    (more / "ant" / "3.jpg").unlink()
    assert _val(more) - {"ant/3.jpg"} >= val - {"ant/3.jpg"}


def test_labels_sizes_and_stamps_stay_with_their_images(tmp_path):
    index = open_index(tree(tmp_path / "a", COUNTS))
    for part in split_index(index, 0.3):
        for row in range(len(part)):
            whole = next(
                r for r in range(len(index)) if index.store.name(r) == part.store.name(row)
            )
            assert part.labels[row] == index.labels[whole]
            assert np.array_equal(part.stamps[row], index.stamps[whole])
        assert part.classes == index.classes


def test_each_class_keeps_an_image_for_training(tmp_path):
    train, val = split_index(open_index(tree(tmp_path / "a", {"ant": 3, "bee": 1})), 0.999999)
    assert np.bincount(train.labels).tolist() == [1, 1]
    assert len(val) == 2
    with pytest.raises(UserError, match=r"leaves none of the 2 images of .*; raise it, or give"):
        split_index(open_index(tree(tmp_path / "b", {"ant": 1, "bee": 1})), 0.5)


def test_a_run_its_tuning_and_its_evaluation_agree(tmp_path):
    root = tree(tmp_path / "a", COUNTS)
    config = override_config({"name": "x", "data": {"train": str(root), "val_fraction": 0.3}})
    with processes("cpu") as alone:
        datasets = open_datasets(config.data, 3, alone)
    val = _val(root)
    assert _names(datasets.val) == val
    assert _names(datasets.train) == _names(open_training(config.data))
    assert "1 of 3 classes have none to validate" in datasets.split
    other = open_validation(config.data, ["cat", "bee", "ant"], "the classes of best.pt")
    assert _names(other) == val
    assert {other.classes[label] for label in other.labels} == {"ant", "bee"}


def test_a_split_is_for_runs_without_validation_images(tmp_path):
    for more in ({"val": "b"}, {"digits": "c"}):
        tree = {"name": "x", "data": {"val_fraction": 0.3, **more}}
        with pytest.raises(UserError, match=r"data\.val_fraction: is for training without"):
            override_config(tree)

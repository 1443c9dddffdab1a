"""The quickstart's digits: a complete, repeatable folder of JPEG files."""

import logging
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dali_rsb.dataset import ImageFormat, digits, open_index
from dali_rsb.dataset.digits import write_digits
from dali_rsb.errors import UserError

load_digits = pytest.importorskip("sklearn.datasets").load_digits


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits") / "new" / "digits"
    return root, *write_digits(root)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def test_every_digit_is_written_once_and_split_evenly(written):
    root, train, val = written
    assert (train, val) == (root / "train", root / "val")
    targets = Counter(load_digits().target.tolist())
    train_files, val_files = list(train.glob("*/*.jpg")), list(val.glob("*/*.jpg"))
    numbers = sorted(int(path.stem) for path in train_files + val_files)
    assert numbers == list(range(1797))
    for digit in range(10):
        num_val = sum(path.parent.name == str(digit) for path in val_files)
        num_train = sum(path.parent.name == str(digit) for path in train_files)
        assert num_train + num_val == targets[digit]
        assert num_val == round(0.2 * targets[digit])


def test_images_show_their_digit(written):
    _, train, val = written
    bundle = load_digits()
    for path in sorted([*train.glob("*/*.jpg"), *val.glob("*/*.jpg")])[::50]:
        number = int(path.stem)
        assert bundle.target[number] == int(path.parent.name)
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "JPEG")
            small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX))
        assert np.abs(small / 255 * 16 - bundle.images[number]).mean() < 1.5
        assert np.corrcoef(small.ravel(), bundle.images[number].ravel())[0, 1] > 0.98


def test_files_open_as_a_dataset(written):
    _, train, val = written
    train_index, val_index = open_index(train), open_index(val)
    assert train_index.classes == val_index.classes
    assert train_index.classes == tuple("0123456789")
    assert len(train_index) + len(val_index) == 1797
    assert (train_index.widths == 32).all()
    assert (val_index.formats == ImageFormat.JPEG).all()


def test_the_same_files_each_time_and_finished_ones_are_kept(written, tmp_path, monkeypatch):
    root, train, val = written
    again = tmp_path / "again"
    write_digits(again)
    assert contents(again) == contents(root)

    monkeypatch.setattr(digits, "_load_digits", lambda: pytest.fail("written again"))
    assert write_digits(root) == (train, val)


def test_other_arguments_replace_the_files(tmp_path):
    root = tmp_path / "digits"
    write_digits(root, size_px=16)
    open_index(root / "train")
    _, val = write_digits(root, size_px=20, val_fraction=0.5)
    assert len(list(val.glob("*/*.jpg"))) == pytest.approx(1797 / 2, abs=10)
    with Image.open(next(val.glob("3/*.jpg"))) as image:
        assert image.size == (20, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert (open_index(root / "train").widths == 20).all()


def test_writing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    save, num_saved = Image.Image.save, 0

    def fail_later(image, path, **options):
        nonlocal num_saved
        num_saved += 1
        if num_saved > 5:
            raise OSError("disk full")
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", fail_later)
    with pytest.raises(OSError, match="disk full"):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="something other than the digits"):
        write_digits(tmp_path)
    with pytest.raises(UserError, match="something other than the digits"):
        write_digits(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path):
    root = tmp_path / "empty"
    root.mkdir()
    train, _ = write_digits(root, size_px=8)
    assert len(list(train.glob("*/*.jpg"))) > 1400


@pytest.mark.parametrize("arguments", [{"size_px": 0}, {"val_fraction": 0}, {"val_fraction": 1.0}])
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        write_digits(tmp_path / "digits", **arguments)


def test_without_scikit_learn_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[quickstart\]'"):
        write_digits(tmp_path / "digits")


def test_indexing_the_digits_is_quiet(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train, val = write_digits(tmp_path / "digits", size_px=8)
    open_index(train), open_index(val)
    assert caplog.text == ""

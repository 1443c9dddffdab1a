"""Names of files of any bytes and length are printed, logged, listed and written as one line."""

import io
import os
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dali_rsb import DaliLoader, train
from dali_rsb.dataset import open_index
from dali_rsb.dataset.storage import UNREADABLE, place_beside
from dali_rsb.errors import UserError, run_command
from dali_rsb.system.names import printable

# As bytes of the file system, and as they are shown.
NAMES = {
    b"caf\xe9": r"caf\xe9",
    "\u540d\u524d \u00fc".encode(): "\u540d\u524d \u00fc",
    b"new\nline\r": r"new\nline\r",
    b"\x1b[31mred\x7f": r"\x1b[31mred\x7f",
    "a\u2028b\u202e".encode(): r"a\u2028b\u202e",
    b"-dash %s {0}": "-dash %s {0}",
    b"\xff" * 60 + b"x" * 180: r"\xff" * 60 + "x" * 180,
}

GOOD = 9  # images, which make two batches of 8 with those that cannot be decoded


def png(seed, size=(24, 20)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(root, name, data):
    path = root / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def data(tmp_path):
    """Training images of which, under each name, one cannot be read and one cannot be decoded."""
    for number in range(GOOD):
        write(tmp_path / "train" / "ab"[number % 2], f"{number}.png", png(number))
        write(tmp_path / "val" / "ab"[number % 2], f"{number}.png", png(100 + number))
    for number, name in enumerate(NAMES):
        write(tmp_path / "train" / "a", name + b".jpg", b"<html>")
        write(tmp_path / "train" / "b", name + b".png", png(number)[:-40])
    return tmp_path


def test_a_run_logs_what_it_leaves_out_and_substitutes(data, monkeypatch, capfd):
    arguments = [
        ROOT / "configs" / "quickstart.yaml",
        "data.digits=null",
        *(f"data.{split}={data / split}" for split in ("train", "val")),
        "data.max_bad_fraction=0.9",
        "data.threads=1",
        "model.num_classes=2",
        "augment.size=16",
        "augment.randaugment=null",
        "evaluation.size=16",
        "optimizer.batch_size=8",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "run.device=cpu",
        f"run.dir={data / 'run'}",
    ]
    monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
    run_command(train.main)
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "Logging error" not in error
    log = (data / "run" / "train.log").read_bytes().decode("utf-8")
    # Nothing but lines of the log: no name breaks one, or moves the terminal's cursor.
    assert all(
        re.match(r"\d{4}-\d\d-\d\d .* (INFO|WARNING) ", line) for line in log.split("\n")[:-1]
    )
    assert log.replace("\n", "").isprintable()
    count = len(NAMES)
    assert f"{GOOD + 2 * count} entries seen, {count} left out ({count} cannot be read)" in log
    assert log.count(f"{count} image files in {data / 'train'} cannot be read") == 1
    for shown in NAMES.values():
        assert f"/b/{shown}.png cannot be decoded; " in log
    assert log.index("left out") < log.index("images, 2 classes") < log.index("epoch 1/1")
    for line in log.splitlines():  # the same on the terminal
        assert re.sub(r"^.*? (INFO|WARNING) ", "", line) in error


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0, 12])
def test_the_error_about_an_image_is_one_line_that_ends_in_its_name(tmp_path, name, depth):
    root = tmp_path.joinpath(*["long folder " * 4] * depth) / "t"
    write(root / "a", name + b".png", png(0)[:-40])
    write(root / "a", b"1.png", png(1))
    loader = DaliLoader(root, 1, size_px=16, device="cpu", num_threads=1)
    with pytest.raises(UserError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= 300
    assert f"{NAMES[name]}.png"[-60:] + " cannot be decoded; repair" in message


def test_a_list_of_unreadable_files_has_a_line_for_each(data):
    index = open_index(data / "train")
    lines = (place_beside(data / "train") / UNREADABLE).read_bytes().splitlines()
    broken = b"new\nline\r"
    expected = {NAMES[broken].encode() if name == broken else name for name in NAMES}
    assert {line.removeprefix(b"a/").removesuffix(b".jpg") for line in lines} == expected
    assert len(index) == GOOD + len(NAMES)


def test_indices_count_unreadable_files_of_any_name(data):
    folder = pytest.importorskip("torchvision.datasets").ImageFolder(str(data / "train"))
    places = [i for i, (path, _) in enumerate(folder.samples) if path.endswith(".png")]
    loader = DaliLoader(data / "train", 1, sampler=places, size_px=16, device="cpu", num_threads=1)
    assert len(loader.dataset) == len(folder.samples)
    for i in places:
        assert (loader.dataset.filename(i), loader.dataset.targets[i]) == folder.samples[i]


def test_long_names_are_shown_by_their_ends():
    name = "x" * 300 + "1.jpg"
    assert printable(name) == name
    assert printable(name, 130) == "..." + name[-127:]
    assert printable("short.jpg", 130) == "short.jpg"
    for limit in range(4, 40):
        assert len(printable(name, limit)) == limit

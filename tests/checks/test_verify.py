"""`dali-rsb verify`: what is wrong with a dataset is found, listed, and gone with the list."""

import io

import numpy as np
import pytest
from PIL import Image

from dali_rsb import DaliLoader, verify
from dali_rsb.checks.dataset.findings import find_duplicates
from dali_rsb.checks.dataset.scan import scan
from dali_rsb.dataset import open_index
from dali_rsb.dataset.packing import PackOptions, pack
from dali_rsb.errors import UserError


def encode(seed, kind="JPEG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, all different; gives the folder and what adds an image."""
    root = tmp_path / "train"

    def add(name, data):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    for number in range(6):
        add(f"{'ab'[number % 2]}/{number}.jpg", encode(number))
    return root, add


def run(capsys, monkeypatch, *arguments):
    """Exit code and output of the command."""
    monkeypatch.setattr("sys.argv", ["verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        verify.main()
    return caught.value.code, capsys.readouterr().out


def test_a_sound_dataset(folder, tmp_path, capsys, monkeypatch):
    root, add = folder
    add("a/x.gif", encode(9, "GIF"))
    add("a/note.txt", b"")
    add("b/copy.jpg", encode(1))
    code, text = run(capsys, monkeypatch, root, "--output", tmp_path / "x.txt")
    assert code == 0
    assert "8 of 9 entries; 1 left out (1 .txt)" in text
    assert "7 by DALI, 1 by Pillow; 0 by neither" in text
    assert "2, of 4 (a) to 4 images (a)" in text
    assert "48x40 smallest" in text
    assert "note: 1 images are copies of others of their class" in text
    assert "nothing is wrong" in text
    assert not (tmp_path / "x.txt").exists()


@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_what_is_wrong_is_gone_with_the_list(folder, tmp_path, capsys, monkeypatch, kind):
    root, add = folder
    add("a/cut.png", encode(7, "PNG")[:200])
    add("b/same as 0.jpg", encode(0))
    data = root
    if kind == "pack":
        data = tmp_path / "pack"
        pack(open_index(root), data, PackOptions())
    output = tmp_path / "exclude.txt"
    code, text = run(capsys, monkeypatch, data, "--output", output)
    assert code == 1
    assert "problem: 1 images of" in text
    assert "cut.png (a)" in text
    assert "problem: 1 images stand under several classes" in text
    assert "0.jpg (a) = " in text
    assert "same as 0.jpg (b)" in text
    assert "3 images are listed in" in text

    code, text = run(capsys, monkeypatch, data, "--exclude", output)
    assert code == 0, text
    assert "3 by --exclude" in text
    assert len(DaliLoader(data, 1, device="cpu", num_threads=1, exclude=output).dataset) == 5


def test_images_of_both_sets(folder, tmp_path, capsys, monkeypatch):
    root, _ = folder
    val = tmp_path / "val" / "b"
    val.mkdir(parents=True)
    (val / "new.jpg").write_bytes(encode(20))
    (val / "known.jpg").write_bytes(encode(1))
    output = tmp_path / "exclude.txt"
    code, text = run(capsys, monkeypatch, root, val.parent, "--output", output)
    assert code == 1
    assert f"{root}/b/1.jpg (b) = {val}/known.jpg (b)" in text
    assert output.read_text() == f"{root}/b/1.jpg\n"
    code, _ = run(capsys, monkeypatch, root, val.parent, "--exclude", output)
    assert code == 0


def test_images_that_were_left_out_are_wrong_too(folder, capsys, monkeypatch, tmp_path):
    root, add = folder
    add("a/page.jpg", b"<html>")
    add("b/\udcff\n.jpg", b"<html>")
    code, text = run(capsys, monkeypatch, root, "--output", tmp_path / "x.txt")
    assert code == 1
    assert "problem: 2 cannot be read of" in text
    text.encode()  # whatever names are made of


def test_a_scan_is_the_same_for_any_number_of_threads(folder):
    root, add = folder
    add("a/cut.jpg", encode(7)[:40] + b"\0" * 2000)
    index = open_index(root)
    scans = [scan(index, num_workers, progress=False) for num_workers in (1, 3)]
    assert scans[0].outcomes == scans[1].outcomes
    assert scans[0].digests == scans[1].digests
    assert find_duplicates(scans[:1]).across_classes == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA"] * 3, "one or two datasets"),
        (["DATA", "--workers", "0"], "--workers 0 is out of range: give 1 to 1024"),
        (["DATA", "--workers", "1025"], "--workers 1025 is out of range: give 1 to 1024"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, folder, arguments, message):
    words = [str(folder[0]) if word == "DATA" else word for word in arguments]
    monkeypatch.setattr("sys.argv", ["verify", *words])
    with pytest.raises(UserError, match=message):
        verify.main()


def test_files_that_cannot_be_read_are_on_the_list_and_gone_with_it(
    folder, tmp_path, capsys, monkeypatch, caplog
):
    root, add = folder
    add("a/page.jpg", b"<html>")
    add("b/\udcff.jpg", b"<html>")
    add("b/same as 0.jpg", encode(0))
    output = tmp_path / "exclude.txt"
    assert run(capsys, monkeypatch, root, "--output", output)[0] == 1
    code, text = run(capsys, monkeypatch, root, "--exclude", output)
    assert code == 0, text
    assert "5 of 9 entries; 4 left out (4 by --exclude)" in text
    caplog.clear()
    assert len(DaliLoader(root, 1, device="cpu", num_threads=1, exclude=output).dataset) == 5
    assert "to exclude are not in" not in caplog.text


def test_a_list_that_is_written_again_keeps_what_it_held(folder, tmp_path, capsys, monkeypatch):
    root, add = folder
    output = tmp_path / "exclude.txt"
    expected = set()
    for number in range(3):  # one more thing is wrong each time
        add(f"b/cut {number}.png", encode(7, "PNG")[:200])
        expected.add(f"{root}/b/cut {number}.png")
        arguments = [root, "--output", output, *(["--exclude", output] if number else [])]
        assert run(capsys, monkeypatch, *arguments)[0] == 1
        assert set(output.read_text().splitlines()) == expected


def test_names_that_no_list_can_hold_are_said(folder, tmp_path, capsys, monkeypatch):
    root, add = folder
    add("a/line\nbreak.png", encode(7, "PNG")[:200])
    add("a/cut.png", encode(8, "PNG")[:200])
    output = tmp_path / "exclude.txt"
    code, text = run(capsys, monkeypatch, root, "--output", output)
    assert code == 1
    assert output.read_text() == f"{root}/a/cut.png\n"
    assert "1 images are listed" in text
    assert "1 images have names with line breaks" in text


def test_a_pack_accounts_for_its_own_entries(folder, tmp_path, capsys, monkeypatch):
    root, add = folder
    add("a/page.jpg", b"<html>")
    pack(open_index(root), tmp_path / "pack", PackOptions())
    code, text = run(capsys, monkeypatch, tmp_path / "pack")
    assert code == 0, text
    assert "6 of 6 entries" in text


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_damaged_data_that_dali_decodes_are_found(folder, tmp_path, capsys, monkeypatch, place):
    root, add = folder
    data = encode(9)
    at = data.index(b"\xff\xda") + int(place * (len(data) - data.index(b"\xff\xda")))
    damaged = data[:at] + b"\xff\x53" + data[at + 2 :]  # a marker that no image holds
    with pytest.raises(OSError, match="broken data stream"):
        Image.open(io.BytesIO(damaged)).load()
    add("a/damaged.jpg", damaged)
    output = tmp_path / "exclude.txt"
    code, text = run(capsys, monkeypatch, root, "--output", output)
    assert code == 1
    assert "problem: 1 images of" in text
    assert output.read_text() == f"{root}/a/damaged.jpg\n"
    assert run(capsys, monkeypatch, root, "--exclude", output)[0] == 0

"""`dali_rsb.pack`: what lies in the shards, going on after an interruption, checksums, mistakes."""

import dataclasses
import fcntl
import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
from conftest import run_module
from PIL import Image

from dali_rsb import open_index
from dali_rsb import pack as command
from dali_rsb.dataset import packing
from dali_rsb.dataset.image_header import ImageFormat
from dali_rsb.dataset.packing import PackOptions, pack, verify
from dali_rsb.dataset.packing.shard_writer import ShardWriter
from dali_rsb.errors import UserError, run_command

SMALL = PackOptions(shard_bytes=40_000)


def write_images(root, names, size=(40, 30)):
    """Noise, of a different seed for each file, in the format of the file's extension."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def folder(tmp_path):
    names = [f"{kind}/{number}.JPEG" for kind in ("cat", "dog", "emu") for number in range(20)]
    return write_images(tmp_path / "images", names)


@pytest.fixture
def index(folder):
    return open_index(folder, progress=False)


def members(target):
    """(shard, name, bytes) of all members, in the order in which they lie there."""
    found = []
    for path in sorted(target.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            found += [(path.name, member.name, tar.extractfile(member).read()) for member in tar]
    return found


def contents(target):
    """The bytes of every file of a pack but the index's own random mark."""
    files = {path: path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}
    found = {str(path.relative_to(target)): data for path, data in files.items()}
    meta = json.loads(found["dali_rsb_index/meta.json"])
    meta.pop("build_id")
    found["dali_rsb_index/meta.json"] = meta
    return found


def encoded(index):
    """The bytes of each image."""
    files = [index.open(i) for i in range(len(index))]
    data = [file.read() for file in files]
    for file in files:
        file.close()
    return data


def test_shards_hold_the_original_bytes_as_webdataset_expects_them(index, tmp_path):
    report = pack(index, tmp_path / "packed", SMALL)
    found = members(tmp_path / "packed")
    assert len(found) == 2 * 60
    originals = {path.stem + path.parent.name: path for path in index.root.glob("*/*")}
    keys = []
    for image, label in zip(found[::2], found[1::2], strict=True):
        key, extension = image[1].split(".")
        assert (image[0], f"{key}.cls", extension) == (label[0], label[1], "jpg")
        kind, stem = key.split("/")
        assert image[2] == originals[stem + kind].read_bytes()
        assert label[2].decode() == str(["cat", "dog", "emu"].index(kind))
        keys.append(key)
    assert len(set(keys)) == 60
    assert (tmp_path / "packed" / "classes.txt").read_text().split() == ["cat", "dog", "emu"]
    num_bytes = sum(path.stat().st_size for path in originals.values())
    num_shards = len({shard for shard, _, _ in found})
    assert num_shards > 2
    assert report == packing.PackReport(60, num_shards, 0, 0, num_bytes, num_bytes)
    assert not (tmp_path / "packed" / ".packing").exists()


def test_the_index_has_the_rows_of_the_folder(index, tmp_path):
    pack(index, tmp_path / "packed", SMALL)
    packed = open_index(tmp_path / "packed")
    assert packed.classes == index.classes
    for name in ("labels", "widths", "heights", "formats"):
        assert np.array_equal(getattr(packed, name), getattr(index, name))
    assert packed.store.keys.all() == index.store.keys.all()
    assert encoded(packed) == encoded(index)
    assert packed.name(0) == f"{packed.store.shard(0)}:cat/0.JPEG"


def test_the_seed_orders_the_images_and_the_same_seed_gives_the_same_bytes(index, tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pack(index, tmp_path / name, dataclasses.replace(SMALL, seed=seed), num_workers=3)
        orders.append([member[1] for member in members(tmp_path / name)])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    labels = [member[2] for member in members(tmp_path / "a")][1::2]
    assert labels != sorted(labels)


def test_a_shard_is_as_large_as_asked_for_and_holds_at_least_one_image(index, tmp_path):
    pack(index, tmp_path / "packed", SMALL)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "packed").glob("*.tar"))]
    assert max(sizes) <= SMALL.shard_bytes
    assert min(sizes[:-1]) > SMALL.shard_bytes / 2
    report = pack(index, tmp_path / "tiny", PackOptions(shard_bytes=1))
    assert report.num_shards == len(list((tmp_path / "tiny").glob("*.tar"))) == 60


def test_names_that_webdataset_or_tar_would_not_take(tmp_path):
    names = ["a.b/x.y.jpg", "a.b/x.y.png", "a_b/x_y.jpg", "a.b/" + 150 * "n" + ".jpg"]
    names += ["a_b/wäre.JPG", os.fsdecode(b"a_b/\xff\xfe.jpg")]
    index = open_index(write_images(tmp_path / "images", names), progress=False)
    pack(index, tmp_path / "packed", PackOptions())
    found = members(tmp_path / "packed")
    keys = [name.split(".")[0] for _, name, _ in found[::2]]
    assert len(set(keys)) == 6
    assert all(name.count(".") == 1 for _, name, _ in found)
    assert {name.rpartition(".")[2] for _, name, _ in found} == {"jpg", "png", "cls"}
    assert "a_b/wäre" in keys
    packed = open_index(tmp_path / "packed")
    assert encoded(packed) == encoded(index)
    assert [packed.name(i).partition(":")[2] for i in range(6)] == [
        str(index.path(i).relative_to(index.root)) for i in range(6)
    ]


def test_verify_finds_what_is_damaged(index, tmp_path):
    target = tmp_path / "packed"
    pack(index, target, SMALL)
    num_shards = len(list(target.glob("*.tar")))
    assert verify(target) == num_shards
    shard = target / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"1 of {num_shards} shards .* damaged: shard-000001.tar;"):
        verify(target)
    (target / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"damaged: shard-000000.tar, shard-000001.tar"):
        verify(target)
    with pytest.raises(UserError, match="holds no finished pack"):
        verify(tmp_path)


def interrupt(monkeypatch, after):
    """Let the user press Ctrl-C before shard number `after` is finished."""
    finish, calls = ShardWriter.finish, iter(range(100))

    def finish_or_stop(writer):
        if next(calls) == after:
            raise KeyboardInterrupt
        return finish(writer)

    monkeypatch.setattr(ShardWriter, "finish", finish_or_stop)


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_pack_goes_on_and_ends_the_same(index, tmp_path, monkeypatch, after):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pack(index, whole, SMALL)
    with monkeypatch.context() as context:
        interrupt(context, after)
        with pytest.raises(KeyboardInterrupt):
            pack(index, parts, SMALL)
    finished = {path: path.stat().st_ino for path in parts.glob("*.tar")}
    assert len(finished) == after
    assert not list(parts.glob(".*partial"))
    with pytest.raises(UserError, match="is an unfinished pack"):
        open_index(parts)
    (parts / ".shard-000002.tar.partial").write_bytes(b"left by a process that was killed")
    pack(index, parts, SMALL)
    assert contents(parts) == contents(whole)
    assert {path: path.stat().st_ino for path in finished} == finished


def test_a_finished_shard_that_was_cut_off_is_written_again(index, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pack(index, whole, SMALL)
    interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        pack(index, parts, SMALL)
    with (parts / "shard-000001.tar").open("r+b") as file:
        file.truncate(1000)
    pack(index, parts, SMALL)
    assert contents(parts) == contents(whole)


def test_to_go_on_takes_the_same_images_and_options(index, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    with monkeypatch.context() as context:
        interrupt(context, 1)
        with pytest.raises(KeyboardInterrupt):
            pack(index, target, SMALL)
    write_images(index.root, ["cat/new.JPEG"])
    other_images = open_index(index.root, progress=False)
    other_options = dataclasses.replace(SMALL, seed=1)
    for state in ("unfinished pack", "pack"):
        for images, options in ((index, other_options), (other_images, SMALL)):
            with pytest.raises(UserError, match=f"holds an? {state} of other images or .*seed 0"):
                pack(images, target, options)
        report = pack(index, target, SMALL)
    assert pack(index, target, SMALL) == report


def test_a_pack_may_go_on_from_another_place(index, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        interrupt(context, 1)
        with pytest.raises(KeyboardInterrupt):
            pack(index, tmp_path / "packed", SMALL)
    index.root.rename(tmp_path / "moved")
    moved = open_index(tmp_path / "moved", progress=False)
    assert pack(moved, tmp_path / "packed", SMALL).num_images == 60


def test_an_image_that_went_away_stops_the_pack_until_it_is_back(index, tmp_path):
    path = index.path(7)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=rf"cannot read {path} .*goes on with the shards"):
        pack(index, tmp_path / "packed", SMALL)
    path.write_bytes(data)
    pack(index, tmp_path / "packed", SMALL)
    assert encoded(open_index(tmp_path / "packed")) == encoded(index)


def test_a_full_disk_is_said_and_leaves_no_half_shard(index, tmp_path, monkeypatch):
    def full(writer):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(ShardWriter, "finish", full)
        with pytest.raises(UserError, match=r"cannot write to .*packed \(No space left"):
            pack(index, tmp_path / "packed", SMALL)
    assert [path.name for path in (tmp_path / "packed").iterdir()] == [".packing"]


def test_one_process_packs_at_a_time(index, tmp_path):
    work = tmp_path / "packed" / ".packing"
    work.mkdir(parents=True)
    descriptor = os.open(work, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process is packing into"):
            pack(index, tmp_path / "packed", SMALL)
    finally:
        os.close(descriptor)
    pack(index, tmp_path / "packed", SMALL)


def test_a_target_that_is_no_new_folder(index, tmp_path):
    (tmp_path / "file").write_text("")
    for target, message in (
        (tmp_path, "is not empty: give a new folder"),
        (tmp_path / "file", "is a file"),
        (index.root, "lies in .*images, which is packed"),
        (index.root / "packed", "lies in .*images, which is packed"),
    ):
        with pytest.raises(UserError, match=message):
            pack(index, target, SMALL)
    assert sorted(path.name for path in index.root.iterdir()) == ["cat", "dog", "emu"]


def test_max_side_makes_large_images_smaller_and_keeps_the_others(tmp_path, caplog):
    folder = tmp_path / "images"
    write_images(folder, ["a/small.jpg", "b/small.png"], (60, 40))
    write_images(folder, ["a/wide.jpg", "b/wide.png"], (200, 90))
    write_images(folder, ["b/tall.webp"], (90, 200))
    Image.open(folder / "a/wide.jpg").convert("L").save(folder / "b/grey.jpg")
    index = open_index(folder, progress=False)
    report = pack(index, tmp_path / "packed", PackOptions(max_side=100))
    with caplog.at_level("INFO"):
        packed = open_index(tmp_path / "packed")
    assert "not the original ones: 4 of 6 re-encoded, longer side at most 100 px" in caplog.text
    assert (report.num_reencoded, report.num_undecodable) == (4, 0)
    assert report.bytes_after < report.bytes_before
    for i, data in enumerate(encoded(packed)):
        name = index.path(i).name
        if name.startswith("small"):
            assert data == index.path(i).read_bytes()
            continue
        with Image.open(io.BytesIO(data)) as image:
            sides = (45, 100) if name.startswith("tall") else (100, 45)
            assert image.size == (packed.widths[i], packed.heights[i]) == sides
            assert packed.formats[i] == ImageFormat.JPEG
            assert image.mode == ("L" if name == "grey.jpg" else "RGB")
            original = Image.open(index.path(i)).convert("RGB").resize(sides, Image.Resampling.BOX)
            difference = np.asarray(image.convert("RGB"), int) - np.asarray(original, int)
            assert abs(difference).mean() < 30  # of noise, whose own deviation is 74
    names = {name for _, name, _ in members(tmp_path / "packed")}
    assert {"b/tall.jpg", "b/small.png", "b/wide.jpg", "a/small.jpg"} <= names


def test_quality_encodes_all_but_what_would_grow_or_cannot_be_decoded(tmp_path):
    folder = write_images(tmp_path / "images", ["a/fine.png", "a/broken.jpg"], (64, 64))
    Image.open(folder / "a/fine.png").save(folder / "a/coarse.jpg", quality=5)
    data = (folder / "a/broken.jpg").read_bytes()
    end_of_header = data.index(b"\xff\xda") + 20
    (folder / "a/broken.jpg").write_bytes(data[:end_of_header])
    index = open_index(folder, progress=False)
    report = pack(index, tmp_path / "packed", PackOptions(quality=60))
    assert (report.num_images, report.num_reencoded, report.num_undecodable) == (3, 1, 1)
    packed = open_index(tmp_path / "packed")
    changed = [a != b for a, b in zip(encoded(packed), encoded(index), strict=True)]
    assert changed == [index.path(i).name == "fine.png" for i in range(3)]
    kinds = {True: ImageFormat.OTHER, False: ImageFormat.JPEG}  # a JPEG without an end, and others
    assert packed.formats.tolist() == [kinds[index.path(i).name == "broken.jpg"] for i in range(3)]


def test_shards_are_packed_again_with_other_options(index, tmp_path):
    pack(index, tmp_path / "packed", SMALL)
    again = open_index(tmp_path / "packed")
    pack(again, tmp_path / "again", PackOptions(shard_bytes=90_000, seed=5))
    assert encoded(open_index(tmp_path / "again")) == encoded(index)


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and error of the command."""
    monkeypatch.setattr(sys, "argv", ["pack", *map(str, arguments)])
    code = 0
    try:
        run_command(command.main)
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def test_the_command(folder, tmp_path):
    target = tmp_path / "packed"
    done = run_module("dali_rsb.pack", folder, target, "--shard-size", "40KB", "--max-side", "20")
    assert done.returncode == 0, done.stderr
    assert "60 images in" in done.stdout
    assert "re-encoded 60:" in done.stdout
    assert "accuracy may change" in done.stdout
    assert open_index(target).widths.max() == 20


def test_the_command_verifies(index, tmp_path, monkeypatch, capsys):
    pack(index, tmp_path / "packed", SMALL)
    code, out, _ = run(monkeypatch, capsys, "--verify", tmp_path / "packed")
    assert code == 0
    assert "are as they were packed" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SRC"], "give SRC and DST"),
        (["nowhere", "DST"], "nowhere does not exist"),
        (["SRC", "DST", "--shard-size", "1XB"], "--shard-size 1XB is no size"),
        (["SRC", "DST", "--shard-size", "0"], "--shard-size 0 is no size"),
        (["SRC", "DST", "--quality", "101"], "--quality 101 is out of range: give 1 to 100"),
        (["SRC", "DST", "--max-side", "0"], "--max-side 0 is out of range"),
        (["SRC", "DST", "--seed", "-1"], "--seed -1 is negative"),
        (["--verify", "SRC"], "holds no finished pack"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    names = {"SRC": folder, "DST": tmp_path / "packed"}
    code, _, error = run(monkeypatch, capsys, *(names.get(word, word) for word in arguments))
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "packed").exists()


def test_ctrl_c_says_that_one_can_go_on(folder, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, 0)
    code, _, error = run(monkeypatch, capsys, folder, tmp_path / "packed")
    assert code == 130
    assert "the same command goes on" in error


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("5000", 5000), ("1GB", 10**9), ("1.5mb", 1_500_000), ("2KiB", 2048)]
)
def test_sizes(text, num_bytes):
    assert command._parse_size(text) == num_bytes

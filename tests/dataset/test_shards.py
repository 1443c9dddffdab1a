"""Shards and lists are read as folders are: the same rows, epochs, resumes, bad and odd images."""

import contextlib
import gc
import io
import pickle
import random
import shutil
import tarfile
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from nvidia.dali import pipeline_def
from PIL import Image

from dali_rsb import DaliLoader, UserError, open_index
from dali_rsb.config import load_config
from dali_rsb.dataset.packing import PackOptions, pack
from dali_rsb.dataset.shards import ShardStore
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.executor import PipelineRunner
from dali_rsb.run.processes import processes
from dali_rsb.training.assembly import eval_loader, train_loader, train_samples
from dali_rsb.training.datasets import open_datasets
from dali_rsb.tuning.settings import resolve_settings
from pipelines.inputs import external_inputs, image_input

KINDS = ("a10", "a9", "b")  # in plain order; in natural order a9 is the first
OPTIONS = {"size_px": 24, "device": "cpu", "num_threads": 1}
RAW = OPTIONS | {"dtype": torch.uint8}
TRAINING = OPTIONS | {
    "train": True,
    "randaugment": "rand-m6-mstd0.5-inc1",
    "mixup": 0.1,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "seed": 3,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def sources(photographs, tmp_path_factory):
    """The same 28 photographs as a folder, as shards and as lists, in an order of their own."""
    top = tmp_path_factory.mktemp("sources")
    for number in range(28):
        path = top / "folder" / KINDS[number % 3] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph = photographs[number % 14].resize((90 + number, 70 + 3 * number))
        photograph.save(path, quality=80)
    pack(open_index(top / "folder"), top / "shards", PackOptions(shard_bytes=60_000))
    assert len(list((top / "shards").glob("*.tar"))) >= 3
    lines = [f"{p.relative_to(top)}\t{p.parent.name}\n" for p in (top / "folder").glob("*/*")]
    random.Random(0).shuffle(lines)
    (top / "relative.txt").write_text("".join(lines))
    (top / "absolute.tsv").write_text("".join(f"{top}/{line}" for line in lines))
    numbers = {"a10": "0", "a9": "1", "b": "2"}
    (top / "numbers.txt").write_text(
        "".join(
            line.split("\t")[0] + "\t" + numbers[line.split("\t")[1].strip()] + "\n"
            for line in lines
        )
    )
    names = ("folder", "shards", "relative.txt", "absolute.tsv", "numbers.txt")
    return {name: top / name for name in names}


OTHERS = ("shards", "relative.txt", "absolute.tsv", "numbers.txt")


def equal_batches(ours, theirs):
    assert len(ours) == len(theirs) > 0
    return all(
        torch.equal(a, b)
        for batch, other in zip(ours, theirs, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_those_of_the_folder(sources, name):
    folder, other = open_index(sources["folder"]), open_index(sources[name])
    names = ("0", "1", "2") if name == "numbers.txt" else KINDS
    assert other.classes == names
    for column in ("labels", "widths", "heights", "formats"):
        assert np.array_equal(getattr(other, column), getattr(folder, column))
    for i in range(28):
        with folder.open(i) as file, other.open(i) as same:
            assert file.read() == same.read()
    assert other.origin == sources[name]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("repeats", [None, 3])
def test_an_epoch_is_that_of_the_folder(sources, name, repeats):
    """Crops, RandAugment, mixing, erasing; each image decoded once for its copies with repeats."""
    loaders = [
        DaliLoader(sources[source], 8, repeats=repeats, **TRAINING) for source in ("folder", name)
    ]
    for _ in range(2):
        assert equal_batches(*map(list, loaders))


@pytest.mark.gpu
@pytest.mark.parametrize("repeats", [None, 3])
def test_an_epoch_on_a_gpu_is_that_of_the_folder(sources, repeats):
    options = TRAINING | {"device": "cuda", "repeats": repeats, "hw_decoder_load": 0.0}
    assert equal_batches(
        *(list(DaliLoader(sources[name], 8, **options)) for name in ("folder", "shards"))
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_on_two_processes_is_that_of_the_folder(sources, rank):
    options = TRAINING | {"num_replicas": 2, "rank": rank}
    batches = [list(DaliLoader(sources[name], 4, **options)) for name in ("folder", "shards")]
    assert equal_batches(*batches)


@pytest.mark.parametrize("name", OTHERS)
def test_an_evaluation_is_that_of_the_folder(sources, name):
    folder, other = DaliLoader(sources["folder"], 10, **RAW), DaliLoader(sources[name], 10, **RAW)
    assert equal_batches(list(folder), list(other))
    files = [path.rpartition("folder/")[2] for path in folder.dataset.filenames()]
    assert [
        path.rpartition(":")[2].rpartition("folder/")[2] for path in other.dataset.filenames()
    ] == files
    if name == "shards":
        shard, _, path = other.dataset.filename(3).partition(":")
        assert (Path(shard).exists(), path) == (True, files[3])


@pytest.mark.parametrize("repeats", [None, 2])
def test_training_goes_on_in_the_middle_of_an_epoch_also_from_folder_to_shards(sources, repeats):
    def new(name):
        return DaliLoader(sources[name], 5, repeats=repeats, **TRAINING)

    whole = new("folder")
    epochs = [list(whole), list(whole)]
    for first, second in (("shards", "shards"), ("folder", "shards"), ("shards", "relative.txt")):
        loader = new(first)
        list(loader)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        batches.close()
        resumed = new(second)
        resumed.load_state_dict(state)
        assert equal_batches(list(resumed), epochs[1][1:])


def test_the_trainers_loaders_take_shards_and_lists(digits, tmp_path):
    """Built from a configuration: repeated augmentation, mixing, resume, evaluation."""
    train, val = digits / "train", digits / "val"
    for split in (train, val):
        pack(open_index(split), tmp_path / split.name, PackOptions(shard_bytes=700_000))
        lines = [f"{path}\t{path.parent.name}" for path in split.glob("*/*.jpg")]
        (tmp_path / f"{split.name}.txt").write_text("\n".join(lines))
    options = [
        "data.digits=null",
        "data.threads=1",
        "run.device=cpu",
        "augment.repeats=3",
        "augment.randaugment=rand-m6-mstd0.5-inc1",
    ]
    found = []
    for folder, ending in ((digits, ""), (tmp_path, ""), (tmp_path, ".txt")):
        places = [f"data.{split}={folder}/{split}{ending}" for split in ("train", "val")]
        config = load_config(ROOT / "configs" / "quickstart.yaml", [*options, *places])
        with processes("cpu") as this_process:
            datasets = open_datasets(config.data, config.model.num_classes, this_process)
            settings = resolve_settings(config, datasets.train, this_process, 32).settings
            samples = train_samples(config, datasets.train, this_process, 32, settings)
            loader = train_loader(config.data, samples, settings, this_process)
            last = samples.updates_per_epoch - 3
            batches = list(loader.batches(samples.specs(epoch=1, first_update=last)))
            of_val, loader = eval_loader(config, datasets.val, this_process)
            batches += loader.batches(of_val.specs())
        found.append([(batch.images, batch.labels) for batch in batches])
    assert sum(len(labels) for _, labels in found[0]) > 500
    assert equal_batches(found[0], found[1])
    assert equal_batches(found[0], found[2])


@pytest.mark.parametrize("name", ["shards", "relative.txt"])
def test_files_are_left_out(sources, tmp_path, name):
    loader = DaliLoader(sources[name], 5, **RAW)
    left_out = [loader.dataset.filename(3), "a9/1.JPEG" if name == "shards" else "folder/a9/1.JPEG"]
    (tmp_path / "bad.txt").write_text("\n".join(left_out))
    kept = DaliLoader(sources[name], 5, exclude=tmp_path / "bad.txt", **RAW).dataset.filenames()
    assert len(kept) == 26
    assert set(loader.dataset.filenames()) - set(kept) >= {left_out[0]}


# Bad and odd images


@pytest.fixture
def damaged(tmp_path, photographs):
    """Shards of which two of twelve images have a good header and nothing behind it."""
    root = tmp_path / "folder"
    for number in range(12):
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photographs[number].resize((60, 50)).save(path)
    for number in (3, 6):
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[:640])
    pack(open_index(root), tmp_path / "shards", PackOptions(shard_bytes=15_000))
    return root, tmp_path / "shards"


def test_bad_images_in_shards_are_named_and_replaced_as_in_a_folder(damaged, caplog):
    options = TRAINING | {"max_bad_fraction": 0.5}
    folder, shards = (DaliLoader(source, 4, **options) for source in damaged)
    assert equal_batches(list(folder), list(shards))
    assert equal_batches(list(folder), list(shards))
    index = open_index(damaged[1])
    bad = [i for i in range(12) if index.path(i).stem in ("3", "6")]
    for i in bad:
        assert f"{index.name(i)} cannot be decoded; " in caplog.text
        assert ".tar:" in index.name(i)
    with pytest.raises(UserError, match=r"shard-00000\d\.tar:[ab]/[36]\.jpg cannot be decoded"):
        list(DaliLoader(damaged[1], 4, **RAW))
    names = [index.name(i) for i in bad]
    assert len(DaliLoader(damaged[1], 4, exclude=names, **RAW).dataset) == 10
    list(DaliLoader(damaged[1], 4, exclude=names, **RAW))


@pytest.fixture
def odd(tmp_path):
    """Shards of images that Pillow must decode: CMYK JPEG, GIF, PNG of 16 bits, and two others."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    root = tmp_path / "folder"
    (root / "x").mkdir(parents=True)
    image.convert("CMYK").save(root / "x/1.jpg")
    image.quantize(16).save(root / "x/2.gif")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(root / "x/3.png")
    image.save(root / "x/4.jpg")
    image.save(root / "x/5.webp", lossless=True)
    pack(open_index(root), tmp_path / "shards", PackOptions(shard_bytes=6_000))
    return root, tmp_path / "shards"


def test_odd_images_in_shards_are_decoded_by_pillow_as_in_a_folder(odd):
    folder, shards = (DaliLoader(source, 5, **RAW) for source in odd)
    first = list(shards)
    assert equal_batches(list(folder), first)
    copies = list((odd[1] / "dali_rsb_index" / "converted").glob("*.ppm"))
    assert len(copies) == 3
    for copy in copies:  # another loader finds them; this one makes those again that went away
        stamp = copy.stat().st_mtime_ns
        assert equal_batches(list(DaliLoader(odd[1], 5, **RAW)), first)
        assert copy.stat().st_mtime_ns == stamp
        copy.unlink()
    assert equal_batches(list(shards), first)


def test_parity_reads_shards(odd):
    from dali_rsb.checks.parity.comparison import Comparison
    from dali_rsb.parity import choose_images

    index = open_index(odd[1])
    images = choose_images(index, 5)
    assert len(images) == 5
    decoded = next(Comparison(index, images, 16, None).stages())
    assert decoded.verdict != "off"
    assert Comparison(index, images, 16, None)._label(3).startswith("shard-0000")


# Memory maps


def open_files(folder):
    """How many descriptors and memory maps of this process are shards of a folder."""
    names = Path("/proc/self/maps").read_text().split()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(str(descriptor.readlink()))
    return sum(name.startswith(str(folder)) and name.endswith(".tar") for name in names)


def test_shards_are_opened_when_used_and_closed_with_the_loader(sources, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(sources["shards"], shards)
    loader = DaliLoader(shards, 4, **TRAINING)
    assert open_files(shards) == 0
    for _ in range(8):  # batches are in flight when the files are closed
        loader = DaliLoader(shards, 4, **TRAINING)
        next(iter(loader))
        assert open_files(shards) > 0
        del loader
    gc.collect()
    assert open_files(shards) == 0


def test_the_bytes_stay_until_the_pipeline_is_gone(sources, tmp_path):
    """Whoever deletes shards and loader in the middle of a batch meets no crash."""
    for _ in range(5):
        shards = tmp_path / "shards"
        shutil.copytree(sources["shards"], shards)
        index = open_index(shards)
        loader = DaliLoader(index, 14, **TRAINING)
        batches = iter(loader)
        next(batches)
        index.store._files.clear()
        shutil.rmtree(shards)
        del index, loader, batches


@pipeline_def
def bytes_graph():
    return external_inputs((image_input("encoded"),))["encoded"]


def test_the_runner_keeps_the_bytes_that_the_graph_reads_in_place():
    runner = PipelineRunner(
        lambda: bytes_graph(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=2),
        prefetch=2,
    )
    arrays = [np.full(8, number, np.uint8) for number in range(4)]
    alive = [weakref.ref(array) for array in arrays]
    runner.submit({"encoded": [arrays.pop(0)]})
    runner.submit({"encoded": [arrays.pop(0)]})
    runner.discard()
    time.sleep(0.3)  # DALI has taken the arrays by now, and lets go of them before it is done
    assert alive[0]() is not None
    assert alive[1]() is not None
    runner.submit({"encoded": [arrays.pop(0)]})
    assert runner.take().tolist() == [[2] * 8]
    assert [array() is None for array in alive[:2]] == [True, True]
    runner.submit({"encoded": [arrays.pop(0)]})
    runner.reset()
    assert alive[2]() is None


def test_an_index_of_shards_can_be_pickled(sources):
    index = open_index(sources["shards"])
    views = index.image_arrays(np.arange(28))
    copy = pickle.loads(pickle.dumps(index))
    for view, other in zip(views, copy.image_arrays(np.arange(28)), strict=True):
        assert np.array_equal(view, other)


# Packs that are not as they were


def test_a_pack_without_all_its_shards(sources, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(sources["shards"], shards)
    assert len(open_index(shards)) == 28  # a copy is as good, whatever its times
    with (shards / "shard-000001.tar").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(UserError, match=r"shard-000001.tar has 5000 bytes instead of \d+: restore"):
        open_index(shards)
    (shards / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar is missing: restore"):
        open_index(shards)
    (shards / "dali_rsb_index" / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"index/meta.json is not the note of a pack .*: restore"):
        open_index(shards)


def test_a_path_that_is_no_dataset_says_what_would_be(sources, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nowhere", "nowhere does not exist: give a folder of class folders or of tar"),
        (tmp_path / "empty", "empty has no class folders; expected class folders"),
    ):
        with pytest.raises(UserError, match=message):
            open_index(path)


# Shards of others


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def jpeg(width):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, width, 3), width, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_shards_of_others_are_indexed(tmp_path, monkeypatch):
    root = tmp_path / "shards"
    write_tar(
        root / "train-1.tar",
        [
            ("0.cls", b"2\n"),
            ("0.JPG", jpeg(50)),
            ("1.jpg", jpeg(40)),
            ("1.cls", b"0"),
            ("1.txt", b""),
        ],
    )
    write_tar(
        root / "train-0.tar",
        [("./", b""), ("0.seg.png", b"x"), ("0.jpeg", jpeg(30)), ("0.cls", b"2")],
    )
    index = open_index(root)
    assert index.classes == ("0", "1", "2")
    found = {index.name(i): (index.labels[i], index.widths[i]) for i in range(3)}
    assert found == {
        f"{root}/train-0.tar:0.jpeg": (2, 30),
        f"{root}/train-1.tar:0.JPG": (2, 50),
        f"{root}/train-1.tar:1.jpg": (0, 40),
    }
    with index.open(2) as file:
        assert file.read() == jpeg(int(index.widths[2]))
    ((images, targets),) = DaliLoader(root, 3, **RAW)
    assert targets.tolist() == index.labels.tolist()
    assert images[:, 0, 12, 12].tolist() == pytest.approx(index.widths.tolist(), abs=1)

    (root / "classes.txt").write_text("cat\ndog\nemu\nfox\n")
    assert open_index(root).classes == ("cat", "dog", "emu", "fox")
    write_tar(
        root / "train-2.tar",
        [("9.jpg", jpeg(60)), ("9.cls", b"3"), ("8.jpg", b"no image"), ("8.cls", b"3")],
    )
    assert len(open_index(root)) == 4
    monkeypatch.setattr("dali_rsb.dataset.opening.list_contents", None)  # stored by now
    assert len(open_index(root)) == 4


def test_indexing_shards_of_others_reads_headers_alone(tmp_path, monkeypatch):
    write_tar(tmp_path / "s" / "0.tar", [("1.jpg", jpeg(30)), ("1.cls", b"0")])
    monkeypatch.setattr(ShardStore, "arrays", None)  # which has all bytes read from the disk
    assert open_index(tmp_path / "s").widths.tolist() == [30]


def test_class_names_in_shards_of_others(tmp_path):
    write_tar(
        tmp_path / "s" / "0.tar",
        [("x/1.jpg", jpeg(30)), ("x/1.cls", b"n10"), ("x/2.jpg", jpeg(40)), ("x/2.cls", b"n9")],
    )
    index = open_index(tmp_path / "s")
    assert index.classes == ("n10", "n9")
    assert index.labels.tolist() == [0, 1]


def test_packed_shards_are_read_without_their_index_too(sources, tmp_path):
    """By their members alone, as others read them."""
    shards = tmp_path / "shards"
    shutil.copytree(sources["shards"], shards)
    shutil.rmtree(shards / "dali_rsb_index")
    index = open_index(shards)
    assert index.classes == ("a10", "a9", "b")
    assert np.array_equal(index.labels, open_index(sources["folder"]).labels)
    assert equal_batches(
        list(DaliLoader(shards, 8, **TRAINING)), list(DaliLoader(sources["folder"], 8, **TRAINING))
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", b"x")], "1.jpg in .*0.tar has no label: a sample is KEY.jpg"),
        ([("1.jpg", b"x"), ("1.json", b"{}")], "1.jpg in .*0.tar has no label"),
        ([("1.cls", b"0")], "no samples KEY.jpg with KEY.cls in the 1 tar files"),
        ([("1.jpg", b"x"), ("1.cls", b"-1")], "label -1 in .* is no class number"),
        ([("1.jpg", b"x"), ("1.cls", b"0")], "none of the 1 image files in .* can be read"),
    ],
)
def test_shards_of_others_that_cannot_be_used(tmp_path, members, message):
    write_tar(tmp_path / "s" / "0.tar", members)
    with pytest.raises(UserError, match=message):
        open_index(tmp_path / "s")


def test_a_file_that_is_no_tar(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"0\.tar cannot be read as an uncompressed tar file"):
        open_index(tmp_path / "s")


# Lists


@pytest.fixture
def listed(tmp_path):
    """Writes a list beside three images, 1.jpg to 3.jpg, 31 to 33 pixels wide; returns its path."""
    for number in (1, 2, 3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(30 + number))

    def write(text):
        path = tmp_path / "list.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("1.jpg\t0\n2.jpg\t1\n3.jpg\t0\n", ("0", "1"), [0, 1, 0]),
        ("1.jpg\t1\n2.jpg\t1\n3.jpg\t3", ("0", "1", "2", "3"), [1, 1, 3]),
        ("1.jpg\tx 10\n2.jpg\tx 9\n3.jpg\tX 10\n", ("X 10", "x 10", "x 9"), [1, 2, 0]),
        ("1.jpg\t01\n2.jpg\t00\n3.jpg\t01\n", ("00", "01"), [1, 0, 1]),
        ("1.jpg\t0\n2.jpg\tdog\n3.jpg\t0\n", ("0", "dog"), [0, 1, 0]),
        (b"\xef\xbb\xbf3.jpg\t0\r\n\r\n./2.jpg\t1 \r\n1.jpg\t0", ("0", "1"), [0, 1, 0]),
    ],
)
def test_labels_and_order_of_a_list(listed, text, classes, labels):
    index = open_index(listed(text))
    assert index.classes == classes
    assert index.labels.tolist() == labels
    assert index.widths.tolist() == [31, 32, 33]
    assert index.root == index.origin.parent


def test_an_image_that_is_listed_twice_counts_twice(listed):
    index = open_index(listed("2.jpg\t0\n1.jpg\t1\n2.jpg\t0\n"))
    assert index.widths.tolist() == [31, 32, 32]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.txt is empty; a list of images has PATH, a tab and LABEL in each line"),
        ("1.jpg\t0\n2.jpg 1\n", r"line 2 of .*list.txt is '2.jpg 1'; a list of images has"),
        ("1.jpg\t\n", "line 1 of .*list.txt"),
        (Image.new("RGB", (99, 99)).tobytes(), "list.txt is no text, line 1 holds a NUL byte"),
        ("1.jpg\t-1\n2.jpg\t0\n", "label -1 in .*list.txt is no class number"),
        ("1.jpg\t1000000\n", "label 1000000 in .*list.txt is no class number"),
        ("nowhere.jpg\t0\n", "none of the 1 image files in .*list.txt can be read"),
    ],
)
def test_lists_that_cannot_be_used(listed, text, message):
    with pytest.raises(UserError, match=message):
        open_index(listed(text))


def test_labels_from_one_on_are_warned_of(listed, caplog):
    open_index(listed("1.jpg\t1\n2.jpg\t2\n"))
    assert "the smallest label in" in caplog.text


def test_images_of_a_list_that_cannot_be_read_are_left_out(listed, tmp_path, caplog):
    path = listed("1.jpg\t0\n4.jpg\t1\n3.jpg\t1\n")
    assert open_index(path).widths.tolist() == [31, 33]
    assert "1 image files in" in caplog.text
    (tmp_path / "4.jpg").write_bytes(jpeg(34))
    assert open_index(path).widths.tolist() == [31, 33, 34]


def test_the_index_of_a_list_is_stored_and_built_again_when_the_list_changes(listed, monkeypatch):
    path = listed("1.jpg\t0\n2.jpg\t1\n")
    built = open_index(path)
    with monkeypatch.context() as context:
        context.setattr("dali_rsb.dataset.opening.list_contents", None)
        loaded = open_index(path)
    assert loaded.widths.tolist() == built.widths.tolist()
    assert (loaded.root, loaded.origin, loaded.classes) == (built.root, path, built.classes)
    listed("1.jpg\t0\n2.jpg\t1\n3.jpg\t1\n")
    assert len(open_index(path)) == 3


def test_a_list_of_files_in_several_places(tmp_path, listed):
    other = tmp_path / "other" / "4.jpg"
    other.parent.mkdir()
    other.write_bytes(jpeg(34))
    inside = tmp_path / "lists"
    inside.mkdir()
    (inside / "train.txt").write_text(f"../1.jpg\t0\n{other}\t1\n../2.jpg\t0\n")
    for _ in range(2):  # built, loaded
        index = open_index(inside / "train.txt")
        assert sorted(index.widths.tolist()) == [31, 32, 34]
        ((images, _),) = DaliLoader(inside / "train.txt", 3, **RAW)
        assert images[:, 0, 12, 12].tolist() == pytest.approx(index.widths.tolist(), abs=1)


def test_bad_images_of_a_list_are_replaced(listed, tmp_path):
    path = listed("1.jpg\t0\n2.jpg\t1\n3.jpg\t1\n")
    index = open_index(path)
    (tmp_path / "2.jpg").write_bytes(jpeg(32)[:620])
    bad_images = BadImages(index, max_fraction=0.5)
    bad_images.find(np.arange(3), RuntimeError())
    assert bad_images.replacements == {1: 2}

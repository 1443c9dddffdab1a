"""Replay: updates of a recorded training computed again, and the pictures of their stages."""

import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import recorded_training as recorded
import torch
from browser import shown
from PIL import Image
from recorded_training import FIRST, LOST, SECOND

from dali_rsb import replay
from dali_rsb.checks.parity.pillow import apply_operation, crop_resize_flip
from dali_rsb.draws.randaugment import fill_color
from dali_rsb.errors import UserError
from dali_rsb.loader.batch import MixedBatch
from dali_rsb.pictures.past import numbered, open_past, past_of
from dali_rsb.pictures.replay_folder import Selection, write_replay
from dali_rsb.pictures.replaying import Replayer
from dali_rsb.pictures.stages import as_levels
from dali_rsb.run.sessions import read_sessions, standing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIELDS = ("images", "labels", "partner_labels", "lam")


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    return recorded.recorded_run(tmp_path_factory.getbasetemp() / "recorded")


@pytest.fixture(scope="module")
def replayers(recorded_run):
    """A replayer for each session, oldest first."""
    made = [Replayer(past) for past in open_past(recorded_run.folder)]
    yield made
    for replayer in made:
        replayer.close()


def _command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["dali-rsb replay", *map(str, arguments)])
    replay.main()


def _differences(replayer, update, kept):
    """Where an update is not what was recorded, as (rank, micro-batch, field)."""
    found, count = [], 0
    for replayed in replayer.batches(past_of([replayer.past], update)[1]):
        ours = replayed.mixed
        theirs = MixedBatch(*kept[update, replayed.rank][replayed.micro_batch])
        for name in FIELDS:
            a, b = getattr(ours, name), getattr(theirs, name)
            assert a.dtype == b.dtype
            if a.numpy().tobytes() != b.numpy().tobytes():
                found.append((replayed.rank, replayed.micro_batch, name))
        count += 1
    assert count == sum(len(kept[update, rank]) for rank in range(2) if (update, rank) in kept)
    return found


def test_fifty_updates_equal_what_was_trained_on_byte_for_byte(recorded_run, replayers):
    pasts = open_past(recorded_run.folder)
    configs = [past.config_name for past in pasts]
    assert configs == ["config-1.yaml", "config-2.yaml", "config.yaml"]
    assert [past.session.world_size for past in pasts] == [2, 1, 1]
    updates = np.random.default_rng(0).permutation(np.arange(1, LOST + 1))[:50].tolist()
    for update in {*updates, FIRST, FIRST + 1, SECOND, SECOND + 1, LOST}:
        past, position = past_of(pasts, update)
        assert numbered(past, position) == update
        number = pasts.index(past)
        assert number == (update > FIRST) + (update > SECOND)
        assert _differences(replayers[number], update, recorded_run.kept) == [], update
    left_out = replayers[0].bad_images.replacements
    assert {replayers[0].index.path(row) for row in left_out} == set(recorded_run.bad)


def test_sessions_say_which_of_them_made_which_update(recorded_run):
    parts = standing(read_sessions(recorded_run.folder))
    per_epoch = recorded.PER_EPOCH
    ends = [divmod(update, per_epoch) for update in (FIRST, SECOND, 64)]  # lost in a report at 64
    assert [end for _, _, end in parts] == ends
    assert [first for _, first, _ in parts] == [(0, 0), *ends[:2]]
    by_epoch = past_of(open_past(recorded_run.folder), 6, epoch=3)
    assert by_epoch[1] == (2, 5)
    for update, epoch in ((0, None), (65, None), (9, 1), (1, 9)):
        with pytest.raises(UserError, match="--update"):
            past_of(open_past(recorded_run.folder), update, epoch)


@pytest.fixture(scope="module")
def written(recorded_run, replayers, tmp_path_factory):
    """An update of the first session with all its pictures: folder, content of replay.json."""
    target = tmp_path_factory.mktemp("written") / "update"
    update = 13
    content = write_replay(replayers[0], (1, 4), Selection(tensors=True), target)
    assert content == json.loads((target / "replay.json").read_text())
    assert content["update"] == update
    return target, content


def _pixels(folder, entry, stage):
    with Image.open(folder / entry["pictures"][stage]) as image:
        return np.asarray(image).astype(int)


def test_tensors_and_mixed_pictures_are_what_was_trained_on(recorded_run, written):
    folder, content = written
    by_position = {entry["position"]: entry for entry in content["samples"]}
    batches = torch.load(folder / "batches.pt")
    assert len(batches) == 4
    for batch in batches:
        theirs = MixedBatch(
            *recorded_run.kept[content["update"], batch["rank"]][batch["micro_batch"]]
        )
        assert all(torch.equal(batch[name], getattr(theirs, name)) for name in FIELDS)
        levels = as_levels(theirs.images, MEAN, STD)
        for row, position in enumerate(batch["positions"].tolist()):
            entry = by_position.pop(position)
            assert np.array_equal(_pixels(folder, entry, "mixed"), levels[row])
            assert entry["label"] == theirs.labels[row]
            assert entry["lam"] == theirs.lam[row]
            assert entry["partner_label"] == theirs.partner_labels[row]
    assert not by_position


def test_each_stage_is_pillow_s_of_the_stage_before(written):
    folder, content = written
    cropped, operated = [], []
    for entry in content["samples"]:
        window = entry["window"]
        right, bottom = window["left"] + window["width"], window["top"] + window["height"]
        with Image.open(folder / entry["pictures"]["source"]) as source:
            assert source.size == (entry["width"], entry["height"])
            box = (window["left"], window["top"], right, bottom)
            flip = entry["mirrored"]
            expected = crop_resize_flip(source, box, recorded.SIZE, entry["filter"], flip)
        before = _pixels(folder, entry, "resized")
        cropped.append(np.abs(before - np.asarray(expected)).mean())
        for step in entry["randaugment"]:
            image = Image.fromarray(before.astype(np.uint8))
            settings = (step["magnitude"] or 0.0, bool(step["negative"]), True)
            expected = apply_operation(image, step["operation"], *settings, fill_color(MEAN))
            before = _pixels(folder, entry, f"randaugment-{step['layer']}-{step['operation']}")
            operated.append(np.abs(before - np.asarray(expected)).mean())
    assert max(cropped) < 0.3
    assert len(operated) > 20
    assert np.mean(operated) < 0.6


def _last(folder, entry):
    """The picture before mixing."""
    return _pixels(folder, entry, list(entry["pictures"])[-2])


def test_mixed_pictures_are_mixed_by_hand(written):
    folder, content = written
    by_position = {entry["position"]: entry for entry in content["samples"]}
    kinds = set()
    for entry in content["samples"]:
        if entry["erased"]:
            continue
        expected, mixing = _last(folder, entry).astype(float), entry["mixing"]
        kinds.add(mixing and mixing["kind"])
        if mixing is not None:
            partner = by_position[mixing["partner"]["position"]]
            assert partner["file"] == mixing["partner"]["file"]
            assert partner["label"] == entry["partner_label"]
            other = _last(folder, partner)
            if mixing["kind"] == "mixup":
                expected = mixing["lam"] * expected + (1 - mixing["lam"]) * other
            else:
                top, bottom, left, right = mixing["box"]
                expected[top:bottom, left:right] = other[top:bottom, left:right]
        assert np.abs(_pixels(folder, entry, "mixed") - expected).max() <= 1
    assert kinds == {None, "mixup", "cutmix"}


def test_the_page_shows_the_images(written):
    folder, _ = written
    screen = shown(folder / "replay.html")
    assert screen.width == 390
    text = (folder / "replay.html").read_text()
    assert text.count("<img ") > 100
    # What is enlarged keeps every pixel; of the photograph a JPEG does.
    kinds = re.findall(r'<img src="data:image/(\w+);[^"]*" alt="(\w+)', text)
    assert {kind for kind, stage in kinds if stage == "window"} == {"jpeg"}
    assert {kind for kind, stage in kinds if stage != "window"} == {"png"}
    assert "the others are in the folder" not in text


def test_a_lost_loss_names_the_command_that_shows_its_images(recorded_run, monkeypatch, tmp_path):
    assert f"in update {LOST};" in recorded_run.message
    command = re.search(r"dali-rsb replay (.*)$", recorded_run.message)[1]
    assert shlex.split(command) == [str(recorded_run.folder), "--update", str(LOST)]
    target = tmp_path / "lost"
    _command(monkeypatch, *shlex.split(command), "--output", target, "--tensors")
    (first, second) = torch.load(target / "batches.pt")
    for ours, theirs in zip((first, second), recorded_run.kept[LOST, 0], strict=True):
        assert torch.equal(ours["images"], theirs[0])


def test_without_a_file_its_neighbour_stands_in(recorded_run, monkeypatch, tmp_path, capsys):
    _command(monkeypatch, recorded_run.folder, "--update", 13, "--output", tmp_path / "all")
    entries = json.loads((tmp_path / "all/replay.json").read_text())["samples"]
    chosen = next(e for e in entries if e["rank"] == 0 and e["mixing"] and not e["stands_in_for"])
    name, position = chosen["file"], chosen["position"]
    options = ["--without", name, "--tensors", "--position", position]
    _command(
        monkeypatch, recorded_run.folder, "--update", 13, *options, "--output", tmp_path / "less"
    )
    assert "note: not what was trained on" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "less/replay.json").read_text())["samples"]
    assert entry["stands_in_for"] == name
    assert entry["file"] > name  # the next one of the dataset
    drawn = ("position", "randaugment", "lam", "mirrored", "filter")
    assert all(entry[key] == chosen[key] for key in drawn)
    batches = torch.load(tmp_path / "less/batches.pt")
    without = {e["position"] for e in entries if e["file"] == name}
    for batch in batches:
        theirs = recorded_run.kept[13, batch["rank"]][batch["micro_batch"]][0]
        partners = {e["mixing"]["partner"]["position"]: e["position"] for e in entries
                    if e["mixing"]}  # fmt: skip
        touched = without | {partners.get(position) for position in without}
        for row, place in enumerate(batch["positions"].tolist()):
            same = torch.equal(batch["images"][row], theirs[row])
            assert same or place in touched


@pytest.fixture
def moved(recorded_run, tmp_path):
    """The dataset at another place, with its times."""
    shutil.copytree(recorded_run.images, tmp_path / "train")
    return tmp_path / "train"


def _asked_for(recorded_run, update):
    """A file that an update uses."""
    past, position = past_of(open_past(recorded_run.folder), update)
    replayer = Replayer(past)
    spec = next(replayer.samples.specs(*position))
    return replayer.index.path(int(spec.indices[0])).relative_to(recorded_run.images)


def test_a_dataset_that_has_changed_is_refused_by_name(recorded_run, moved, monkeypatch, tmp_path):
    arguments = [recorded_run.folder, "--update", 13, f"data.train={moved}"]
    arguments += ["--output", tmp_path / "out", "--position", 128]
    name = _asked_for(recorded_run, 13)
    os.utime(moved / name)
    with pytest.raises(UserError, match=rf"{name} has changed since the run began .*--changed"):
        _command(monkeypatch, *arguments)
    assert not (tmp_path / "out").exists()
    _command(monkeypatch, *arguments, "--changed")
    assert (tmp_path / "out/replay.html").is_file()

    shutil.copyfile(moved / "class0/000.png", moved / "class0/new.png")
    with pytest.raises(UserError, match=r"has 321 images, the run had 320; .*newer than the run"):
        _command(monkeypatch, *arguments)
    (tmp_path / "new.txt").write_text("class0/new.png\n")
    _command(monkeypatch, *arguments, "--changed", f"data.exclude={tmp_path / 'new.txt'}")

    (moved / "class0/new.png").unlink()
    (moved / "class0/003.jpg").rename(moved / "class0/0033.jpg")
    with pytest.raises(UserError, match="has other names or labels than the run"):
        _command(monkeypatch, *arguments, "--changed")


def test_a_run_without_sessions_says_by_its_checkpoint_what_it_was(recorded_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(recorded_run.folder / "config.yaml", folder)
    shutil.copy(recorded_run.folder / "last.pt", folder)
    (past,) = open_past(folder)
    recorded_past = open_past(recorded_run.folder)[1]
    names = ("world_size", "batch_per_device", "updates_per_epoch", "device", "dtype", "last")
    assert all(
        getattr(past.session, name) == getattr(recorded_past.session, name) for name in names
    )
    assert past.notes

    (folder / "last.pt").unlink()
    with pytest.raises(UserError, match="give --world-size"):
        open_past(folder)
    (past,) = open_past(folder, world_size=2)
    assert past.session.world_size == 2

    shutil.copy(recorded_run.folder / "config-1.yaml", folder)
    with pytest.raises(UserError, match=r"copy the one you want as config\.yaml into a folder"):
        open_past(folder, world_size=2)
    (tmp_path / "own").mkdir()
    shutil.copy(folder / "config-1.yaml", tmp_path / "own/config.yaml")
    (past,) = open_past(tmp_path / "own", world_size=2)
    first = open_past(recorded_run.folder)[0]
    assert past.config == first.config
    names = ("world_size", "batch_per_device", "updates_per_epoch", "device", "dtype")
    assert all(getattr(past.session, name) == getattr(first.session, name) for name in names)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--update", "65"], "has 8 epochs of 8 updates, 64 in all; give --update within these"),
        (["--update", "1", "--position", "40"], "positions 0 to 31 of epoch 1; give --position"),
        (["--update", "1", "--image", "nowhere.jpg"], "nowhere.jpg is no image of"),
        (["--update", "1", "optimizer.lr=1"], "optimizer.lr=1: a run is replayed as it was; only"),
        (["--update", "1", "--world-size", "3"], "says that the run had 2; leave the option out"),
        (["--update", "1", "--updat", "3"], "did you mean '--update'?"),
    ],
)
def test_mistakes_are_one_line(recorded_run, monkeypatch, tmp_path, arguments, answer):
    with pytest.raises(UserError) as caught:
        _command(monkeypatch, recorded_run.folder, *arguments, "--output", tmp_path / "out")
    assert answer in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert not list(tmp_path.iterdir())


def test_no_other_folder_is_replaced(recorded_run, monkeypatch, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match=r"exists and holds no replay\.json"):
        _command(monkeypatch, recorded_run.folder, "--update", 1, "--output", tmp_path)
    assert (tmp_path / "mine.txt").is_file()


def test_no_run_folder_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"is no run folder, it holds no config\.yaml; give the"):
        _command(monkeypatch, tmp_path, "--update", 1)

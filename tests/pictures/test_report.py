"""`dali-rsb report`: what it reads from a run folder, and what it makes of it."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from browser import DESKTOP_PX, PHONE_PX, shown
from planted import photograph, save_run

from dali_rsb import report
from dali_rsb.config import load_config
from dali_rsb.config.recipes import recipes
from dali_rsb.errors import UserError
from dali_rsb.evaluation.imagenet import imagenet_classes
from dali_rsb.pictures.class_errors import class_errors
from dali_rsb.pictures.published import nearest_recipe, published_top1
from dali_rsb.pictures.run_history import names_of, read_run
from dali_rsb.pictures.run_plots import axes_of, curves
from dali_rsb.pictures.time_spent import duration, time_spent
from dali_rsb.run.processes import Processes
from dali_rsb.run.records import EpochRow, RunInfo, UpdateRow
from dali_rsb.run.trackers import jsonl_file
from dali_rsb.run.trackers.csv_file import CsvFile
from dali_rsb.run.trackers.jsonl_file import JsonlFile

PER_EPOCH, BATCH = 10, 32
# A clock: each epoch has two reports of 5 updates at 16 images/s, so 10 s each, a quarter of which
# is waiting; 6 s of evaluation; and 4 s for a checkpoint.
REPORT_S, EVALUATION_S, CHECKPOINT_S, WAIT = 10.0, 6.0, 4.0, 25.0
START_S = 1_790_000_000.0


class Clock:
    def __init__(self, now=START_S):
        self.now = now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(jsonl_file, "time", clock)
    return clock


def train(folder, clock, first=1, last=3, accuracy=60.0, loss=1.0, updates_of_last=PER_EPOCH):
    """Let the trackers of a run write what a run of these epochs reports.

    Args:
        updates_of_last: of the last epoch; with fewer than all it is killed there.
    """
    info = RunInfo(folder, {}, PER_EPOCH, (first - 1) * PER_EPOCH)
    trackers = [CsvFile(info), JsonlFile(info)]
    for epoch in range(first, last + 1):
        for update in range(5, (updates_of_last if epoch == last else PER_EPOCH) + 1, 5):
            clock.now += REPORT_S
            row = UpdateRow(epoch, 3, update, PER_EPOCH, loss / epoch, 1e-3 * epoch, 16.0, WAIT, 0)
            for tracker in trackers:
                tracker.log_update(row)
        if epoch == last and updates_of_last < PER_EPOCH:
            return
        clock.now += EVALUATION_S
        top1 = accuracy + epoch
        row = EpochRow(
            epoch,
            epoch * PER_EPOCH,
            loss / epoch,
            1e-3,
            16.0,
            WAIT,
            0,
            0.5,
            top1 - 1,
            99.0,
            top1,
            99.0,
            0.0,
        )
        for tracker in trackers:
            tracker.log_epoch(row)
        clock.now += CHECKPOINT_S


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Four of each class: one red one looks blue, two blue ones look red."""
    root = tmp_path_factory.mktemp("photographs")
    for name, num_wrong, right, wrong in (
        ("red", 1, (60, 120), (120, 60)),
        ("blue", 2, (120, 60), (60, 120)),
    ):
        (root / name).mkdir()
        for number in range(4):
            strengths = wrong if number < num_wrong else right
            redder = (strengths[0], strengths[1] + 2 * number)
            photograph(redder).save(root / name / f"{number}.png")
    return root


def new_run(folder, photographs, **sections):
    data = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "val": photographs}
    optimizer = {"batch_size": BATCH} | sections.pop("optimizer", {})
    schedule = {"epochs": 3, "warmup_epochs": 0}
    return save_run(folder, data=data, optimizer=optimizer, schedule=schedule, **sections)


def write_page(monkeypatch, output, *arguments):
    monkeypatch.setattr("sys.argv", ["x", *map(str, arguments), "--output", str(output)])
    report.main()
    return output.read_text()


def test_time_is_told_apart_by_the_records(tmp_path, photographs, clock):
    folder = new_run(tmp_path / "run", photographs)
    train(folder, clock)
    run = read_run(folder, "run")
    assert [one.end for one in run.intervals] == [5, 10, 15, 20, 25, 30]
    assert run.is_finished
    assert not run.faults
    assert (run.best.row.epoch, run.best.top1) == (3, 63.0)
    spent = time_spent(run)
    assert (spent.training_s, spent.waiting_s) == pytest.approx((45.0, 15.0))
    assert (spent.evaluation_s, spent.rest_s) == pytest.approx((18.0, 2 * CHECKPOINT_S))
    # Two intervals and an evaluation each; pauses for checkpoints are not in the curves' time.
    assert [one.end_s for one in run.epochs] == pytest.approx([26.0, 52.0, 78.0])


def test_of_what_a_killed_run_did_twice_the_later_report_counts(tmp_path, photographs, clock):
    folder = new_run(tmp_path / "run", photographs)
    train(folder, clock, last=2, accuracy=10.0, loss=5.0)
    clock.now += 1000
    train(folder, clock, first=2, updates_of_last=5)  # from the first epoch's checkpoint
    run = read_run(folder, "run")
    assert [one.end for one in run.intervals] == [5, 10, 15, 20, 25]
    assert [round(one.loss, 3) for one in run.intervals] == [5.0, 5.0, 0.5, 0.5, 0.333]
    assert [one.top1 for one in run.epochs] == [11.0, 62.0]
    assert not run.is_finished
    assert run.updates_done == 25
    assert time_spent(run).rest_s == pytest.approx(1000 + 3 * CHECKPOINT_S + 26)  # thrown away


def test_damaged_records_are_left_out_and_named(tmp_path, photographs, clock):
    folder = new_run(tmp_path / "run", photographs)
    train(folder, clock)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = '{"kind": "update", "epoch": "one"}'
    lines.insert(4, '{"kind": "epoch", "ep')
    lines.insert(4, "[" * 100_000)
    path.write_bytes("\n".join(lines).encode() + b'\n\xff\0\n{"kind": "upd')
    table = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join([*table[:2], "rubbish,,", *table[3:]]) + "\n")
    run = read_run(folder, "run")
    assert [one.end for one in run.intervals] == [5, 15, 20, 25, 30]
    assert [one.updates for one in run.intervals] == [5, 10, 5, 5, 5]
    assert [one.row.epoch for one in run.epochs] == [1, 2, 3]
    assert run.faults == (
        "metrics.jsonl has 4 damaged line(s), which are left out.",
        "metrics.csv has 2 usable rows and metrics.jsonl 3 epochs: what the first lacks is taken "
        "from the second.",
    )


@pytest.mark.parametrize(
    "junk",
    [None, "x", [1], float("inf"), -1, 10**400],
    ids=["null", "text", "list", "inf", "-1", "huge"],
)
def test_whatever_stands_in_the_records_is_read(tmp_path, photographs, clock, junk):
    folder = new_run(tmp_path / "run", photographs)
    train(folder, clock)
    path, table = folder / "metrics.jsonl", folder / "metrics.csv"
    lines, cells = path.read_text().splitlines(), table.read_text().splitlines()
    for number in (0, 2):  # the first report and the first epoch
        for key in json.loads(lines[number]):
            line = json.dumps(json.loads(lines[number]) | {key: junk})
            path.write_text("\n".join([*lines[:number], line, *lines[number + 1 :]]))
            run = read_run(folder, "run")
            assert run.updates_done == 30
            assert run.best.top1 == 63.0
            assert time_spent(run).total_s > 0
    path.write_text("\n".join(lines))
    for column in range(len(cells[1].split(","))):
        row = cells[1].split(",")
        row[column] = str(junk)
        table.write_text("\n".join([cells[0], ",".join(row), *cells[2:]]))
        assert read_run(folder, "run").best.top1 == 63.0


def test_the_published_figure_is_of_the_recipe_itself_on_imagenet_alone():
    synsets = imagenet_classes()
    elsewhere = ["data.train=/a", "data.val=/b", "data.threads=3", "run.seed=7", "run.device=cpu"]
    a3 = load_config(recipes()["a3"], elsewhere)
    assert nearest_recipe(a3).differing == {}
    assert published_top1(nearest_recipe(a3), synsets) == 78.1
    assert published_top1(nearest_recipe(a3), [f"class {i}" for i in range(1000)]) is None
    assert published_top1(nearest_recipe(a3), None) is None
    for name, top1 in (("a1", 80.4), ("a2", 79.8), ("quickstart", None)):
        nearest = nearest_recipe(load_config(recipes()[name]))
        assert (nearest.recipe, published_top1(nearest, synsets)) == (name, top1)
    nearest = nearest_recipe(load_config(recipes()["a3"], [*elsewhere, "optimizer.lr=4e-3"]))
    assert (nearest.recipe, nearest.differing) == ("a3", {"optimizer.lr": (0.008, 0.004)})
    assert published_top1(nearest, synsets) is None


def test_the_worst_classes_are_those_with_the_most_wrong_answers(tmp_path, photographs):
    found = class_errors(new_run(tmp_path / "run", photographs), Processes(torch.device("cpu")))
    assert found.metrics.top1 == 62.5
    assert [(one.label, one.right) for one in found.worst] == [(0, 2), (1, 3)]
    assert found.confusion.tolist() == [[2, 2, 0], [1, 3, 0]]
    wrong = [(one.name, one.label, one.predicted) for one in found.examples]
    # In turns, the surest of a class first: the second blue one is redder than the first.
    assert wrong == [("blue/1.png", 0, 1), ("red/0.png", 1, 0), ("blue/0.png", 0, 1)]
    example = found.examples[1]
    assert np.array_equal(np.asarray(example.image), np.asarray(photograph((120, 60))))


@pytest.fixture
def two_runs(tmp_path, photographs, clock):
    runs = [
        new_run(tmp_path / "first", photographs),
        new_run(tmp_path / "second <b>", photographs, optimizer={"lr": 2e-3}),
    ]
    train(runs[0], clock)
    train(runs[1], clock, last=2, accuracy=70.0, updates_of_last=5)
    return runs


def test_a_page_of_two_runs(two_runs, tmp_path, monkeypatch):
    text = write_page(monkeypatch, tmp_path / "page.html", *two_runs)
    for part in (
        "second &lt;b&gt;: The run has not finished: it is at epoch 1.5 of 3",
        "<td>optimizer.lr</td><td>0.005</td><td>0.002</td>",
        "63.00 %",
        "71.00 %",
        "top-1 62.50 %",
        "No published figure for this run",
        "blue, taken for red",
        "45 s (",
        # Columns of numbers are aligned to the right, those of names to the left.
        '<th scope="col">run</th><th scope="col" class="number">in all</th>',
        '<th scope="col" class="number">the rest</th>',
        '<td>blue</td><td class="number">4</td><td class="number">50.0</td><td>red</td>'
        '<td class="number">2</td>',
    ):
        assert part in text, part
    losses = ("Training loss", "Validation cross-entropy of the trained weights")
    for curve in ("Validation top-1, %", *losses, "Learning rate"):
        assert text.count(f'"{curve} against ') == 3, curve  # epochs, images and time
    columns = re.findall('<th scope="col"( class="number")?>(run|best top-1|time)<', text)
    right = ' class="number"'  # in the table of results; the first of the other has runs too
    assert columns == [("", "run"), (right, "best top-1"), (right, "time"), ("", "run")]
    for width, dark in ((PHONE_PX, True), (DESKTOP_PX, False)):
        assert shown(tmp_path / "page.html", width, dark).width == width


@pytest.mark.parametrize(("updates", "are_whole"), [(5, False), (10, True), (30, True)])
def test_epochs_are_marked_whole_from_the_first_full_one_on(
    tmp_path, photographs, clock, updates, are_whole
):
    folder = new_run(tmp_path / "run", photographs)
    train(folder, clock, last=-(-updates // PER_EPOCH), updates_of_last=min(updates, PER_EPOCH))
    run = read_run(folder, "run")
    for drawing in curves([run], axes_of([run])[0]):
        marks = re.findall(r'id="xtick_\d+">.*?>([0-9.]+)</text>', drawing.source, re.DOTALL)
        assert len(marks) > 1
        assert all(mark.isdecimal() for mark in marks) == are_whole


def test_runs_in_any_state_have_a_page(tmp_path, photographs, clock, monkeypatch):
    names = ("begun", "first updates", "one epoch", "no table", "no lines")
    runs = {name: new_run(tmp_path / name, photographs) for name in names}
    train(runs["first updates"], clock, last=1, updates_of_last=5)
    train(runs["one epoch"], clock, last=1)
    train(runs["no table"], clock)
    (runs["no table"] / "metrics.csv").write_bytes(b"\0\xff")
    train(runs["no lines"], clock)
    (runs["no lines"] / "metrics.jsonl").unlink()
    text = write_page(monkeypatch, tmp_path / "page.html", *runs.values(), "--no-evaluation")
    for part in (
        "begun: The run has reported nothing yet.",
        "first updates: The run has not finished: it is at epoch 0.5 of 3, last heard of on 2026-",
        "one epoch: The run has not finished: it is at epoch 1 of 3",
        "no table: metrics.csv has 0 usable rows and metrics.jsonl 3 epochs",
    ):
        assert part in text
    assert text.count("63.00 %") == 4  # best and last of the two that lack a file
    assert "Worst classes" not in text


def test_one_run_that_has_not_begun_has_a_page(tmp_path, photographs, monkeypatch):
    folder = new_run(tmp_path / "run", photographs)
    text = write_page(monkeypatch, tmp_path / "page.html", folder, "--no-evaluation")
    assert "There are no curves yet" in text
    assert "not evaluated yet" in text
    assert "The keys in which this run learns otherwise than the nearest recipe, " in text
    assert "same in every key" not in text


def test_weights_that_cannot_be_evaluated_leave_the_rest(tmp_path, photographs, monkeypatch):
    images = tmp_path / "images"
    shutil.copytree(photographs, images)
    names = ("gone", "damaged", "no images")
    runs = {name: new_run(tmp_path / name, photographs) for name in names[:2]}
    runs["no images"] = new_run(tmp_path / "no images", images)
    (runs["gone"] / "best.pt").unlink()
    (runs["damaged"] / "best.pt").write_bytes((runs["damaged"] / "best.pt").read_bytes()[:500])
    shutil.rmtree(images)
    text = write_page(monkeypatch, tmp_path / "page.html", *runs.values())
    for name, reason in (
        ("gone", "no weights at "),
        ("damaged", f"{runs['damaged']}/best.pt cannot be read as a checkpoint"),
        ("no images", f"{images} "),
    ):
        section = text.partition(f"<h2>Worst classes of {name}</h2>")[2].partition("</section>")[0]
        assert f"The best weights could not be evaluated: {reason}" in section


def test_wrong_words_are_one_line(tmp_path, photographs, monkeypatch):
    output = tmp_path / "page.html"
    with pytest.raises(UserError, match=r"is no run folder, it holds no config\.yaml: give the"):
        write_page(monkeypatch, output, photographs)
    with pytest.raises(UserError, match=r"--output .* is in a folder that does not exist"):
        write_page(monkeypatch, tmp_path / "nowhere/page.html", tmp_path)
    with pytest.raises(UserError, match="unknown argument '--no-evaluatio', did you mean"):
        write_page(monkeypatch, output, tmp_path, "--no-evaluatio")
    assert not output.exists()


def test_without_matplotlib_there_is_a_line(tmp_path, photographs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="Matplotlib, which is not installed; run: pip install"):
        write_page(monkeypatch, tmp_path / "page.html", new_run(tmp_path / "run", photographs))


def test_names_and_times_for_people(tmp_path):
    folders = [tmp_path / name for name in ("a/seed-0", "b/seed-0", "b/seed-1")]
    assert [*names_of(folders)][2] == "seed-1"
    assert [name[-8:] for name in names_of(folders)][:2] == ["a/seed-0", "b/seed-0"]
    times = (59.6, 61, 1800, 3599, 7260, 200 * 3600)
    assert [*map(duration, times)] == [
        "1 min 0 s",
        "1 min 1 s",
        "30 min",
        "1 h 0 min",
        "2 h 1 min",
        "8.3 days",
    ]

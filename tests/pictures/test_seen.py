"""`dali-rsb seen`: the uses of an image beside the batches that were recorded."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import recorded_training as recorded
from recorded_training import FIRST

from dali_rsb import replay, seen
from dali_rsb.dataset.image_list import find_excluded
from dali_rsb.draws.order import BatchLayout
from dali_rsb.errors import UserError
from dali_rsb.pictures.loading import open_samples
from dali_rsb.pictures.past import open_past, past_of
from dali_rsb.pictures.uses import find_uses

REPORTED = 64  # the last update that was made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded.recorded_run(tmp_path_factory.getbasetemp() / "recorded")


def _by_specs(run, image, stands_in_for):
    """Uses of an image, in all specs: (update, position, rank, micro-batch) -> its recorded row.

    Args:
        stands_in_for: the bad images in whose place it is used.
    """
    found = {}
    for past in open_past(run.folder):
        samples = open_samples(past.config, past.session)
        for update in range(1, 65):
            own, position = past_of(open_past(run.folder), update)
            if own.session != past.session:
                continue
            for rank in range(samples.layout.world_size):
                of_rank = replace(samples, layout=replace(samples.layout, rank=rank))
                specs = itertools.islice(of_rank.specs(*position), samples.layout.accumulation)
                for number, spec in enumerate(specs):
                    for row in np.flatnonzero(np.isin(spec.indices, [image, *stands_in_for])):
                        drawn = None
                        if batches := run.kept.get((update, rank)):
                            drawn = tuple(column[row] for column in batches[number][1:])
                        key = (update, spec.positions[row], rank, number)
                        found[key] = int(spec.indices[row]), drawn
    return found


def test_uses_are_those_in_the_recorded_batches(run):
    pasts = open_past(run.folder)
    index = open_samples(pasts[0].config, pasts[0].session).index
    # Stands in for both bad images before it.
    rows = [find_excluded(index, [path]).rows[0] for path in run.bad[1:]]
    image = max(rows) + 1
    expected = _by_specs(run, image, rows)
    seen = find_uses(pasts, index.name(image), to_the_end=True)
    keys = ("update", "position", "rank", "micro_batch")
    found = {tuple(use[key] for key in keys): use for use in seen.uses}
    assert found.keys() == expected.keys()
    assert len(found) > 10
    assert {key[0] > FIRST for key in found} == {False, True}  # in both kinds of session
    stands_in_for = set()
    for key, use in found.items():
        asked, recorded_row = expected[key]
        if recorded_row is not None:
            label, partner_label, lam = recorded_row
            assert use["label"] == label
            mixing = use["mixing"] or {"lam": 1.0, "partner": {"label": partner_label}}
            assert (mixing["lam"], mixing["partner"]["label"]) == (lam, partner_label)
        assert (use["stands_in_for"] is None) == (asked == image)
        stands_in_for.add(use["stands_in_for"])
    assert stands_in_for == {None, *map(str, run.bad[1:])}
    so_far = find_uses(pasts, index.name(image)).uses
    assert so_far == [use for use in seen.uses if use["update"] <= REPORTED]


@pytest.mark.parametrize("copies", ["together", "spread"])
def test_places_are_the_inverse_of_positions(copies):
    layout = BatchLayout(96, 8, world_size=3, copies=copies)
    for rank in range(3):
        of_rank = BatchLayout(96, 8, 3, rank, copies)
        for update in range(2):
            for micro_batch in range(layout.accumulation):
                positions = np.asarray(of_rank.positions(update, micro_batch))
                updates, micro_batches, ranks = layout.places(positions)
                assert set(updates) == {update}
                assert set(micro_batches) == {micro_batch}
                assert set(ranks) == {rank}


def _command(monkeypatch, module, *arguments):
    monkeypatch.setattr("sys.argv", ["dali-rsb", *map(str, arguments)])
    module.main()


def test_the_command_lists_uses_and_leads_to_their_pictures(run, monkeypatch, tmp_path, capsys):
    uses_file = tmp_path / "uses.json"
    _command(monkeypatch, seen, run.folder, run.images / "class0/004.jpg", "--json", uses_file)
    lines = capsys.readouterr().out.splitlines()
    uses = json.loads(uses_file.read_text())
    assert len(lines) == len(uses) + 2
    assert [int(line.split()[0]) for line in lines[1:-1]] == [use["update"] for use in uses]
    command = lines[-1].partition("dali-rsb replay ")[2].split()
    _command(monkeypatch, replay, *command, "--output", tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out/replay.json").read_text())["samples"]
    assert {key: entry[key] for key in uses[0].keys() & entry.keys()} == {
        key: value for key, value in uses[0].items() if key in entry
    }


def test_a_bad_image_was_never_used(run, monkeypatch, capsys):
    _command(monkeypatch, seen, run.folder, run.bad[0])
    out = capsys.readouterr().out
    assert "017.png cannot be used; " in out
    assert "018.jpg stands in for it" in out
    assert "no update so far used" in out


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "seen takes a run folder and one image"),
        (["nowhere.jpg"], "nowhere.jpg is no image of"),
        (["class0/004.jpg", "--json", "/nowhere/uses.json"], "cannot be written (No such file"),
    ],
)
def test_mistakes_are_one_line(run, monkeypatch, arguments, answer):
    with pytest.raises(UserError) as caught:
        _command(monkeypatch, seen, run.folder, *arguments)
    assert answer in str(caught.value)
    assert len(str(caught.value)) <= 300

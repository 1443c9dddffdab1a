"""Runs that are asked to stop lose nothing, and stop together."""

import csv
import os
import random
import signal
import time
from functools import partial

import pytest
import timm
import torch
from killed_runs import assert_same, end, start, start_two
from stopped_runs import PLACES, signal_at

from dali_rsb.run.checkpoint import load_checkpoint

pytest_plugins = "undisturbed_run"


def _with_warm_up(recipe, folder):
    path = folder / "warm.yaml"
    path.write_text(recipe.read_text().replace("warm_up: false", "warm_up: true"))
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_stopped_in_any_phase_loses_nothing(recipe, undisturbed, tmp_path, place, number):
    if place == "warm-up":
        recipe = _with_warm_up(recipe, tmp_path)
    folder = tmp_path / "run"
    process = start(recipe, folder, partial(signal_at, place, number))
    assert end(process) == 128 + number
    output = (tmp_path / "run.0.out").read_text()
    assert "Traceback" not in output
    assert end(start(recipe, folder)) == 0
    if place != "warm-up":  # whose configuration differs
        assert_same(folder, undisturbed)


def test_a_signal_is_not_taken_for_a_damaged_checkpoint(recipe, undisturbed, tmp_path):
    folder = tmp_path / "run"
    for place in ("an update", "reading a checkpoint"):
        assert end(start(recipe, folder, partial(signal_at, place, signal.SIGTERM))) == 143
    assert "cannot be read" not in (tmp_path / "run.0.out").read_text()
    assert end(start(recipe, folder)) == 0
    assert_same(folder, undisturbed)


def _signal_in_a_destructor():
    from dali_rsb.training import assembly

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)  # Python ignores what is raised in here

    build_step = assembly.build_step

    def building(*arguments, **options):
        Dying()
        return build_step(*arguments, **options)

    assembly.build_step = building


def test_a_signal_in_a_destructor_is_not_lost(recipe, tmp_path):
    assert end(start(recipe, tmp_path / "run", _signal_in_a_destructor)) == 143
    assert "exception ignored" in (tmp_path / "run.0.out").read_text().lower()


TRACKED = ["tracking.trackers=tensorboard", "run.timeout=60"]


def _two(recipe, folder, prepare=None, first=False):
    # Only the second process gets the signal, and the first must hear of it; or the other way.
    prepares = (prepare, None) if first else (None, prepare)
    return [end(process) for process in start_two(recipe, folder, prepares, TRACKED)]


@pytest.fixture(scope="module")
def undisturbed_pair(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pair"
    assert _two(recipe, folder) == [0, 0]
    assert len([*folder.glob("tensorboard/*")]) == 1  # the first process's
    return folder


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("indexing", signal.SIGTERM),
        ("warm-up", signal.SIGTERM),
        ("an update", signal.SIGTERM),
        ("the last update of an epoch", signal.SIGTERM),
        ("evaluation", signal.SIGTERM),
        ("evaluation", signal.SIGUSR1),
        *(
            pytest.param(place, number, marks=pytest.mark.slow)
            for place in PLACES
            for number in (signal.SIGTERM, signal.SIGUSR1)
        ),
    ],
)
def test_two_processes_stop_though_one_is_asked(recipe, undisturbed_pair, tmp_path, place, number):
    if place == "warm-up":
        recipe = _with_warm_up(recipe, tmp_path)
    folder = tmp_path / "run"
    start_s = time.monotonic()
    # The first process alone writes checkpoints.
    first = place == "a checkpoint"
    codes = _two(recipe, folder, partial(signal_at, place, number), first)
    assert codes[0 if first else 1] == 128 + number
    # The other one hears that it shall stop, and not by which signal.
    assert codes[1 if first else 0] in (128 + number, 128 + signal.SIGTERM)
    assert time.monotonic() - start_s < 60
    assert _two(recipe, folder) == [0, 0]
    if place != "warm-up":
        assert_same(folder, undisturbed_pair)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_at_random_moments(recipe, undisturbed, undisturbed_pair, tmp_path, number):
    """One and two processes, asked to stop at any moment, again and again, until they end."""
    generator, num_stops = random.Random(int(number)), 0
    for series in range(8):
        two, folder = bool(series % 2), tmp_path / f"run-{series}"
        for _ in range(6):
            both = start_two(recipe, folder, overrides=TRACKED) if two else [start(recipe, folder)]
            asked = generator.choice(both)
            asked.join(generator.uniform(0.2, 6))
            if asked.exitcode is None:
                os.kill(asked.pid, number)
            codes = [end(process) for process in both]
            # -: before it listened; the other one may not know by which signal, or have waited in
            # vain for the first word of the one that was asked.
            allowed = {0, 128 + number, 128 + signal.SIGTERM, -number}
            assert set(codes) <= allowed | ({2} if set(codes) - {0, 2} else set()), codes
            num_stops += codes[0] != 0
            if codes[0] == 0:
                break
        both = start_two(recipe, folder, overrides=TRACKED) if two else [start(recipe, folder)]
        assert [end(process) for process in both] == [0] * len(both)
        assert_same(folder, undisturbed_pair if two else undisturbed)
    print(f"{num_stops} stops")


def test_a_run_goes_on_with_another_number_of_processes(recipe, undisturbed_pair, tmp_path):
    """2, then 1, then 2 processes: the same images a device batch, so the same weights."""
    folder = tmp_path / "run"
    assert _two(recipe, folder, partial(signal_at, "an update", signal.SIGTERM)) == [143, 143]
    stop = partial(signal_at, "the last update of an epoch", signal.SIGTERM)
    one = start(recipe, folder, stop, overrides=["run.batch_per_device=8"])
    assert end(one) == 143
    assert _two(recipe, folder) == [0, 0]
    got, expected = (load_checkpoint(path / "last.pt") for path in (folder, undisturbed_pair))
    assert got["updates_done"] == expected["updates_done"]
    model = timm.create_model("test_resnet", num_classes=2)
    for part in ("model", "ema"):
        for name, _ in model.named_parameters():
            assert torch.equal(got[part][name], expected[part][name]), (part, name)
        for name, statistic in model.named_buffers():
            if statistic.is_floating_point():  # merged, and collected from all images of one
                torch.testing.assert_close(
                    got[part][name], expected[part][name], rtol=0.2, atol=0.1
                )
    assert _losses(folder) == pytest.approx(_losses(undisturbed_pair), rel=1e-5)


def _losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]

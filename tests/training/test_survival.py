"""Runs that are killed and resumed write what the undisturbed run writes."""

import random
import signal
from functools import partial

import pytest
from killed_runs import assert_same, end, kill_at_event, kill_in_write, start
from stopped_runs import signal_at

from dali_rsb.run.checkpoint import DamagedCheckpointError, load_checkpoint

pytest_plugins = "undisturbed_run"


def _killed_runs(recipe, undisturbed, tmp_path, kills, seed):
    """Kill runs at `kills` moments in all, let each go on to its end, and compare."""
    generator = random.Random(seed)
    done, series = 0, 0
    while done < kills:
        folder, in_series = tmp_path / f"killed-{seed}-{series}", 0
        series += 1
        while in_series < 8 and done < kills:
            kind = generator.choice(["event", "event", "write", "time"])
            if kind == "event":
                prepare = partial(kill_at_event, generator.randint(3, 60), folder)
            elif kind == "write":
                prepare = partial(kill_in_write, generator.randint(1, 900))
            else:
                prepare = None
            process = start(recipe, folder, prepare)
            if kind == "time":
                process.join(generator.uniform(0.3, 3))
                process.kill()
            if end(process) == 0:
                break
            assert process.exitcode == -signal.SIGKILL, folder
            in_series, done = in_series + 1, done + 1
        assert end(start(recipe, folder)) == 0
        assert_same(folder, undisturbed)
    return series


def test_killed_runs_write_what_the_undisturbed_one_writes(recipe, undisturbed, tmp_path):
    _killed_runs(recipe, undisturbed, tmp_path, kills=40, seed=0)


@pytest.mark.slow
def test_three_hundred_kills(recipe, undisturbed, tmp_path):
    _killed_runs(recipe, undisturbed, tmp_path, kills=300, seed=1)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(recipe, undisturbed, tmp_path):
    """A bit is flipped in each of 200 places of last.pt, and one of them meets a run."""
    folder, generator = tmp_path / "run", random.Random(0)
    stop = partial(signal_at, "the last update of an epoch", signal.SIGTERM)
    assert end(start(recipe, folder, stop)) == 143
    path = folder / "last.pt"
    good = path.read_bytes()
    for place in generator.sample(range(len(good)), 200):
        bad = bytearray(good)
        bad[place] ^= 1 << generator.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(DamagedCheckpointError):
            load_checkpoint(path)
    assert end(start(recipe, folder)) == 0
    assert "last.pt is damaged" in (tmp_path / "run.0.out").read_text()
    assert_same(folder, undisturbed)

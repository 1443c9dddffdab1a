"""A loader that ends its process is a line in tuning's table, and the search goes on."""

import os
import signal
import time
from functools import partial

import pytest
import torch

from dali_rsb import tune as command
from dali_rsb.errors import UserError
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.tuning.apart import MeasureApart
from dali_rsb.tuning.search import LoaderDiedError, LoaderRate, Search, Space

RATES = {"host": 1000.0, "hybrid": 1500.0, "roi": 1400.0}
DEFAULT = LoaderSettings(threads=4)


def _loader(faults):
    """A stand-in for a measurement, some of whose ways to decode end badly."""

    def measure(settings):
        fault = faults.get(settings.decode)
        if fault == "segmentation fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(60)
        if fault == "error":
            raise RuntimeError("nvJPEG says\nno")
        if fault == "mistake":
            raise UserError("data.train is empty")
        if fault == "exit":
            os._exit(3)
        return LoaderRate(RATES.get(settings.decode, 1.0), 1.0)

    return measure


@pytest.fixture
def apart():
    made = []

    def make(timeout_s=60.0, **faults):
        made.append(MeasureApart(partial(_loader, faults), timeout_s, "forkserver"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_decoder_that_crashes_is_a_line_in_the_table(apart):
    measure = apart(full="segmentation fault")
    space = Space(decoding=[(mode, 0.65) for mode in ("host", "hybrid", "full", "roi")])
    clock = iter(range(10**6))
    result = Search(measure, lambda: next(clock), 10**5).run(DEFAULT, space)
    assert result.best.decode == "hybrid"
    assert [(one.decode, reason) for one, reason in result.deaths.items()] == [
        ("full", "its process ended by SIGSEGV")
    ]
    table = command.table(result, DEFAULT, ["decode"])
    assert table.splitlines()[-1].split(maxsplit=1) == ["full", "its process ended by SIGSEGV"]
    # Each way has a process of its own, which stays.
    assert measure(DEFAULT).img_per_s == 1000


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("exit", "its process ended with exit code 3"),
        ("error", "RuntimeError: nvJPEG says no"),
        ("hang", "no answer within 2 s"),
    ],
)
def test_other_ends_have_their_reason_and_are_not_tried_twice(apart, fault, reason):
    measure = apart(2.0 if fault == "hang" else 60.0, host=fault)
    for _ in range(2):
        with pytest.raises(LoaderDiedError, match=f"^{reason}$"):
            measure(DEFAULT)


def test_a_users_mistake_stays_one(apart):
    with pytest.raises(UserError, match="is empty"):
        apart(host="mistake")(DEFAULT)


def test_settings_to_compare_with_must_live():
    def measure(settings):
        raise LoaderDiedError("its process ended by SIGSEGV")

    space = Space(decoding=[("host", 0.65), ("full", 0.65)])
    with pytest.raises(LoaderDiedError):
        Search(measure, lambda: 0.0, 100).run(DEFAULT, space)


def test_a_gpu_is_measured_apart(monkeypatch, digits, tmp_path):
    """With a stand-in for the search: the measurement it gets is the one in other processes."""
    from test_tune import _config

    seen = []

    class SearchError(Exception):
        pass

    def search(meter, *arguments):
        seen.append(meter)
        raise SearchError

    monkeypatch.setattr(command, "Search", search)
    monkeypatch.setattr(command, "count_jpeg_engines", lambda: 0)
    gpu = command.Processes(torch.device("cuda"), world_size=1, local_world_size=1)
    with pytest.raises(SearchError):
        command.tune(_config(digits), gpu, 5.0)
    assert isinstance(seen[0], MeasureApart)

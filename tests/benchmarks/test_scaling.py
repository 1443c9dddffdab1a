"""The model of the loader on more cores: what is known of simple cases."""

import dataclasses

import pytest

from benchmarks.loader_model import Costs, modelled_rate

COSTS = Costs(
    feeding=0.0,
    executor=0.0,
    decoding=1000.0,
    handing_over=0.0,
    resize_locked=0.0,
    contention=0.0,
    resizing=0.0,
    augmenting=0.0,
)


def _rate(cores, processes=1, pipelines=2, batch=16, **changes):
    costs = dataclasses.replace(COSTS, **changes)
    return modelled_rate(costs, cores, processes, pipelines, batch)


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_work_for_all_threads_keeps_all_cores(cores):
    assert _rate(cores) == pytest.approx(1000 * cores, rel=0.01)


def test_costs_of_one_core_add_up():
    costs = Costs(10, 20, 300, 5, 30, 0, 100, 35)
    assert costs.total == 500
    assert modelled_rate(costs, 1, batch=16) == pytest.approx(2000, rel=0.01)


def test_the_lock_is_the_limit_of_a_process_but_not_of_two():
    locked = {"decoding": 100.0, "resize_locked": 400.0}
    assert _rate(16, pipelines=4, **locked) == pytest.approx(1e6 / 400, rel=0.05)
    assert _rate(16, processes=2, pipelines=4, **locked) == pytest.approx(2e6 / 400, rel=0.1)


def test_the_feeding_thread_is_a_limit():
    fed = {"feeding": 250.0, "decoding": 100.0}
    assert _rate(8, **fed) == pytest.approx(1e6 / 250, rel=0.05)


def test_contention_costs_only_who_meets_it():
    contended = {"decoding": 100.0, "resize_locked": 100.0, "contention": 300.0}
    assert _rate(1, **contended) == pytest.approx(1e6 / 200, rel=0.01)
    assert _rate(8, pipelines=1, **contended) == pytest.approx(1e6 / 400, rel=0.2)


def test_an_executor_of_one_thread_asks_for_more_pipelines():
    serial = {"decoding": 700.0, "executor": 100.0}
    # Of 16 cores two pipelines take 700 / 8 + 100 microseconds an image each, four 700 / 4 + 100.
    assert _rate(16, pipelines=2, **serial) == pytest.approx(2e6 / 187.5, rel=0.05)
    assert _rate(16, pipelines=4, **serial) == pytest.approx(4e6 / 275, rel=0.05)


def test_threads_wait_for_the_slowest_image():
    even = _rate(8, pipelines=1)
    uneven = _rate(8, pipelines=1, spread=(0.25,) * 15 + (12.25,))
    assert even == pytest.approx(8000, rel=0.01)
    assert uneven < 0.4 * even  # 16 images take as long as the one of 12.25 ms

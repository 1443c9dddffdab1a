"""What all processes decide alike: whose wishes count, and how often they are compared."""

from types import SimpleNamespace

import pytest
import torch

from dali_rsb.run import agreement
from dali_rsb.run.agreement import Agreement


class Pair:
    """Two processes with the same clock, of which the other one wishes what it is told to."""

    def __init__(self, clock):
        self.world_size, self.device = 2, torch.device("cpu")
        self.others, self.comparisons = (False, False), 0
        self._clock, self._start_s = clock, clock.now_s

    def sum(self, values):
        self.comparisons += 1
        elapsed_s, self._start_s = self._clock.now_s - self._start_s, self._clock.now_s
        return values + torch.tensor([*self.others, elapsed_s], dtype=torch.float64)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now_s=100.0)
    clock.perf_counter = lambda: clock.now_s
    monkeypatch.setattr(agreement, "time", clock)
    return clock


def test_alone_a_process_has_its_wishes_at_once():
    alone = Agreement(SimpleNamespace(world_size=1))
    assert alone.any_of(True, False) == (True, False)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_a_wish_of_any_process_is_that_of_all(clock, own, other):
    pair = Pair(clock)
    pair.others = (other, False)
    assert Agreement(pair).any_of(own, False) == (own or other, False)


@pytest.mark.parametrize("update_s", [0.01, 0.1])
def test_processes_compare_about_once_a_second(clock, update_s):
    pair = Pair(clock)
    together = Agreement(pair)
    for _ in range(round(60 / update_s)):
        clock.now_s += update_s
        together.any_of(False, False)
    assert pair.comparisons == pytest.approx(60, rel=0.2)


def test_between_comparisons_a_wish_waits_but_where_all_ask_now(clock):
    pair = Pair(clock)
    together = Agreement(pair)
    clock.now_s += 0.1
    together.any_of(False, False)
    clock.now_s += 0.1
    assert together.any_of(True, False) == (False, False)
    assert together.any_of(True, False, now=True) == (True, False)
    assert pair.comparisons == 2
    # The next period is a single call again: what follows takes another time.
    clock.now_s += 0.1
    assert together.any_of(False, True) == (False, True)

"""Signals that ask a run to stop: the first is noted, the second obeyed, others left alone."""

import signal

import pytest

from dali_rsb.run.signals import SIGNALS, Stopped, stop_requests


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_interrupts(number):
    with stop_requests() as request:
        assert request.signal is None
        signal.raise_signal(number)
        assert request.signal == number
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_with_nothing_to_save_the_first_signal_interrupts(number):
    with pytest.raises(Stopped), stop_requests(at_once=True):
        signal.raise_signal(number)


def _read():
    try:
        signal.raise_signal(signal.SIGTERM)
    except Exception:
        return "damaged"


def test_what_a_signal_raises_is_not_taken_for_damage():
    with stop_requests(at_once=True) as request:
        with pytest.raises(Stopped):
            _read()
        assert request.signal == signal.SIGTERM


def test_handlers_are_given_back_at_the_end_and_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_requests(at_once=True):
        outer = [signal.getsignal(number) for number in SIGNALS]
        with pytest.raises(KeyError), stop_requests():
            raise KeyError
        assert [signal.getsignal(number) for number in SIGNALS] == outer
    assert [signal.getsignal(number) for number in SIGNALS] == before

"""Signals: training is asked to stop and saves itself; everything else stops at once."""

from __future__ import annotations

import signal

import pytest

from harness.signals import Stopper


@pytest.fixture(autouse=True)
def connected():
    """Not under `nohup`, whatever these tests run under."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_training_the_first_signal_asks_and_the_second_stops(number: int) -> None:
    with Stopper().installed() as stopper, stopper.graceful():
        assert not stopper.asked
        signal.raise_signal(number)
        assert stopper.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_what_nohup_has_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stopper().installed() as stopper, stopper.graceful():
        signal.raise_signal(signal.SIGHUP)
        assert not stopper.asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_outside_training_a_signal_stops_at_once(number: int) -> None:
    with Stopper().installed() as stopper:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert stopper.asked, "also where something between here and the loop swallowed it"
        with stopper.graceful():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), Stopper().installed():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        raise RuntimeError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before

"""Stop requests."""

from __future__ import annotations

import os
import signal

import pytest

from medseg.runtime.stop_signals import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_acts_at_once(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert (stop.received, seen) == (number, [])
            os.kill(os.getpid(), number)
            assert seen == [number]
    finally:
        signal.signal(number, before)


def test_forwarded_signal_ends_none_of_several_processes():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest(record_all=True) as stop:
        for number in SIGNALS * 2:
            os.kill(os.getpid(), number)
            assert stop.received == number
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_handler_that_python_did_not_install_is_left_alone(monkeypatch):
    """Programs around Python, such as viewers, have such handlers, which Python could not restore."""
    own, installed = signal.getsignal, []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == SIGNALS[0] else own(number))
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append(number))
    with StopRequest():
        assert installed == list(SIGNALS[1:])
    assert SIGNALS[0] not in installed

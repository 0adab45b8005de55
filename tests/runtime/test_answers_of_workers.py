"""What a worker process does, called in this one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import DataError, MedsegError, format_warning
from medseg.runtime import process_map, worker_process


class NamesTwo(Exception):
    """An error that cannot be unpickled, because its constructor takes more than its message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class RefusesTwo(MedsegError):
    """As `NamesTwo`, for users."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def function_that_cannot_be_sent(_: int) -> Callable[[], int]:
    return lambda: 1


def names_two(_: int) -> None:
    raise NamesTwo("a", "b")


def refuses_two(_: int) -> None:
    raise RefusesTwo("a", "b")


def refuses(_: int) -> None:
    raise DataError("ct.nii: found a fault.")


def answer(function: Callable[[int], object]) -> Any:
    return pickle.loads(worker_process._answer(pickle.dumps((function, 1))))


def test_errors_and_results_that_cannot_be_sent_are_answered_with_an_error() -> None:
    result, error, _ = answer(function_that_cannot_be_sent)
    assert result is None
    assert "pickle" in str(error).lower()
    for function, kind, name in (
        (names_two, RuntimeError, "NamesTwo"),
        (refuses_two, MedsegError, "RefusesTwo"),
    ):
        _, error, _ = answer(function)
        assert type(error) is kind
        assert str(error) == f"{name}: a and b"
    _, error, _ = answer(refuses)
    assert type(error) is DataError
    assert not getattr(error, "__notes__", [])  # users read its message only


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(worker_process.os, "_exit", codes.append)
    return codes


def test_a_thread_ends_a_process_after_its_parent(monkeypatch: pytest.MonkeyPatch, ended: list[int]) -> None:
    monkeypatch.setattr(worker_process, "sys", type("sys", (), {"platform": "darwin"}))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    parent = subprocess.Popen(["sleep", "60"])
    worker_process.start_worker(True, parent.pid)
    assert worker_process.warns_in_one_line()
    assert warnings.formatwarning is format_warning
    assert ended == []
    threads = [one for one in threading.enumerate() if one.daemon and "_exit_after" in one.name]
    parent.kill()
    parent.wait()
    for one in threads:
        one.join(60)
    assert len(threads) == 1
    assert ended == [1]


@pytest.mark.parametrize("lost", [False, True])
def test_linux_ends_a_process_with_its_parent(
    monkeypatch: pytest.MonkeyPatch, ended: list[int], lost: bool
) -> None:
    asked: list[tuple[int, ...]] = []
    library = type("Library", (), {"prctl": lambda self, *numbers: asked.append(numbers)})
    monkeypatch.setattr(worker_process.ctypes, "CDLL", lambda *_, **__: library())
    monkeypatch.setattr(worker_process, "sys", type("sys", (), {"platform": "linux"}))
    worker_process._end_with(1 << 30 if lost else os.getppid(), lambda: None)
    assert asked == [(1, signal.SIGKILL, 0, 0, 0)]
    assert ended == ([1] if lost else [])


def note(connection: Connection[Any, Any]) -> None:
    connection.send("called")


def test_a_worker_calls_what_it_receives_and_nothing_after_the_end_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "start_worker", lambda one_line: None)
    here, there = multiprocessing.Pipe()
    here.send(note)
    worker_process.call_received(there, False)
    assert here.recv() == "called"
    here.close()
    worker_process.call_received(there, False)
    there.close()


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(process_map, "_PATIENCE", 0.1)
    monkeypatch.setattr(process_map, "get_executable", lambda: str(program))
    worker = process_map._Worker(1)
    assert worker._private() > 0
    assert worker.stop() == "with signal 9"
    assert worker._private() == 0
    worker._process.stdout.close()  # type: ignore[union-attr]

"""Whether a process runs, where the system has no /proc."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from medseg.cluster import process_identity


@pytest.mark.parametrize("proc", [True, False])
def test_a_process_runs_until_it_has_ended(monkeypatch: pytest.MonkeyPatch, proc: bool) -> None:
    def missing(*_: object, **__: object) -> NoReturn:
        raise FileNotFoundError

    if not proc:
        monkeypatch.setattr(Path, "read_text", missing)
    started = process_identity._start_of(os.getpid())
    assert started is not None
    assert process_identity._start_of(os.getpid()) == started
    child = subprocess.Popen(["sleep", "60"])
    assert process_identity._start_of(child.pid) not in (None, "0.00")
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_identity._start_of(child.pid) is None  # ended, and not waited for
    child.wait()
    assert process_identity._start_of(child.pid) is None

"""Measured functions in processes of their own: a script starts itself again with ``--worker NAME SETTINGS``."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

Figures = dict[str, Any]


def run_worker(script: str | Path, worker: str, **settings: Any) -> Figures:
    """Run a worker in its own process.

    Args:
        script: Script that answers ``--worker NAME SETTINGS`` with `answer`.
        worker: Name of the function.
        **settings: Arguments of the function; plain values and paths.

    Returns:
        Its results with the seconds of the process, or the reason (``failed``) why there are none.
    """
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), "--worker", worker, json.dumps(plain)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        reason = "out of memory" if done.returncode in (-9, 137) else last
        return {"failed": reason, "process_seconds": time.perf_counter() - began}
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return {**figures, "process_seconds": time.perf_counter() - began}


def answer(workers: ModuleType, name: str, settings: Figures) -> None:
    """Run a worker in this process, and print its results, CPU seconds and peak memory as the last line.

    Args:
        workers: Module of the function.
        name: Name of the function.
        settings: Arguments of the function.
    """
    figures = getattr(workers, name)(**settings)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps({**figures, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak_bytes()}),
        flush=True,
    )


def peak_bytes() -> int:
    """Return the peak resident memory of this process and of its largest finished child."""
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        * 1024
    )

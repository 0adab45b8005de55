"""What every process that another one started does first: end with its parent, and print warnings as its parent does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial

import psutil

from medseg.errors import format_warning
from medseg.runtime.launch import was_started_by_torchrun

_PR_SET_PDEATHSIG = 1


def warns_in_one_line() -> bool:
    """Return whether this process prints warnings in one line, to be given to `start_worker` in its workers."""
    return warnings.formatwarning is format_warning


def start_worker(one_line: bool) -> None:
    """Prepare a worker process; call it there before anything else.

    The worker leaves Ctrl-C, which reaches all processes of a terminal, to its parent. It is killed as soon as its parent
    has ended, also if that was killed and could not stop its workers.

    Args:
        one_line: Whether warnings are printed in one line, as the command line does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if one_line:
        warnings.formatwarning = format_warning
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _end_with(parent.pid, parent.join)


def end_with_torchrun() -> None:
    """Let the end of torchrun end this process at once if torchrun started it.

    Otherwise the ranks of a torchrun that was killed would go on training.
    """
    if was_started_by_torchrun():
        parent = os.getppid()
        _end_with(parent, partial(_poll, parent))


def _end_with(parent: int, wait: Callable[[], object]) -> None:
    """Let the end of the parent process end this one at once.

    On Linux the system does it, at the end of the thread that started this process, which therefore has to wait for it. On
    other systems a thread waits for the end of the parent.

    Args:
        parent: ID of the parent process.
        wait: Returns when it has ended.
    """
    if sys.platform != "linux":
        threading.Thread(target=_exit_after, args=(wait,), daemon=True).start()
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the system was asked
        os._exit(1)


def _exit_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


def _poll(pid: int) -> None:
    while psutil.pid_exists(pid):
        time.sleep(1)

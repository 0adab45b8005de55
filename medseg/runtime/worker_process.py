"""What every worker process does first: end with its parent, and print warnings as its parent does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings

from medseg.errors import format_warning

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
    _end_with_parent()


def _end_with_parent() -> None:
    """Let the end of the parent process end this one at once.

    On Linux the system does it, at the end of the thread that started this process, which therefore has to wait for it. On
    other systems a thread waits for the end of the parent.
    """
    parent = multiprocessing.parent_process()
    if parent is None:  # no process of multiprocessing
        return
    if sys.platform != "linux":
        threading.Thread(target=_wait_for_end, daemon=True).start()
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it ended before the system was asked
        os._exit(1)


def _wait_for_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

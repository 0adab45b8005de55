"""What every process that another one started does first: end with its parent, and print warnings as its parent does.

A worker of `medseg.runtime.process_map` is a new interpreter that runs `serve`. It imports nothing of the calling program, so
that a script needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import IO, Any

import psutil

from medseg.errors import MedsegError, collected_warnings, format_warning
from medseg.runtime.launch import was_started_by_torchrun

_PR_SET_PDEATHSIG = 1
_LENGTH = 8  # bytes of the length in front of a message
TERMINATED = 143


def warns_in_one_line() -> bool:
    """Return whether this process prints warnings in one line, to be given to `start_worker` in its workers."""
    return warnings.formatwarning is format_warning


def start_worker(one_line: bool, parent: int | None = None) -> None:
    """Prepare a worker process; call it there before anything else.

    The worker leaves Ctrl-C, which reaches all processes of a terminal, to its parent. It is killed as soon as its parent
    has ended, also if that was killed and could not stop its workers.

    Args:
        one_line: Whether warnings are printed in one line, as the command line does.
        parent: Process ID of the parent; None for a process of `multiprocessing`, which knows it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if one_line:
        warnings.formatwarning = format_warning
    if parent is not None:
        _end_with(parent, partial(_poll, parent))
        return
    known = multiprocessing.parent_process()
    if known is not None and known.pid is not None:
        _end_with(known.pid, known.join)


def call_received(connection: Connection[Any, Any], one_line: bool) -> None:
    """Prepare a worker process, receive a function from the parent, and call it with the connection.

    Receiving it imports its modules, which takes seconds; a parent that is killed meanwhile ends the process already. That is
    why the function is not the target of the process itself.

    Args:
        connection: Connection to the parent.
        one_line: As for `start_worker`.
    """
    start_worker(one_line)
    try:
        function = connection.recv()
    except EOFError:  # the parent has ended
        return
    function(connection)


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


def write_message(stream: IO[bytes], content: bytes) -> None:
    """Write one message to a pipe, its length first.

    Args:
        stream: The pipe.
        content: The message.

    Raises:
        OSError: The other end is closed.
    """
    stream.write(len(content).to_bytes(_LENGTH, "little"))
    stream.write(content)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes | None:
    """Read the next message from a pipe.

    Args:
        stream: The pipe, buffered, so that a read returns less than requested only at its end.

    Returns:
        The message; None if the other end has been closed.
    """
    head = stream.read(_LENGTH)
    size = int.from_bytes(head, "little")
    content = stream.read(size) if len(head) == _LENGTH else b""
    return content if len(head) == _LENGTH and len(content) == size else None


def serve(parent: int) -> None:
    """Answer the requests that come through standard input, until its other end is closed.

    A request is a pickled pair of a function and its argument. The answer, on standard output, is a pickled triple: the
    result, the error, of which one is None, and the messages of `warn_once`, which the parent repeats. What other code
    prints goes to standard error, so that it does not mix with the answers.

    Args:
        parent: Process ID of the parent.
    """
    start_worker(False, parent)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that unfinished files are removed
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        write_message(answers, b"")  # ready
        while (request := read_message(requests)) is not None:
            write_message(answers, _answer(request))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python reports what is raised while it ends


def _answer(request: bytes) -> bytes:
    result, failure = None, None
    with collected_warnings() as messages:
        try:
            function, item = pickle.loads(request)
            result = function(item)
        except Exception as error:
            failure = _sendable(error)
    try:
        return pickle.dumps((result, failure, messages))
    except Exception as error:
        return pickle.dumps((None, _sendable(error), messages))


def _sendable(error: Exception) -> Exception:
    """Return an error that the parent can unpickle, with the traceback as a note unless users are to read its message."""
    if not isinstance(error, MedsegError):
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind: Any = MedsegError if isinstance(error, MedsegError) else RuntimeError
        return kind(f"{type(error).__name__}: {error}")  # type: ignore[no-any-return]
    return error

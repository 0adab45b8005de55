"""A server that has imported everything and forks one limited child per damaged file."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.errors import MedsegError

SECONDS = 10
MEMORY = 1 << 30
Verdict = Literal["read", "refused", "traceback", "slow", "memory", "died"]


@dataclass(frozen=True)
class Answer:
    """What reading a file led to.

    Attributes:
        verdict: ``read`` and ``refused`` are right answers to a damaged file, the others are not.
        text: Hash of the content, message, or traceback.
    """

    verdict: Verdict
    text: str


def answer(read: Callable[[], bytes]) -> Answer:
    """Read a file in a child process with limits of time and memory.

    Args:
        read: Reads the file and returns all that matters of its content as bytes.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _serve(read, sending)
    os.close(sending)
    return _await(child, receiving)


def _serve(read: Callable[[], bytes], sending: int) -> None:
    """Read, send the answer and end the child process."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = f"read {hashlib.sha256(read()).hexdigest()}"
    except MedsegError as error:
        text = f"refused {error}"
    except MemoryError as error:
        text = f"memory {error}"
    except BaseException:
        text = f"traceback {traceback.format_exc()}"
    os.write(sending, text.encode(errors="backslashreplace")[:60_000])
    os._exit(0)


def _await(child: int, receiving: int) -> Answer:
    """Return the child's answer, or what ended it."""
    content, end = b"", time.monotonic() + SECONDS
    try:
        while (left := end - time.monotonic()) > 0:
            if select.select([receiving], [], [], left)[0]:
                part = os.read(receiving, 1 << 16)
                if not part:
                    break
                content += part
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Answer("slow", f"more than {SECONDS} s")
    finally:
        os.close(receiving)
    status = os.waitpid(child, 0)[1]
    if not content:
        return Answer("died", f"exit status {os.waitstatus_to_exitcode(status)}")
    verdict, _, text = content.decode().partition(" ")
    return Answer(verdict, text)  # type: ignore[arg-type]

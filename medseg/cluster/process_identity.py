"""The identity of a process, by which other processes of the same machine recognise whether it still runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of some machine.

    Attributes:
        host: Name of the machine, for people.
        machine: Hash of the machine's name, its start and, on Linux, the PID namespace, because containers number
            processes anew.
        pid: Number of the process.
        started: When the process started, in the units of the system; a later process with the same number differs in it.
    """

    host: str
    machine: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> ProcessIdentity:
        """Return the identity of this process."""
        return cls(platform.node(), this_machine(), os.getpid(), _start_of(os.getpid()) or "")

    @property
    def is_here(self) -> bool:
        """Whether the process belongs to this machine, so that `is_running` knows about it."""
        return self.machine == this_machine()

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine still runs."""
        return _start_of(self.pid) == self.started


@functools.cache
def this_machine() -> str:
    """Return a hash of this machine, which changes when it is started again."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def _start_of(pid: int) -> str | None:
    """Return when a process started; None if it does not run, or has ended and was not waited for.

    On Linux, the number of clock ticks since the start of the machine is used, because it does not change if the clock of
    the machine is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None

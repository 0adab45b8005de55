"""One writer per run folder: a lock file that tells who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from medseg.errors import ConfigError
from medseg.storage.atomic import write_error, write_text

NAME = "lock"


class RunLock:
    """Context in which this process alone writes to a run folder.

    The file ``RUN/lock`` holds host and process id. A lock is stale, and taken over, if its process is dead on
    this host; so is one of this very process, which an abandoned loop in a notebook or a container's earlier
    life (process 1 again) left behind.

    Args:
        run: run folder, which must exist.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / NAME
        self._content = json.dumps({"host": platform.node(), "pid": os.getpid(), "id": uuid.uuid4().hex})

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            ConfigError: a living process holds it, or one on another host, of which nothing is known.
        """
        while not (self._create() or self._take_over()):
            pass  # somebody gave it back, or took it over, at that very moment
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            # Not if a later loop of this process has taken it over.
            if self.path.read_text(encoding="utf-8") == self._content:
                self.path.unlink()

    def _create(self) -> bool:
        """Write the file, unless there is one; True if it was written."""
        try:
            file = self.path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        except OSError as error:
            raise write_error(self.path, error) from None
        try:
            with file:
                file.write(self._content)
        except OSError as error:
            self.path.unlink(missing_ok=True)  # cut off, it would be taken for that of an unknown training
            raise write_error(self.path, error) from None
        return True

    def _take_over(self) -> bool:
        """Take a stale lock's place, where several may try at once; False if it is not there any more."""
        try:
            file = self.path.open("r+b" if os.access(self.path, os.W_OK) else "rb")
        except OSError:
            self.check()  # refuses one that cannot be read
            return False
        with file:
            _wait_for(file)
            self.check()
            if not self._is(file):
                return False
            write_text(self.path, self._content)
        return True

    def _is(self, file: BinaryIO) -> bool:
        """Whether an open file is still the lock."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        return False

    def check(self) -> None:
        """Refuse as taking the lock would, without taking it."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            host, pid = str(holder["host"]), int(holder["pid"])
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, KeyError, TypeError):
            host, pid = "an unknown host", 0
        if host == platform.node() and (pid == os.getpid() or not _is_alive(pid)):
            return
        raise ConfigError(
            f"{self.path}: found a training at work (process {pid} on {host}), expected none in this run folder. "
            "Wait for it or stop it; if it runs no more, delete this file."
        )


def _wait_for(file: BinaryIO) -> None:
    """Wait until no other process of this host has the open file to itself, and have it until it is closed."""
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, but belongs to someone else
        return True
    return True

"""One writer per folder of a run or a service: a lock file that names the process that holds it."""

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

import psutil

from medseg.errors import ConfigError
from medseg.storage.atomic import write_error, write_text
from medseg.storage.json_files import parse_json
from medseg.storage.temporary_names import temporary_file

NAME = "lock"


class RunLock:
    """Context manager in which only this process writes to a folder.

    The file ``RUN/lock`` holds host and process ID. A lock is stale and is taken over if its process no longer runs on
    this host. A lock with the ID of this process is stale, too: an abandoned loop in a notebook, or an earlier start of
    a container (whose process has ID 1 each time), left it.

    Args:
        run: Run folder, which must exist.
        activity: What writes to the folder, for the message.
    """

    def __init__(self, run: Path, activity: str = "training") -> None:
        self.path = run / NAME
        self._activity = activity
        self._content = json.dumps({"host": platform.node(), "pid": os.getpid(), "id": uuid.uuid4().hex})

    def __enter__(self) -> Self:
        """Take the lock.

        Returns:
            The lock itself.

        Raises:
            ConfigError: A running process holds the lock, or a process on another host, whose state is unknown.
        """
        while not (self._create() or self._take_over()):
            pass  # another process released it or took it over at this moment
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            # A later loop of this process may have taken it over.
            if self.path.read_text(encoding="utf-8") == self._content:
                self.path.unlink()

    def _create(self) -> bool:
        """Create the file unless it exists, with its content at once; return whether it was created.

        A process that is killed here must not leave an incomplete file, which would count as the lock of an unknown training.
        """
        temporary = temporary_file(self.path)
        try:
            temporary.write_text(self._content, encoding="utf-8")
            return _link(temporary, self.path)
        except OSError as error:
            raise write_error(self.path, error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _take_over(self) -> bool:
        """Replace a stale lock, which several processes may try at once; return False if the lock is gone."""
        try:
            file = self.path.open("r+b" if os.access(self.path, os.W_OK) else "rb")
        except OSError:
            self.check()  # raises if the file exists but cannot be read
            return False
        with file:
            _wait_for(file)
            self.check()
            if not self._is(file):
                return False
            write_text(self.path, self._content)
        return True

    def _is(self, file: BinaryIO) -> bool:
        """Return whether an open file is still the lock."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        return False

    def check(self) -> None:
        """Raise as taking the lock would, without taking it.

        Raises:
            ConfigError: See `__enter__`.
        """
        try:
            holder = parse_json(self.path.read_text(encoding="utf-8"))
            host, pid = str(holder["host"]), int(holder["pid"])
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            host, pid = "an unknown host", 0
        if host == platform.node() and (pid == os.getpid() or not _is_alive(pid)):
            return
        raise ConfigError(
            f"{self.path}: found a running {self._activity} (process {pid} on {host}), expected none in this folder. "
            "Wait for it or stop it; if it no longer runs, delete this file."
        )


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its final name unless that exists; return whether it did not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with path.open("xb") as file:
                file.write(temporary.read_bytes())
        except FileExistsError:
            return False
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return True


def _wait_for(file: BinaryIO) -> None:
    """Lock an open file against other processes of this host, until it is closed."""
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)


def _is_alive(pid: int) -> bool:
    # Not os.kill(pid, 0), which interrupts the process on Windows.
    return bool(psutil.pid_exists(pid))

"""Claims: files by which processes that share a folder agree on who works on what, without a scheduler.

``NAME.0.claim`` names the process that works on NAME. The process shows that it lives by its heartbeat, a file with a
number that it raises every few seconds. If it is killed, other processes notice: those of the same machine at once, those
of other machines when the number has not changed for a while. They measure that while on their own monotonic clock, so the
clocks of the machines need not agree.

An expired claim is never removed or replaced, because two processes that do so at the same time could undo each other's
claims. It is overruled by a claim with the next number, ``NAME.1.claim``, which only one process can create. The claim with
the highest number counts. Claims of dead processes are removed by the process that finishes the work.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.cluster.process_identity import ProcessIdentity
from medseg.storage.atomic import write_error
from medseg.storage.json_files import parse_json
from medseg.storage.temporary_names import temporary_file

BEAT = 5.0
"""Seconds between two heartbeats."""
EXPIRES = 40.0
"""Seconds without a heartbeat after which a process of another machine counts as dead."""
_CLAIM = re.compile(r"(?P<name>.+)\.(?P<number>\d+)\.claim", re.DOTALL)


class Claims:
    """The claims of this process in a folder; a context manager that removes them at its end.

    Args:
        folder: Folder of the claims, on a disk that all processes share; created if necessary.
        identity: The process; None for this one.
        beat: Seconds between two heartbeats; None for none, as if the process were dead.
        clock: Clock of this machine in seconds that is never set.

    Attributes:
        held: Names that this process has claimed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: ProcessIdentity | None = None,
        beat: float | None = BEAT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.held: dict[str, Path] = {}
        self._folder = folder
        self._identity = identity or ProcessIdentity.current()
        self._id = uuid.uuid4().hex
        self._beat, self._clock = beat, clock
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> Self:
        self._pulse(0)
        if self._beat is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for name in list(self.held):
            self.give_up(name)
        with contextlib.suppress(OSError):
            self._heartbeat(self._id).unlink(missing_ok=True)
        self._sweep_heartbeats()
        with contextlib.suppress(OSError):  # others still work here
            self._folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim something, unless a living process has claimed it.

        Check again after it was taken whether there is still something to do: another process may just have finished.

        Args:
            name: What is claimed; part of a file name.

        Returns:
            Whether this process holds the claim now.

        Raises:
            DataError: The claim cannot be written.
            DiskFullError: The disk is full.
        """
        if name in self.held:
            return True
        former = self._last(name)
        content = None if former is None else _content(former[1])
        if former is not None and not self._has_expired(former[1], content):
            return False
        number = 0 if former is None else former[0] + 1
        path = self._folder / f"{name}.{number}.claim"
        if not self._create(path):
            return False
        # Between the look at the former claim and the new one, others may have finished, or given it up and begun again.
        last = self._last(name)
        if last is None or last[0] != number or (former is not None and _content(former[1]) != content):
            path.unlink(missing_ok=True)
            return False
        self.held[name] = path
        return True

    def finish(self, name: str) -> None:
        """Remove the claim of something that is done, with those of dead processes that it overruled.

        Args:
            name: What was claimed.
        """
        own = self.held.pop(name, None)
        if own is None:
            return
        number = int(_CLAIM.fullmatch(own.name)["number"])  # type: ignore[index]
        for lower in range(number):
            (self._folder / f"{name}.{lower}.claim").unlink(missing_ok=True)
        own.unlink(missing_ok=True)

    def give_up(self, name: str) -> None:
        """Remove the claim of something that is not done, so that others may claim it.

        Args:
            name: What was claimed.
        """
        own = self.held.pop(name, None)
        if own is not None:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)

    def sweep(self, done: Iterable[str]) -> None:
        """Remove what dead processes have claimed and finished.

        Args:
            done: Names of what is done.
        """
        finished = set(done)
        for path in self._listed():
            match = _CLAIM.fullmatch(path.name)
            if match is not None and match["name"] in finished and self._has_expired(path, _content(path)):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _last(self, name: str) -> tuple[int, Path] | None:
        """Return number and file of the claim that counts."""
        matches = ((_CLAIM.fullmatch(path.name), path) for path in self._listed())
        numbers = [(int(match["number"]), path) for match, path in matches if match and match["name"] == name]
        return max(numbers, default=None)

    def _listed(self) -> list[Path]:
        try:
            return list(self._folder.iterdir())
        except FileNotFoundError:
            return []

    def _create(self, path: Path) -> bool:
        """Write a claim unless the file exists; return whether it was written.

        A link is created only if the name is free, also on network file systems, and the claim is whole from the start.
        """
        content = json.dumps({"process": self._id, **asdict(self._identity)})
        temporary = temporary_file(path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(content, encoding="utf-8")
            try:
                os.link(temporary, path)
            except FileExistsError:
                # A server may have created the link without its answer arriving.
                return temporary.stat().st_nlink == 2
            except OSError:  # a file system without links
                return self._create_directly(path, content)
            return True
        except OSError as error:
            raise write_error(path, error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _create_directly(self, path: Path, content: str) -> bool:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def _has_expired(self, path: Path, content: bytes | None) -> bool:
        """Return whether the process of a claim with this content is dead."""
        if content is None:
            return False  # it was removed at this moment
        try:
            values = parse_json(content)
            process = str(values.pop("process"))
            identity = ProcessIdentity(**values)
            if process == self._id:
                return False
            if identity == self._identity:  # an abandoned loop of this process, as in a notebook
                return True
            if identity.is_here and self._identity.is_here:
                return not identity.is_running
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return self._is_silent(path.name)  # its process was killed while it wrote the claim
        return self._is_silent(process)

    def _is_silent(self, process: str) -> bool:
        """Return whether this process has watched a heartbeat for long enough without seeing a change."""
        beat = _content(self._heartbeat(process))
        now = self._clock()
        known, since = self._seen.get(process, (b"", now))
        if process not in self._seen or beat != known:
            self._seen[process] = (beat, now)
            return False
        return now - since >= EXPIRES

    def _heartbeat(self, process: str) -> Path:
        return self._folder / f"{process}.heartbeat"

    def _keep_beating(self) -> None:
        for number in itertools.count(1):
            if self._stop.wait(self._beat):
                return
            self._pulse(number)

    def _pulse(self, number: int) -> None:
        content = json.dumps({"beat": number, **asdict(self._identity)})
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._heartbeat(self._id).write_text(content, encoding="utf-8")

    def _sweep_heartbeats(self) -> None:
        """Remove the heartbeats of dead processes."""
        for path in self._listed():
            if path.suffix != ".heartbeat":
                continue
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
                values = parse_json(path.read_text(encoding="utf-8"))
                values.pop("beat")
                identity = ProcessIdentity(**values)
                dead = not identity.is_running if identity.is_here else self._is_silent(path.stem)
                if dead:
                    path.unlink(missing_ok=True)


def _content(path: Path) -> bytes | None:
    """Return the content of a file; None if it does not exist."""
    try:
        return path.read_bytes()
    except OSError:
        return None

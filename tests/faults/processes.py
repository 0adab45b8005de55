"""A command in a forked process, its descendants, and their end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing import util
from pathlib import Path

import psutil

from medseg.cli.main import main
from tests.faults.jobs import Launcher

_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 30.0  # seconds that torchrun gives to the other ranks
_IMPORTED = "modules"
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")


def adopt_orphans() -> None:
    """Let this process become the parent of all descendants whose parents end, so that none escapes its view."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class FileEvent:
    """A moment of a run: the n-th change to files by its main process.

    Attributes:
        number: Number of the change, from 1; 0 only counts.
        kills: Whether the process kills itself then; otherwise it reports the moment and goes on.
    """

    number: int
    kills: bool = False


@dataclass
class Running:
    """A command that was started.

    Attributes:
        pid: Its main process.
        log: What it prints.
        reports: Pipe on which it reports the awaited change to a file, and at the end the number of changes.
        code: Exit code, negative for a signal; None while it runs.
    """

    pid: int
    log: Path
    reports: int
    code: int | None = None
    _statuses: dict[int, int] = field(default_factory=dict)

    def reap(self) -> None:
        """Collect the exit codes of all children that have ended."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._statuses[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            pass
        self.code = self._statuses.get(self.pid, self.code)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the main process; return whether it has ended."""
        end = time.monotonic() + seconds
        self.reap()
        while self.code is None and time.monotonic() < end:
            time.sleep(0.003)
            self.reap()
        return self.code is not None

    def wait_for_event(self, seconds: float) -> bool:
        """Wait until the awaited change to a file is reported; return False if the command ended before."""
        end = time.monotonic() + seconds
        while select.select([self.reports], [], [], max(0.0, end - time.monotonic()))[0]:
            report = os.read(self.reports, 1)
            if report in (b"!", b""):  # of one of the ranks, or the end of all
                return report == b"!"
        return False

    def changes(self) -> int:
        """Return the largest number of changes to files by a rank, once the command has ended without being killed."""
        text = b""
        while part := os.read(self.reports, 4096):
            text += part
        return max((int(count) for count in text.replace(b"!", b"").split()), default=0)

    def descendants(self) -> list[int]:
        """Return the processes of the command that still run, the main one first."""
        self.reap()
        return [one.pid for one in psutil.Process().children(recursive=True) if _runs(one)]

    def workers(self) -> list[int]:
        """Return the processes that the command started, without the one that cleans up for multiprocessing."""
        return [pid for pid in self.descendants() if pid != self.pid and not _is_tracker(pid)]

    def alive_after(self, seconds: float) -> list[str]:
        """Wait until no process of the command runs; return those that still do, and end them."""
        end = time.monotonic() + seconds
        while (left := self.descendants()) and time.monotonic() < end:
            time.sleep(0.02)
        found = [f"process {pid} is alive after {seconds:g} s: {_command_line(pid)}" for pid in left]
        for pid in left:
            kill(pid)
        self.wait(5)
        return found

    def close(self) -> None:
        """End what is left, and close the pipe."""
        self.alive_after(0)
        os.close(self.reports)

    def output(self) -> str:
        """Return what was printed so far."""
        return self.log.read_text(errors="replace")


def kill(pid: int) -> None:
    """Send SIGKILL to a process, which may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:200]
    except psutil.NoSuchProcess:
        return "ended meanwhile"


def _is_tracker(pid: int) -> bool:
    return "resource_tracker" in _command_line(pid)


def start(
    words: Sequence[str],
    work: Path,
    log: Path,
    launcher: Launcher = "command",
    event: FileEvent | None = None,
) -> Running:
    """Start ``medseg`` in a forked process, in a session of its own.

    Args:
        words: Words after ``medseg``.
        work: Folder to run it in.
        log: File for what it prints.
        launcher: How it is started.
        event: The change to files to wait for.
    """
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        _become(work, log)
        runs: dict[Launcher, Callable[[], int]] = {
            "command": lambda: _command(words, work, sending, event),
            "ranks": lambda: _ranks(words, work, sending, event),
            "torchrun": lambda: _torchrun(words),
        }
        _end(runs[launcher])
    os.close(sending)
    return Running(pid, log, receiving)


def run_apart(function: Callable[[], None], work: Path, log: Path) -> None:
    """Run a function in a forked process, so that this one keeps no threads and no memory of it.

    Args:
        function: The function.
        work: Folder to run it in.
        log: File for what it prints.

    Raises:
        AssertionError: It failed.
    """
    pid = os.fork()
    if pid == 0:
        _become(work, log)
        _end(lambda: function() or 0)  # type: ignore[func-returns-value]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise AssertionError(log.read_text())


def _become(work: Path, log: Path) -> None:
    """Detach this process from its parent's files, folder and session."""
    os.setsid()
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.chdir(work)
    temporary = log.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None


def _end(run: Callable[[], int]) -> None:
    """Run, clean up as Python does at the end of a program, and end the process."""
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        util._exit_function()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _command(words: Sequence[str], work: Path, sending: int, event: FileEvent | None) -> int:
    found = _count_changes(work, sending, event)
    code = main(list(words))
    os.write(sending, f"{found[0]}\n".encode())
    if event is not None and event.number == 0:
        (work.parent / _IMPORTED).write_text("\n".join(sys.modules))
    return code


def import_what_was_imported(folder: Path) -> None:
    """Import what a run whose changes were counted had imported, so that the next runs find it loaded.

    Args:
        folder: The folder above that of the run.
    """
    for name in (folder / _IMPORTED).read_text().splitlines():
        if name not in sys.modules and not name.startswith("_"):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module(name)


def _count_changes(work: Path, sending: int, event: FileEvent | None) -> list[int]:
    """Count the changes to files below a folder, and report or kill at the awaited one; return the counter."""
    count, own = [0], os.getpid()

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif name in _CHANGES:
            path, changes = arguments[0], True
        else:
            return
        if not changes or not isinstance(path, (str, os.PathLike)) or os.getpid() != own:
            return
        text = os.fspath(path)
        if isinstance(text, str) and text.startswith("/") and not text.startswith(str(work)):
            return
        count[0] += 1
        if event is not None and count[0] == event.number:
            if event.kills:
                os.kill(own, signal.SIGKILL)
            os.write(sending, b"!")

    sys.addaudithook(hook)
    return count


def _ranks(words: Sequence[str], work: Path, sending: int, event: FileEvent | None) -> int:
    """Run two ranks as torchrun does: when one fails, the other is asked to end. They are forked, which saves imports."""
    from torch.distributed import TCPStore

    # As at that of torchrun; a free port that is only looked up may be taken before the ranks use it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_RUN_ID="faults",
                TORCHELASTIC_USE_AGENT_STORE="True",
            )  # fmt: skip
            awaited = event if rank == 0 else None
            _end(partial(_command, words, work, sending, awaited))
        ranks.append(pid)
    os.close(sending)
    failed = 0
    for _ in range(2):
        pid, status = os.wait()
        ranks.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in ranks:
                os.kill(other, signal.SIGTERM)
                threading.Timer(_GRACE, kill, (other,)).start()
    os._exit(failed if failed >= 0 else 1)


def _torchrun(words: Sequence[str]) -> int:
    from torch.distributed.run import main as torchrun

    torchrun(["--standalone", "--nproc-per-node", "2", "-m", "--", "medseg", *words])
    return 0

"""Processes that tests start: measured by coverage where a test asks for it, and forked from one that has torch loaded."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

import pytest

RunRanks = Callable[..., "subprocess.CompletedProcess[str]"]
_LOADED = (
    "medseg.experiment.training_setup",
    "medseg.train.trainer",
    "medseg.cli.training.train",
    "torch._dynamo",
)
_SECONDS = 180.0
_SERVER: Any = forkserver._forkserver  # type: ignore[attr-defined]


class _Coverage:
    """How the coverage of this session is measured; it is paused in tests whose coverage is not measured."""

    config: str | None = None


def _measure_children(patch: pytest.MonkeyPatch) -> None:
    if _Coverage.config is not None:
        patch.setenv("COVERAGE_PROCESS_CONFIG", _Coverage.config)


@pytest.fixture
def measured_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the coverage of the Python processes that a test starts, if coverage is measured.

    It is not done for all tests, because such a process takes about a third longer to load torch.
    """
    _measure_children(monkeypatch)


def fork_server() -> ForkServerContext:
    """Return the context of processes that are forked from one that has loaded torch and the trainer.

    The first call starts that process, whose children are measured. It has run no network, so the children may.
    """
    context = multiprocessing.get_context("forkserver")
    if _SERVER._forkserver_pid is None:
        context.set_forkserver_preload(list(_LOADED))
        with pytest.MonkeyPatch.context() as patch:
            _measure_children(patch)
            first = context.Process(target=os.getpid)  # starts the process that loads torch
            first.start()
            first.join()
    return context


@pytest.fixture(scope="session", autouse=True)
def _fork_server_ends() -> Iterator[None]:
    """Remember how coverage is measured, and end the process from which others are forked before it is combined."""
    coverage = sys.modules.get("coverage")
    measured = coverage and coverage.Coverage.current()
    _Coverage.config = measured.config.serialize() if measured else None
    yield
    if _SERVER._forkserver_pid is not None:
        late = threading.Timer(
            60, os.kill, (_SERVER._forkserver_pid, signal.SIGKILL)
        )  # seconds; a child was forgotten
        late.start()
        _SERVER._stop()
        late.cancel()


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, str]]:
    """Let Dask fork its workers from the process of `fork_server`, instead of starting interpreters that load torch.

    Yields:
        The environment of a program whose workers are to be forked, too.
    """
    dask = pytest.importorskip("dask", reason="the extra medseg[cluster] is not installed")
    utils = pytest.importorskip("distributed.utils")
    fork_server()
    monkeypatch.setattr(utils, "_forkserver_preload_set", True)
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield {**os.environ, "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"}


class Program:
    """A program that was started by `start_program`; as `subprocess.Popen`, as far as tests need it.

    Attributes:
        stdout: What it prints.
        stderr: Its errors; None if they are part of `stdout`.
    """

    def __init__(self, process: BaseProcess, stdout: TextIO, stderr: TextIO | None) -> None:
        self._process = process
        self.stdout, self.stderr = stdout, stderr

    @property
    def pid(self) -> int:
        """The process ID."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while the program runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the program has ended."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End the program by force and close what it prints, which processes that it started may still hold open."""
        self.kill()
        self.wait()
        for stream in filter(None, (self.stdout, self.stderr)):
            stream.close()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return the rest of what is printed, and the rest of the errors."""
        end = None if timeout is None else time.monotonic() + timeout
        texts = {"out": "", "err": ""}

        def read(name: str, stream: TextIO) -> None:
            with stream:
                texts[name] = stream.read()

        streams = [("out", self.stdout), *([("err", self.stderr)] if self.stderr is not None else [])]
        readers = [
            threading.Thread(target=read, args=one, daemon=True) for one in streams if not one[1].closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return texts["out"], texts["err"]


def start_program(
    *program: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    errors_in_output: bool = False,
    new_session: bool = False,
) -> Program:
    """Start a Python program in a process that finds torch loaded, which saves some seconds each time.

    ``start_program("-m", "medseg", *words)`` runs a module, ``start_program("file.py", *words)`` a file.

    Args:
        program: The words after ``python``.
        cwd: Its folder; None for that of this process.
        env: Its environment; None for that of this process.
        errors_in_output: Print errors to the standard output.
        new_session: Start it in a session of its own, as a terminal does.

    Returns:
        The running program.
    """
    context = fork_server()
    out = context.Pipe(duplex=False)
    err = out if errors_in_output else context.Pipe(duplex=False)
    folder, words = cwd or Path.cwd(), [str(word) for word in program]
    process = context.Process(
        target=_run_program,
        args=(out[1], err[1], words, folder, dict(env or os.environ), new_session),
        daemon=True,  # ended with this process
    )
    process.start()
    streams = []
    for reading, writing in (out,) if errors_in_output else (out, err):
        writing.close()
        streams.append(os.fdopen(os.dup(reading.fileno()), encoding="utf-8", errors="replace"))
        reading.close()
    return Program(process, streams[0], None if errors_in_output else streams[1])


def _run_program(
    out: Connection[Any, Any],
    err: Connection[Any, Any],
    program: list[str],
    folder: Path,
    environment: dict[str, str],
    new_session: bool,
) -> None:
    """Run a program in this process, as if it had been started by the shell, and end the process."""
    if new_session:
        os.setsid()
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    for connection in {out, err}:
        connection.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    named = environment.get("PYTHONPATH", "").split(os.pathsep)
    first = folder if program[0] == "-m" else Path(program[0]).parent
    sys.path[:0] = [str(first), *(path for path in named if path and path not in sys.path)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may start processes
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # that of a new interpreter
    # Processes that the program forks in this way come from the same server, which this version of Python would start again.
    _SERVER.ensure_running = lambda: None
    _end(program)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """Function that runs a program in two ranks, as torchrun does, and returns the exit code and what both printed.

    The ranks are forked from one process that has loaded torch and the trainer, which saves some ten seconds each time.
    ``run_ranks("-m", "medseg", *words)`` runs a module, ``run_ranks("file.py", *words)`` a file. A rank that fails does not
    end the other one, which has to notice it.
    """
    from torch.distributed import TCPStore

    context = fork_server()

    def run(*program: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("ranks")
        # The ranks meet at a store of this process, as at that of torchrun; a free port that is only looked up may be taken.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = [
            context.Process(target=_rank, args=(rank, store.port, list(program), folder)) for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + _SECONDS
        for rank in ranks:
            rank.join(max(0.0, end - time.monotonic()))
        late = [number for number, rank in enumerate(ranks) if rank.exitcode is None]
        for rank in ranks:
            rank.kill()
            rank.join()
        out, err = ((folder / name).read_text() for name in ("out", "err"))
        assert not late, f"ranks {late} run after {_SECONDS:.0f} s:\n{out}\n{err}"
        found = next((rank.exitcode for rank in ranks if rank.exitcode), 0)
        assert found == code, err
        return subprocess.CompletedProcess(program, found, out, err)

    return run


def _rank(rank: int, port: int, program: list[str], folder: Path) -> None:
    """Run a program as one of two ranks, and end this process as Python does at the end of a program."""
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RUN_ID="tests", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    _end(program)


def _end(program: list[str]) -> None:
    """Run a program, clean up as Python does at its end, and end this process."""
    code = _exit_code(program)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    threading._shutdown()  # type: ignore[attr-defined]
    util._exit_function()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(code)


def _exit_code(program: list[str]) -> int:
    import torch

    torch.set_num_threads(1)
    try:
        if program[0] == "-m":
            sys.argv = program[1:]
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = program
            runpy.run_path(program[0], run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0

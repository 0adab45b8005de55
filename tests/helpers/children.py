"""Processes that tests start: measured by coverage where a test asks for it, and ranks that find torch loaded."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, util
from pathlib import Path

import pytest

RunRanks = Callable[..., "subprocess.CompletedProcess[str]"]
_LOADED = (
    "medseg.experiment.training_setup",
    "medseg.train.trainer",
    "medseg.cli.training.train",
    "torch._dynamo",
)
_SECONDS = 180.0


def _measure_children(patch: pytest.MonkeyPatch) -> None:
    coverage = sys.modules.get("coverage")
    measured = coverage and coverage.Coverage.current()
    if measured:
        patch.setenv("COVERAGE_PROCESS_CONFIG", measured.config.serialize())


@pytest.fixture
def measured_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the coverage of the Python processes that a test starts, if that of the test is measured.

    It is not done for all tests, because such a process takes about a third longer to load torch.
    """
    _measure_children(monkeypatch)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunRanks]:
    """Function that runs a program in two ranks, as torchrun does, and returns the exit code and what both printed.

    The ranks are forked from one process that has loaded torch and the trainer, which saves some ten seconds each time.
    ``run_ranks("-m", "medseg", *words)`` runs a module, ``run_ranks("file.py", *words)`` a file. A rank that fails does not
    end the other one, which has to notice it.
    """
    from torch.distributed import TCPStore

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    with pytest.MonkeyPatch.context() as patch:
        _measure_children(patch)
        first = context.Process(target=os.getpid)  # starts the process that loads torch
        first.start()
        first.join()

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

    yield run
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # before coverage is combined


def _rank(rank: int, port: int, program: list[str], folder: Path) -> None:
    """Run a program as one of two ranks, and end this process as Python does at the end of a program."""
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RUN_ID="tests", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
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

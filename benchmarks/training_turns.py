"""Measurements in turns: each peer has its own process, one of which runs while the others are stopped."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import psutil

Figures = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """A measured tool: its name in tables, its function, and the settings of that function."""

    name: str
    worker: str
    settings: Figures


class _Peer:
    """The process of a peer, which leads its own process group so that its workers stop and continue with it."""

    def __init__(self, script: Path, turn: Turn, errors: IO[str]) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--worker", turn.worker, json.dumps(turn.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

    def answer(self) -> Figures:
        """Return the next line of results; raise if the process failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            found: Figures = json.loads(line)
            return found
        code = self.process.wait()
        self.errors.seek(0)
        last = ([text for text in self.errors.read().splitlines() if text.strip()] or ["no message"])[-1]
        return {"failed": "out of memory" if code in (-9, 137) else last}

    def round(self, count: int) -> Figures:
        """Return the results of `count` calls."""
        assert self.process.stdin is not None
        self.signal(signal.SIGCONT)
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        found = self.answer()
        self.signal(signal.SIGSTOP)
        return found

    def signal(self, number: int) -> None:
        """Signal the process and its workers, if they still run."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """End the process and its workers."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self.process.wait()


def take_turns(script: Path, turns: Sequence[Turn], rounds: int, count: int) -> dict[str, Figures]:
    """Return, for each peer, the facts known before and a list of rounds of `count` calls, without the first round.

    Args:
        script: Script that answers ``--worker NAME SETTINGS`` with `serve`.
        turns: Peers to measure.
        rounds: Rounds per peer.
        count: Calls per round.
    """
    with ExitStack() as stack:
        peers, found = {}, {}
        for turn in turns:
            peer = stack.enter_context(_started(script, turn))
            found[turn.name] = peer.answer()
            if rounds and "failed" not in found[turn.name]:
                peers[turn.name] = peer
                peer.round(count)
                found[turn.name]["rounds"] = []
            print(turn.name, found[turn.name], flush=True)
        for number in range(rounds):
            for name, peer in list(peers.items()):
                figures = peer.round(count)
                if "failed" in figures:
                    found[name] |= figures
                    del peers[name]
                else:
                    found[name]["rounds"].append(figures)
                    print(number, name, [round(s, 3) for s in figures["seconds"]], flush=True)
        return found


def call(script: Path, worker: str, **settings: Any) -> Figures:
    """Return the result of one call of a worker in its own process.

    Args:
        script: Script that answers ``--worker NAME SETTINGS`` with `serve`.
        worker: Name of the function.
        **settings: Its arguments: numbers, texts and paths.

    Returns:
        The result.

    Raises:
        SystemExit: The process failed.
    """
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    (found,) = take_turns(script, [Turn(worker, worker, plain)], 0, 0).values()
    if "failed" in found:
        raise SystemExit(f"{worker}: {found['failed']}")
    return found


@contextmanager
def _started(script: Path, turn: Turn) -> Iterator[_Peer]:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        peer = _Peer(script, turn, errors)
        try:
            yield peer
        finally:
            peer.end()


def serve(workers: ModuleType, name: str, settings: Figures) -> None:
    """Run in the process of a peer: print the known facts, then the results of as many calls as each input line requests."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no answer
    found = getattr(workers, name)(**settings)
    known, one = found if isinstance(found, tuple) else (found, None)
    print(json.dumps(known), file=answers, flush=True)
    if one is None:
        return
    for line in sys.stdin:
        cpu = _cpu_seconds()
        seconds, waited = zip(*(one() for _ in range(int(line))), strict=True)
        figures = {"seconds": seconds, "waited": waited, "cpu": _cpu_seconds() - cpu, "peak": _peak_bytes()}
        print(json.dumps(figures), file=answers, flush=True)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its workers."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def _peak_bytes() -> int:
    """Return the peak memory of this process plus the current memory of its workers; shared pages are divided among them."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    workers = psutil.Process().children(recursive=True)
    return int(own + sum(worker.memory_full_info().pss for worker in workers))

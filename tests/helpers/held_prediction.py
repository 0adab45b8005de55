"""``medseg predict`` that holds its cases until a test releases it: ``python -m tests.helpers.held_prediction``.

Arguments: a file for notes, the number of cases that pass, and the words of the command. Every case that begins is noted. Those
after the given number wait before the network runs, until the file exists that `release` creates: a test can disturb the command
while it certainly works, however busy the machine is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from medseg.cli.main import main
from medseg.inference.predictor import Predictor

_SECONDS = 300.0  # a process that its test has forgotten does not wait for ever


def hold_after(notes: Path, count: int) -> None:
    """Let every prediction of this process append its case and its process to a file, and wait if it is not among the first.

    Args:
        notes: File that several processes may share.
        count: Number of lines of the file whose predictions do not wait.
    """
    run = Predictor.run

    def held(self: Predictor, prepared: Any, **options: Any) -> Any:
        line = f"{Path(prepared.where).name} {os.getpid()}\n"
        with notes.open("a", encoding="utf-8") as file:
            file.write(line)
        number = notes.read_text(encoding="utf-8").splitlines(keepends=True).index(line)
        end = time.monotonic() + _SECONDS
        while number >= count and not _released(notes).exists() and time.monotonic() < end:
            time.sleep(0.02)
        return run(self, prepared, **options)

    Predictor.run = held  # type: ignore[method-assign]


def release(notes: Path) -> None:
    """Let all predictions continue that share the notes.

    Args:
        notes: The file of the notes.
    """
    _released(notes).touch()


def begun(notes: Path) -> list[tuple[str, int]]:
    """Return the file name and the process of each case, in the order in which they began.

    Args:
        notes: The file of the notes, which may be missing.
    """
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    return [(name, int(pid)) for name, _, pid in (line.rpartition(" ") for line in lines)]


def _released(notes: Path) -> Path:
    return notes.with_name(f"{notes.name}.released")


def dask_setup(worker: Any) -> None:
    """Prepare a worker that was started with ``dask worker --preload tests.helpers.held_prediction``."""
    hold_after(Path(os.environ["MEDSEG_TESTS_NOTES"]), int(os.environ["MEDSEG_TESTS_PASSING"]))


if __name__ in ("__main__", "__mp_main__"):  # the command, or a worker process of it
    hold_after(Path(sys.argv[1]), int(sys.argv[2]))
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))

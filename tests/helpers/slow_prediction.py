"""``medseg predict`` whose network sleeps, and which notes every case that it begins: ``python -m tests.helpers.slow_prediction``.

Arguments: a file for the notes, the seconds to sleep, and the words of the command.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from medseg.cli.main import main
from medseg.inference.predictor import Predictor


def slow_down(notes: Path, seconds: float) -> None:
    """Let every prediction of this process sleep, and append a line with the case and the process to a file."""
    run = Predictor.run

    def slow(self: Predictor, prepared: Any, **options: Any) -> Any:
        with notes.open("a", encoding="utf-8") as file:
            file.write(f"{Path(prepared.where).name} {os.getpid()}\n")
        time.sleep(seconds)
        return run(self, prepared, **options)

    Predictor.run = slow  # type: ignore[method-assign]


def dask_setup(worker: Any) -> None:
    """Prepare a worker that was started with ``dask worker --preload tests.helpers.slow_prediction``."""
    slow_down(Path(os.environ["MEDSEG_TESTS_NOTES"]), float(os.environ["MEDSEG_TESTS_SLOW_NETWORK"]))


if __name__ == "__mp_main__":  # in a worker process of the command
    slow_down(Path(sys.argv[1]), float(os.environ["MEDSEG_TESTS_SLOW_NETWORK"]))
if __name__ == "__main__":
    slow_down(Path(sys.argv[1]), float(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))

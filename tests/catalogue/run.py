"""Run one entry of the catalogue."""

from __future__ import annotations

import signal
import traceback
from importlib import import_module
from pathlib import Path
from types import FrameType

from tests.catalogue.bench import Bench, Shared
from tests.catalogue.promise import RECIPES, Broken, Promise, require_kept

__all__ = ["Shared", "run_entry"]

SECONDS = 300
for _name in (
    "volume_files",
    "geometry",
    "labels",
    "datasets",
    "dicom",
    "configs",
    "models",
    "faults",
    "cohorts",
    "file_system",
):
    import_module(f"tests.catalogue.{_name}")


class TooSlow(Exception):
    """An entry did not end in time."""


def run_entry(promise: Promise, variant: int, folder: Path, shared: Shared) -> str | None:
    """Create an entry, give it to medseg and compare the answers with the promise.

    Args:
        promise: The line of the table.
        variant: Its position among those with the same number.
        folder: Folder to create.
        shared: What all entries may read.

    Returns:
        What is wrong with an answer; None if the promise is kept or needs a GPU.
    """
    if promise.needs_gpu:
        return None
    folder.mkdir(parents=True)
    previous = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS)
    try:
        answers = RECIPES[promise.number, variant](Bench(folder, shared))
        for answer in answers if isinstance(answers, list) else [answers]:
            require_kept(promise, answer)
    except Broken as failure:
        return str(failure)
    except TooSlow:
        return f"not finished after {SECONDS} s"
    except KeyError as error:
        return f"no recipe: {error}" if error.args == ((promise.number, variant),) else traceback.format_exc()
    except Exception:
        return f"exception:\n{traceback.format_exc()}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return None


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow

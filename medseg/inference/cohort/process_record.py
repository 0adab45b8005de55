"""What one process did in a folder of predictions: a file in ``.cohort/processes``, from which ``run.json`` is built."""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.inference.cohort.case_records import read_versioned
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.written_files import FOLDER
from medseg.runtime.machine import environment
from medseg.storage.atomic import write_text

FORMAT = 1


@dataclass
class Counts:
    """How many cases a process was given, and what became of them.

    Attributes:
        cases: Cases that it was given.
        predicted_before: Cases that were predicted already when it began.
        predicted: Cases that it predicted.
        failed: Cases that it could not predict.
        by_others: Cases that other processes predicted meanwhile.
    """

    cases: int = 0
    predicted_before: int = 0
    predicted: int = 0
    failed: int = 0
    by_others: int = 0


class ProcessRecord:
    """The record of this process.

    Args:
        folder: Folder of the label maps.
        model_id: The models and settings that it predicts with.
        counts: Its cases; changed while it works.
        options: How the work is divided, such as ``{"part": "1/4"}``.
    """

    def __init__(
        self, folder: Path, model_id: ModelId, counts: Counts, options: Mapping[str, object] | None = None
    ) -> None:
        self.counts = counts
        self._began = time.monotonic()
        self._values: dict[str, Any] = {
            "format": FORMAT,
            "host": platform.node(),
            "process": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="microseconds"),
            "model": model_id.model,
            "settings": model_id.settings,
            **(options or {}),
            "environment": environment(),
        }
        self._path = folder / FOLDER / "processes" / f"{uuid.uuid4().hex}.json"

    def write(self, state: str) -> None:
        """Write the record.

        Args:
            state: ``"running"``, ``"finished"`` or ``"interrupted"``. A killed process stays ``"running"``.

        Raises:
            DataError: The record cannot be written.
            DiskFullError: The disk is full.
        """
        seconds = round(time.monotonic() - self._began, 3)
        content = {**self._values, "state": state, "seconds": seconds, "counts": asdict(self.counts)}
        write_text(self._path, json.dumps(content, indent=1) + "\n")


def read_process(path: Path) -> dict[str, Any] | None:
    """Read the record of a process.

    Args:
        path: File of the record.

    Returns:
        Its values without the format; None if the file is missing or damaged.

    Raises:
        DataError: Another version of medseg wrote the record in another format.
    """
    return read_versioned(path, FORMAT, "record of a process")

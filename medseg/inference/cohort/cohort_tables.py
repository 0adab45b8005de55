"""The tables of a folder of predictions: ``cases.tsv``, ``failed.tsv``, ``volumes.tsv`` and ``run.json``.

They are built from the records of cases and of processes, so that several processes and machines that write to one folder do
not overwrite what the others wrote.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from medseg.cluster.claims import Claims
from medseg.inference.cohort.case_records import CaseRecord, CaseState, Prediction, read_record
from medseg.inference.cohort.process_record import FORMAT, read_process
from medseg.inference.cohort.written_files import FOLDER
from medseg.inference.quality.case_quality import CaseQuality
from medseg.runtime.formatting import pluralise
from medseg.storage.atomic import write_text
from medseg.storage.temporary_names import sweep
from medseg.storage.tsv import read_tsv, to_tsv

CASES, FAILED, VOLUMES, RUN = "cases.tsv", "failed.tsv", "volumes.tsv", "run.json"
CASE_COLUMNS = (
    "case",
    "state",
    "source",
    "absent_channels",
    "input_hash",
    "output_hash",
    "flags",
    "reasons",
    "seconds",
    "peak_memory_bytes",
)
VOLUME_COLUMNS = (
    "case",
    "label_value",
    "label",
    "volume_ml",
    "volume_low_ml",
    "volume_high_ml",
    "expected_dice",
    "expected_dice_low",
    "expected_dice_high",
    "coverage",
)
_INTERVAL = 30.0  # seconds between two versions of the tables
_SHARE = 0.05  # of the time that may be spent on them
_LOCK = ".tables"  # no case begins with a dot
_POLL = 0.1  # seconds
_LONGEST_WAIT = 120.0  # seconds for a process that was stopped while it wrote the tables

_Listing = dict[str, tuple[int, int, int]]
"""Number on the disk, size and time of each file by name."""


class CohortTables:
    """The tables of a folder.

    Args:
        folder: Folder of the label maps.
        claims: The claims of this process, so that only one process writes the tables at a time.
    """

    def __init__(self, folder: Path, claims: Claims) -> None:
        self._folder, self._claims = folder, claims
        self._cases = folder / FOLDER / "cases"
        self._processes = folder / FOLDER / "processes"
        self._known: dict[str, tuple[tuple[int, int, int], CaseRecord | None]] = {}
        self._next = time.monotonic() + _INTERVAL

    def write(self, *, wait: bool = True) -> None:
        """Write the tables from all records, those of other processes included.

        The last process that writes them sees all records, because records are read only after other processes have
        finished writing.

        Args:
            wait: Whether to wait while another process writes them. Otherwise, they are left to it.

        Raises:
            DataError: A table cannot be written.
            DiskFullError: The disk is full.
        """
        began = time.monotonic()
        while not self._claims.take(_LOCK):
            if not wait:
                return
            if time.monotonic() - began > _LONGEST_WAIT:  # better two writers than none
                break
            time.sleep(_POLL)
        try:
            records = self._records()
            for name, text in _tables(records).items():
                write_text(self._folder / name, text)
            processes = [read_process(self._processes / name) for name in _listing(self._processes)]
            write_text(self._folder / RUN, _run(records, processes))
        finally:
            self._claims.finish(_LOCK)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(_INTERVAL, took / _SHARE)

    @property
    def are_due(self) -> bool:
        """Whether the last version is old: after 30 seconds, and after longer if there are very many cases."""
        return time.monotonic() >= self._next

    def _records(self) -> list[CaseRecord]:
        """Return the records, sorted by name; only those that have changed are read."""
        listing = _listing(self._cases)
        for name, stamp in listing.items():
            if self._known.get(name, (None, None))[0] != stamp:
                self._known[name] = (stamp, read_record(self._cases / name))
        found = (self._known[name][1] for name in listing)
        return sorted((record for record in found if record is not None), key=lambda record: record.name)


def complete_tables(folder: Path) -> None:
    """Write the tables of a folder once more, in case a process was killed before it did, and remove what it left.

    Args:
        folder: Folder of the label maps.

    Raises:
        DataError: A table cannot be written.
        DiskFullError: The disk is full.
    """
    sweep_records(folder)
    if (folder / FOLDER / "cases").is_dir():
        with Claims(folder / FOLDER / "claims") as claims:
            CohortTables(folder, claims).write()


def review_line(folder: Path, names: Collection[str], most: int = 3) -> str:
    """Return a line that says which predicted cases have flags, from ``cases.tsv``.

    Args:
        folder: Folder of the label maps.
        names: Names of the cases that count.
        most: Number of cases that are named.

    Returns:
        One line, such as ``2 of 120 cases to review: a (volume), b (border, image); see out/volumes.tsv and out/cases.tsv``.

    Raises:
        DataError: The table cannot be read.
    """
    wanted = set(names)
    rows = [row.cells for row in read_tsv(folder / CASES).rows]
    predicted = [row for row in rows if row["case"] in wanted and row["state"] == CaseState.PREDICTED]
    flagged = [f"{row['case']} ({row['flags']})" for row in predicted if row.get("flags")]
    more = [f"{len(flagged) - most} more"] if len(flagged) > most else []
    listed = f": {', '.join([*flagged[:most], *more])}" if flagged else ""
    return f"{len(flagged)} of {pluralise(len(predicted), 'case')} to review{listed}; see {folder / VOLUMES} and {folder / CASES}"


def sweep_records(folder: Path) -> None:
    """Remove what killed processes left among the records, also where the next one has nothing to write.

    Args:
        folder: Folder of the label maps.
    """
    for inner in ("cases", "processes", "claims"):
        sweep(folder / FOLDER / inner)


def _listing(folder: Path) -> _Listing:
    """Return the records of a folder; unfinished temporary files are left out."""
    listing: _Listing = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # there may be no case yet
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith(".tmp-"):
                with suppress(
                    FileNotFoundError
                ):  # a file that was removed meanwhile hides none of the others
                    status = entry.stat()
                    listing[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return listing


def _tables(records: Iterable[CaseRecord]) -> dict[str, str]:
    """Return the text of each table by its name."""
    cases, failed = [], []
    volumes: list[tuple[Any, ...]] = []
    for record in records:
        cases.append(_case_row(record))
        if record.state is CaseState.FAILED:
            failed.append((record.name, record.message))
        elif record.state is CaseState.PREDICTED and record.prediction is not None:
            volumes += _volume_rows(record.name, record.prediction)
    return {
        CASES: to_tsv(CASE_COLUMNS, cases),
        FAILED: to_tsv(("case", "message"), failed),
        VOLUMES: to_tsv(VOLUME_COLUMNS, volumes),
    }


def _volume_rows(name: str, prediction: Prediction) -> Iterator[tuple[Any, ...]]:
    """Yield one row per label with its volume and estimates; what is not known is empty."""
    quality = prediction.quality or CaseQuality()
    for one in prediction.volumes:
        found = quality.label(one.name)
        ends = (found.volume_low_ml, found.volume_high_ml)
        known = any(end is not None for end in (*ends, found.dice_low))
        dice = (found.dice, found.dice_low, found.dice_high)
        yield (name, one.value, one.name, one.ml, *ends, *dice, quality.coverage if known else None)


def _case_row(record: CaseRecord) -> tuple[Any, ...]:
    found = record.prediction if record.state is CaseState.PREDICTED else None
    states = (None, None) if found is None else (found.input, found.output)
    hashes = [None if state is None else state.hash for state in states]
    source = " ".join(record.source) or None
    absent = None if found is None else ", ".join(map(str, found.absent)) or None
    flags = () if found is None or found.quality is None else found.quality.flags
    kinds = ", ".join(dict.fromkeys(flag.kind.value for flag in flags)) or None
    reasons = "; ".join(flag.sentence for flag in flags) or None
    seconds = round(record.seconds, 3)
    return record.name, record.state, source, absent, *hashes, kinds, reasons, seconds, record.peak_memory


def _run(records: Iterable[CaseRecord], processes: Iterable[dict[str, Any] | None]) -> str:
    """Return the text of ``run.json``."""
    listed = list(records)
    states = Counter(str(record.state) for record in listed)
    models = Counter(
        (record.prediction.model, record.prediction.settings)
        for record in listed
        if record.state is CaseState.PREDICTED and record.prediction is not None
    )
    present = sorted((one for one in processes if one is not None), key=lambda one: str(one.get("started")))
    content = {
        "format": FORMAT,
        "counts": {"cases": len(listed), **{str(state): states[str(state)] for state in CaseState}},
        "seconds": round(sum(record.seconds for record in listed), 3),
        "models": [
            {"model": model, "settings": settings, "cases": count}
            for (model, settings), count in sorted(models.items())
        ],
        "processes": present,
    }
    return json.dumps(content, indent=1) + "\n"

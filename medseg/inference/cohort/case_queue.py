"""The cases that a process has still to predict, shared with other processes that predict into the same folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from medseg.cluster.claims import Claims
from medseg.data.datasets.cases import Case
from medseg.errors import DataError
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_records import CaseRecords, CaseState
from medseg.io.files import stem_of

Pair = tuple[Case, Path]
POLL = 1.0
"""Seconds between two looks at the cases of other processes."""


def record_ids(records: CaseRecords, label_maps: Sequence[Path]) -> dict[str, str | None]:
    """Return the identifier of the present record of each case, by which later ones are recognised.

    Args:
        records: The records of the folder.
        label_maps: The label map of each case.

    Returns:
        Identifiers by name; None for cases without a record.
    """
    found = {stem_of(label_map): records.get(stem_of(label_map)) for label_map in label_maps}
    return {name: None if record is None else record.id for name, record in found.items()}


class CaseQueue:
    """The cases that are neither predicted nor failed.

    Args:
        pairs: Each case and the file of its label map.
        records: The records of the folder.
        claims: The claims of this process.
        before: The records when this process began, see `record_ids`. A case whose record has changed since then was done
            by another process.
        is_current: Returns whether a case is predicted as this process would do it.

    Attributes:
        by_others: Number of cases that other processes have predicted, or could not predict, meanwhile.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        records: CaseRecords,
        claims: Claims,
        before: Mapping[str, str | None],
        is_current: Callable[[Case, Path], bool],
    ) -> None:
        self._open = {stem_of(target): (case, target) for case, target in pairs}
        self._records, self._claims, self._before = records, claims, before
        self._is_current = is_current
        self._failed: list[Outcome] = []
        self.by_others = 0

    def next(self) -> Pair | None:
        """Claim a case; wait while all open cases are claimed by others, because their processes may be killed.

        Returns:
            The case and the file of its label map; None if no case is open.
        """
        while self._open:
            for pair in self.free():
                return pair
            if self._open:
                time.sleep(POLL)
        return None

    def free(self) -> Iterator[Pair]:
        """Claim one case after the other; end without waiting at the last one that can be claimed now.

        Yields:
            The case and the file of its label map. Call `finish` once its outcome is recorded.
        """
        for name, pair in list(self._open.items()):
            if name in self._claims.held or name not in self._open or self._is_done(name, pair):
                continue
            if not self._claims.take(name):
                continue
            if self._is_done(name, pair):  # at the moment before it was claimed
                self._claims.finish(name)
            else:
                yield pair

    def finish(self, label_map: Path) -> None:
        """Give up the claim of a case whose outcome is recorded.

        Args:
            label_map: Its label map.
        """
        name = stem_of(label_map)
        self._open.pop(name, None)
        self._claims.finish(name)

    def failed_elsewhere(self) -> list[Outcome]:
        """Return the outcomes of cases that other processes could not predict since the last call."""
        found, self._failed = self._failed, []
        return found

    def _is_done(self, name: str, pair: Pair) -> bool:
        """Return whether another process has done a case since this one began, and drop the case then."""
        record = self._records.get(name)
        if record is None or record.id == self._before[name] or record.is_unfinished:
            return False
        if record.state is CaseState.FAILED:
            self._failed.append(Outcome(*pair, error=DataError(record.message)))
        elif not self._is_current(*pair):
            return False
        del self._open[name]
        self.by_others += 1
        return True

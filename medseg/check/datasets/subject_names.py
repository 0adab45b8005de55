"""Persons that the names of cases suggest, such as ``p01`` for ``p01_a`` and ``p01_b``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_VISIT = (
    r"frame|fr|slice|sl|visit|vis|ses|session|scan|time|timepoint|tp|day|week|month|run|rep|exam|study|phase|part|"
    r"baseline|base|followup|follow|fu|pre|post|left|right|ed|es|lh|rh|t|v|s|f|r|l"
)
_CASE_OF_PERSON = re.compile(
    rf"(?P<person>(?:.*[^0-9a-z])?[a-z]*\d+)[_-](?P<visit>(?:{_VISIT})[_-]?\d*|[a-z]|\d{{1,2}})",
    re.IGNORECASE,
)
_MOST_PER_PERSON = 0.5  # of all cases: a larger group is a data set, not a person


def persons_by_name(ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return persons who seem to have several cases.

    A name counts as that of a person if it ends with a number and is followed by a visit, a frame, a single letter or a
    number of at most two digits. Numbered cases of one study, such as ``liver_1`` and ``site1_001``, are not grouped.

    Args:
        ids: Ids of cases.

    Returns:
        Ids by person, only of persons with at least two cases; empty if the names follow another pattern.

    >>> persons_by_name(["p01_a", "p01_b", "p02_a", "p03_a"])
    {'p01': ('p01_a', 'p01_b')}
    >>> persons_by_name(["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient003_frame01"])
    {'patient001': ('patient001_frame01', 'patient001_frame12')}
    >>> persons_by_name(["liver_1", "liver_2", "liver_10"])
    {}
    """
    names = sorted(ids)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = _CASE_OF_PERSON.fullmatch(name)
        if match:
            groups[match["person"]].append(name)
    several = {person: tuple(cases) for person, cases in groups.items() if len(cases) > 1}
    if any(len(cases) > max(2, _MOST_PER_PERSON * len(names)) for cases in several.values()):
        return {}
    return several

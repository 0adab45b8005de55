"""What a quality model cannot say, because the cross-validation had too few cases."""

from __future__ import annotations

from collections.abc import Mapping

from medseg.inference.quality.conformal import least_cases
from medseg.inference.quality.quality_model import QualityModel
from medseg.runtime.formatting import pluralise

LEAST_FOR_FLAGS = 24
"""Fewest cases for flags; with fewer than 49 cases, the nominal fraction is one of the next case and all of these."""
LEAST_CASES = 20
"""Fewest cases with a property, or with a Dice of a label, for a usual range or a line."""
_MOST_NAMES = 3  # labels that are named


def too_few_cases(model: QualityModel) -> str | None:
    """Return a sentence about flags and estimates that are missing because there were too few cases.

    Args:
        model: The quality model.

    Returns:
        One sentence with the number of cases that were found and are needed; None if nothing is missing.

    Examples:
        >>> too_few_cases(QualityModel(cases=15))
        'quality model: too few cases (15) for learned flags (24 needed)'
        >>> too_few_cases(QualityModel(cases=30, threshold=1.5)) is None
        True
    """
    no_dice = {name: one.cases for name, one in model.volumes.items() if name not in model.dice}
    no_volume = {name: one.cases for name, one in model.volumes.items() if one.high is None}
    missing = []
    if model.threshold is None:
        missing.append(f"learned flags ({LEAST_FOR_FLAGS} needed)")
    if no_dice:
        missing.append(f"the expected Dice of {_listed(no_dice)} ({LEAST_CASES} needed)")
    if no_volume:
        needed = least_cases(model.coverage, sides=2)
        missing.append(f"the volume interval of {_listed(no_volume)} ({needed} needed)")
    return f"quality model: too few cases ({model.cases}) for {'; '.join(missing)}" if missing else None


def _listed(found: Mapping[str, int]) -> str:
    """Return names of labels, each with the number of cases in which it was predicted."""
    named = [
        f"{name} (predicted in {pluralise(count, 'case')})"
        for name, count in list(found.items())[:_MOST_NAMES]
    ]
    more = [f"{len(found) - _MOST_NAMES} more labels"] if len(found) > _MOST_NAMES else []
    return ", ".join([*named, *more])

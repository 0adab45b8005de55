"""Label values that look like ids of instances."""

from __future__ import annotations

from collections.abc import Iterable

FEWEST_INSTANCES = 10

STATE_INSTANCES = 'If they are ids of instances, state "instances": true in dataset.json, or set data.instances=true; see the guide on instances.'
"""What to do with a dataset whose label maps look like instance maps."""


def look_like_instances(values: Iterable[int], num_labels: int) -> bool:
    """Return whether values are 1 to n without a gap, with n above that of the labels and at least ten.

    Args:
        values: Values that occur in a label map.
        num_labels: Number of foreground labels of the dataset.

    Returns:
        False for a label map of the dataset's own labels.

    Examples:
        >>> look_like_instances(range(31), num_labels=1), look_like_instances([0, 1, 2], num_labels=2)
        (True, False)
    """
    present = sorted({value for value in values if value > 0})
    return len(present) >= max(FEWEST_INSTANCES, num_labels + 1) and present[-1] == len(present)

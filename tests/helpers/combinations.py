"""Few combinations of many options."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def covering(*options: Sequence[Any], together: int = 3) -> list[tuple[Any, ...]]:
    """Return combinations of options in which any few of the options take all of their values together.

    A fault is nearly always caused by the values of one, two or three options; see Kuhn, Wallace and Gallo, "Software fault
    interactions and implications for software testing", IEEE Transactions on Software Engineering 30 (2004).

    Args:
        options: The values of each option.
        together: How many options take all of their values together.

    Returns:
        Combinations of one value per option, in the order of their product.
    """
    places = list(combinations(range(len(options)), together))
    everything = list(product(*(range(len(values)) for values in options)))
    parts = {one: {(place, tuple(one[i] for i in place)) for place in places} for one in everything}
    missing = set().union(*parts.values())
    order = random.Random(0).sample(everything, len(everything))
    chosen: set[tuple[int, ...]] = set()
    for least in range(len(places), 0, -1):  # those first that bring the most
        for one in order:
            if len(parts[one] & missing) >= least:
                chosen.add(one)
                missing -= parts[one]
        if not missing:
            break
    return [tuple(values[i] for values, i in zip(options, one, strict=True)) for one in sorted(chosen)]

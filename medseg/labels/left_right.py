"""Pairs of label names that differ only by two opposite words, such as left and right."""

from __future__ import annotations

import re
from collections.abc import Sequence


def opposite_names(names: Sequence[str], word: str, opposite: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs among `names` that differ only by two opposite words.

    A word is found in ``left_lung``, ``lungLeft`` and ``LEFT LUNG``, but not in ``cleft``.

    Args:
        names: Names of labels.
        word: Word in the first name of a pair, in lower case.
        opposite: Word in the second name, in lower case.

    Returns:
        Pairs of names, in the order of `names`.

    Examples:
        >>> opposite_names(["kidneyLeft", "kidneyRight", "cleft_left"], "left", "right")
        (('kidneyLeft', 'kidneyRight'),)
    """
    pattern = _word_pattern(word)
    pairs = ((name, pattern.sub(lambda m: _in_case_of(m.group(), opposite), name)) for name in names)
    return tuple((one, other) for one, other in pairs if one != other and other in names)


def _word_pattern(word: str) -> re.Pattern[str]:
    title, upper = word.capitalize(), word.upper()
    return re.compile(
        rf"(?<![a-z]){word}(?![a-z])|(?<=[a-z]){title}|(?<![A-Za-z])(?:{title}|{upper})(?![a-z])"
    )


def _in_case_of(found: str, word: str) -> str:
    """Return `word` in the letter case of `found`."""
    return word.upper() if found.isupper() else word.capitalize() if found[0].isupper() else word

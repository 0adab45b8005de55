"""Parts of a list of cases, for the jobs of an array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from medseg.errors import ConfigError

_Item = TypeVar("_Item")
_PATTERN = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Part:
    """One of several parts of a list: every `count`-th item, from the `index`-th on.

    Parts of one list have no item in common and together contain all items. Their lengths differ by at most one.

    Attributes:
        index: Number of the part, from 1.
        count: Number of parts.

    Examples:
        >>> [Part.parse(f"{number}/2").of("abcde") for number in (1, 2)]
        ['ace', 'bd']
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part such as ``2/8``.

        Args:
            text: Number of the part and number of parts.

        Returns:
            The part.

        Raises:
            ConfigError: The text has another form, or the part does not exist.
        """
        match = _PATTERN.fullmatch(text.strip())
        index, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= index <= count:
            raise ConfigError(
                f"part: found {text!r}, expected I/N with I from 1 to N, such as 2/8 for the second of eight parts. Correct it."
            )
        return cls(index, count)

    def of(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return the items of this part.

        Args:
            items: The list, in the same order for all parts.

        Returns:
            The items, in the same order.
        """
        return items[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

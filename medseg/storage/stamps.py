"""A short hash of plain values, by which a change of any of them is recognised."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def short_hash(facts: Any) -> str:
    """Return a hash that changes with any of `facts`.

    Args:
        facts: Plain values, as JSON holds them.

    Returns:
        16 hexadecimal digits. The order of keys does not matter.

    >>> short_hash([1, "a"]) == short_hash([1, "b"])
    False
    """
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()

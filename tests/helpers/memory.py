"""The memory that a function takes, measured in a process that does other work, too."""

from __future__ import annotations

import gc
from collections.abc import Callable

from medseg.runtime.memory import PeakMemory


def memory_taken(function: Callable[[], object], at_most: float, attempts: int = 4) -> int:
    """Return by how many bytes the resident memory of this process grows while a function runs.

    Libraries allocate memory of their own in the first call, and other threads of the process at any moment. Both only add to
    what the function takes, so the least of several attempts is returned.

    Args:
        function: The function.
        at_most: Bytes; the first attempt that takes no more is the last one.
        attempts: Number of attempts.
    """
    least = None
    for _ in range(attempts):
        gc.collect()
        with PeakMemory(0.0005) as memory:
            function()
        least = memory.taken if least is None else min(least, memory.taken)
        if least <= at_most:
            break
    assert least is not None
    return least

"""Freed memory stays with the process instead of going back to the system between forward passes.

glibc returns every large block to the system as soon as it is freed. A network frees and allocates several gigabytes
per forward pass, and the system clears each page again, which takes a fifth of the time of a pass on a CPU.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Parameters of glibc's mallopt, and its defaults.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULT_TRIM, _DEFAULT_MMAP_MAX = 128 << 10, 65536
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc raises it up to this value by itself when large blocks are freed

# The settings belong to the process, so the contexts that need them are counted for the whole process.
_LOCK = threading.Lock()
_INSIDE: list[Any] = []


@contextmanager
def keep_freed_memory(enabled: bool = True) -> Iterator[None]:
    """Keep freed memory within the process inside this context, and return it to the system afterwards.

    Peak memory may grow, because a new block may fit into none of the freed ones, so this is not for tight budgets.
    Contexts may be nested and used by several threads; the last one that ends returns the memory.

    Args:
        enabled: False has no effect; nor has True if the C library is not glibc.
    """
    library = _glibc() if enabled else None
    if library is None:
        yield
        return
    with _LOCK:
        if not _INSIDE:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, -1)  # never
        _INSIDE.append(library)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.pop()
            if not _INSIDE:
                _give_back(library)


def _give_back(library: Any) -> None:
    library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
    library.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library of this process if it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)

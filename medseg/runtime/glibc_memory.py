"""Memory that the process keeps instead of giving it back and asking for it again.

The C library returns every large block to the system as soon as it is freed. A network frees and allocates several
gigabytes with each pass, and the system clears each page anew: a fifth of the time of a pass on a processor.
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
_LARGEST_MMAP_THRESHOLD = 32 << 20  # to which the library raises it by itself when large blocks are freed

# The settings are the process's, and so is the number of contexts that need them.
_LOCK = threading.Lock()
_INSIDE: list[Any] = []


@contextmanager
def keep_freed_memory(wanted: bool = True) -> Iterator[None]:
    """Context in which freed memory stays with the process; what is free at its end is given back.

    Peaks grow by what fits nowhere among the freed blocks, so it is not for tight budgets. Contexts may lie in each other,
    and in several threads: the last that ends gives back.

    Args:
        wanted: False changes nothing, as where the C library is not glibc.
    """
    library = _glibc() if wanted else None
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
    """The C library of this process if it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)

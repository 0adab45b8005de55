"""Recognise a lack of memory, which every library reports in its own way; does not import torch."""

from __future__ import annotations

import errno
import sys


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory of the host or of a device did not suffice.

    numpy raises `MemoryError`, torch a `RuntimeError` of its allocator on the processor and `torch.OutOfMemoryError` on a
    device, and the system an `OSError` with ``ENOMEM``. Errors that were raised from such an error count, too.

    Args:
        error: Any error.

    Returns:
        True for a lack of memory.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("memory"))
    (True, False)
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        if is_out_of_device_memory(cause):
            return True
        text = str(cause)
        if isinstance(cause, RuntimeError) and ("DefaultCPUAllocator" in text or "bad_alloc" in text):
            return True
        cause = cause.__cause__
    return False


def is_out_of_device_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a device did not suffice."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def out_of_memory_reason(error: BaseException) -> str:
    """Return the first sentence of the library's own message on one line, at most 200 characters long."""
    text = " ".join(str(error).split())
    # torch names the line of its source in front of the reason.
    return (
        text.rpartition("DefaultCPUAllocator: ")[2].split(". ")[0][:200] or "an array could not be allocated"
    )

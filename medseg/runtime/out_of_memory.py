"""Recognise a lack of memory, which every library reports in its own way; does not import torch."""

from __future__ import annotations

import errno
import re

_TEXTS = (
    "can't allocate memory",  # torch on the CPU
    "not enough memory",  # torch on the CPU, on Windows
    "bad_alloc",  # C++
    "bad allocation",  # C++, on Windows
    "Failed to allocate memory",  # ITK
    "out of memory",  # CUDA's runtime
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory of the host or of a device did not suffice.

    Python and numpy raise `MemoryError`, torch a `RuntimeError`: its subclass `torch.OutOfMemoryError` on devices, one with
    a sentence on the CPU. The system raises an `OSError` with ``ENOMEM``.

    Args:
        error: Any error.

    Returns:
        True for a lack of memory, and for an error that was raised from one.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("memory"))
    (True, False)
    """
    cause: BaseException | None = error
    while cause is not None:
        if _says_so(cause):
            return True
        cause = cause.__cause__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def out_of_memory_reason(error: BaseException) -> str:
    """Return the first sentence of the library's own message on one line, at most 200 characters long."""
    text = " ".join(str(error).split())
    # torch names the line of its source in front of the reason.
    text = text.rpartition("DefaultCPUAllocator: ")[2]
    # A full stop after a digit is a decimal point: numpy writes "9. TiB".
    # ITK names its function, or the line of its source.
    text = re.sub(r"^Exception thrown in SimpleITK \w+: |\S+\.[ch]xx:\d+: ", "", text)
    sentence = re.split(r"(?<!\d)\. ", text, maxsplit=1)[0]
    return sentence[:200].rstrip(".") or "an array could not be allocated"

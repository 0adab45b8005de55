"""The log of the service: one line per event of a job, without anything that identifies a patient."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from typing import TextIO


class EventLog:
    r"""A log of one line per event: time, event and plain values.

    Callers pass identifiers of jobs, states, sizes and durations only; never names of files, headers of images or messages,
    which may contain either.

    Args:
        stream: Where lines are written; None for standard error at the time of each event.

    Examples:
        >>> import io
        >>> stream = io.StringIO()
        >>> EventLog(stream)("queued", job="5e2f", bytes=1200)
        >>> stream.getvalue().split(" ", 1)[1]
        'queued job=5e2f bytes=1200\n'
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: str, **values: str | int | float) -> None:
        """Write a line.

        Args:
            event: The event, one word.
            **values: Values by name.
        """
        shown = (f"{k}={v:.1f}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock:
            print(time, event, *shown, file=self._stream or sys.stderr, flush=True)

"""Stop requests: a signal sets a flag, and the loop acts on it at the next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from medseg.errors import MedsegError

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


class Interrupted(MedsegError):
    """Training stopped on request after saving its state.

    Args:
        message: What was saved and how to continue.
        received: Number of the signal.

    Attributes:
        exit_code: 130 for SIGINT (keyboard), 143 for other signals.
    """

    def __init__(self, message: str, received: int) -> None:
        super().__init__(message)
        self.exit_code = 130 if received == signal.SIGINT else 143


class StopRequest:
    """Context in which the first stop signal is only recorded; the second acts at once.

    Args:
        record_all: Only record further signals, too, because torchrun passes on to each process what a scheduler or Ctrl-C
            has already sent to all of them.

    Attributes:
        received: Number of the signal; None if there was none. Outside the main thread, signals are left alone.
    """

    def __init__(self, *, record_all: bool = False) -> None:
        self._record_all = record_all
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (
                    signal.getsignal(number) is not None
                ):  # a handler of a program around Python could not be restored
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self._record_all:
            self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

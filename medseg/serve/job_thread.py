"""A thread that works on one job after the other, until the service ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from medseg.errors import MedsegError
from medseg.serve.event_log import EventLog
from medseg.serve.job import Job
from medseg.serve.job_store import JobStore
from medseg.serve.worker.model_worker import Stopped

_TICK = 0.5  # seconds between two searches for a job


class JobThread:
    """A thread that works on jobs: it waits for one, is woken for it, and survives jobs that fail.

    Args:
        name: Name of the thread.
        store: The jobs; a job whose state cannot be recorded, as on a full disk, is given up.
        log: Receives the errors.
        next_job: Returns the next job; None if there is nothing to do.
        work: Works on a job.
        patience: Seconds that `stop` waits for the thread.
        context: Returns what the thread enters before its first job and leaves at its end, such as a process that must be
            started and ended by the same thread.
    """

    def __init__(
        self,
        name: str,
        store: JobStore,
        log: EventLog,
        *,
        next_job: Callable[[], Job | None],
        work: Callable[[Job], None],
        patience: float,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._store, self._log, self._patience = store, log, patience
        self._next_job, self._work, self._context = next_job, work, context
        self._stop, self._wake, self._ready = threading.Event(), threading.Event(), threading.Event()
        self._error: MedsegError | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    @property
    def is_stopping(self) -> bool:
        """Whether the thread was asked to end."""
        return self._stop.is_set()

    @property
    def is_working(self) -> bool:
        """Whether jobs are worked on."""
        return self._thread.is_alive() and not self.is_stopping

    def start(self) -> None:
        """Start the thread, and wait until it has entered its context.

        Raises:
            MedsegError: The context cannot be entered.
        """
        self._thread.start()
        while not self._ready.wait(_TICK):  # not forever, so that Ctrl-C is noticed on every system
            pass
        if self._error is not None:
            raise self._error

    def wake(self) -> None:
        """Let the thread search for a job at once."""
        self._wake.set()

    def request_stop(self) -> None:
        """Ask the thread to end soon."""
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end, and wait some seconds for it."""
        self.request_stop()
        if self._thread.is_alive():
            self._thread.join(self._patience)

    def _serve(self) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._context())
            except MedsegError as error:
                self._error = error
                return
            except Stopped:
                return
            finally:
                self._ready.set()
            while not self.is_stopping:
                self._wake.clear()
                job = self._next_job()
                if job is None:
                    self._wake.wait(_TICK)
                else:
                    self._work_safely(job)

    def _work_safely(self, job: Job) -> None:
        """Work on a job; an error of it must not end the thread."""
        try:
            self._work(job)
        except MedsegError as error:
            self._log("error", job=job.id, place=type(error).__name__)
            self._store.give_up(job.id)

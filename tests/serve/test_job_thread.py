"""The thread of a service: it survives what goes wrong with one job, and ends when asked."""

from __future__ import annotations

import io
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medseg.errors import DataError, ModelError
from medseg.serve.event_log import EventLog
from medseg.serve.job import Job, JobState
from medseg.serve.job_store import JobStore
from medseg.serve.job_thread import JobThread
from medseg.serve.settings import ServiceSettings
from medseg.serve.worker.model_worker import Stopped

PATIENCE = 60.0


class Fixture:
    """A thread whose jobs a test gives; jobs of the owner "bad" fail."""

    def __init__(self, folder: Path, failure: Exception | None = None) -> None:
        self.written = io.StringIO()
        log = EventLog(self.written)
        self.store = JobStore(ServiceSettings(folder), log)
        self.events: queue.Queue[str] = queue.Queue()
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._failure = failure
        self.thread = JobThread(
            "test",
            self.store,
            log,
            next_job=self._next,
            work=self._work,
            patience=PATIENCE,
            context=self._context,
        )

    def add(self, owner: str) -> Job:
        job = self.store.create(owner)
        self._jobs.put(job)
        self.thread.wake()
        return job

    def _next(self) -> Job | None:
        return None if self._jobs.empty() else self._jobs.get()

    def _work(self, job: Job) -> None:
        if job.owner == "bad":
            raise DataError("disk: not written.")
        self.events.put(job.id)

    @contextmanager
    def _context(self) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        self.events.put("entered")
        yield
        self.events.put("left")


def test_a_job_that_fails_is_given_up_and_the_next_one_follows(tmp_path: Path) -> None:
    found = Fixture(tmp_path)
    found.thread.start()
    assert found.events.get_nowait() == "entered"  # before `start` returns
    assert found.thread.is_working
    bad, good = found.add("bad"), found.add("good")
    assert found.events.get(timeout=PATIENCE) == good.id
    assert found.store.get(bad.id).state is JobState.FAILED
    assert f"error job={bad.id} place=DataError" in found.written.getvalue()
    found.thread.stop()
    assert found.events.get_nowait() == "left"  # before `stop` returns
    assert found.thread.is_stopping
    assert not found.thread.is_working


def test_an_error_of_the_context_is_raised_by_start(tmp_path: Path) -> None:
    found = Fixture(tmp_path, ModelError("model: damaged."))
    with pytest.raises(ModelError, match="damaged"):
        found.thread.start()
    found.thread.stop()
    assert not found.thread.is_working
    assert found.events.empty()


def test_a_context_that_is_stopped_while_it_is_entered_ends_the_thread_silently(tmp_path: Path) -> None:
    found = Fixture(tmp_path, Stopped())
    found.thread.start()
    found.thread.stop()
    assert not found.thread.is_working
    assert found.events.empty()


def test_a_thread_that_never_began_can_be_stopped(tmp_path: Path) -> None:
    Fixture(tmp_path).thread.stop()

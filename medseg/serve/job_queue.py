"""The queue: one thread that gives the jobs to the prediction process, in the order of their arrival."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from medseg.errors import MedsegError
from medseg.serve.event_log import EventLog
from medseg.serve.job import Failure, Job, JobState
from medseg.serve.job_store import JobStore
from medseg.serve.job_thread import JobThread
from medseg.serve.refusals import RequestRefused
from medseg.serve.worker.messages import Failed, Finished, ModelInfo, Task
from medseg.serve.worker.model_worker import Stopped

_PATIENCE = 15.0  # seconds for the thread to end
_UNPACKED = 10  # an archive may expand to this multiple of the largest upload


class Worker(Protocol):
    """What predicts: `ModelWorker`."""

    models: tuple[ModelInfo, ...]

    @property
    def is_running(self) -> bool:
        """Whether it can predict."""

    def start(self, stopped: Callable[[], bool]) -> None:
        """Load the models."""

    def predict(
        self,
        task: Task,
        timeout: float,
        stopped: Callable[[], bool],
        progress: Callable[[int, int], None],
    ) -> Finished | Failed:
        """Predict a job."""

    def stop(self) -> str:
        """End the process."""


class JobQueue:
    """The jobs that wait for their prediction, and the thread that predicts them.

    Args:
        store: The jobs.
        worker: The prediction process.
        log: Receives the events.

    Attributes:
        thread: The thread. It loads the models when it is started; a job that runs when it is stopped will wait again.
        progress: Windows that are done and their number, of the job that runs.
    """

    def __init__(self, store: JobStore, worker: Worker, log: EventLog) -> None:
        self.progress: dict[str, tuple[int, int]] = {}
        self._store, self._worker, self._log = store, worker, log
        self.thread = JobThread(
            "medseg serve: queue",
            store,
            log,
            next_job=self._next,
            work=self._run,
            patience=_PATIENCE,
            context=self._started_worker,
        )

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The loaded models."""
        return self._worker.models

    @contextmanager
    def _started_worker(self) -> Iterator[None]:
        """Start the prediction process, which ends with the thread that started it, and stop it at the end."""
        self._worker.start(lambda: self.thread.is_stopping)
        try:
            yield
        finally:
            self._worker.stop()

    def _next(self) -> Job | None:
        self._store.expire()
        return self._store.next()

    def _run(self, job: Job) -> None:
        try:
            self._predict(job)
        except Stopped:
            self._take_back(job)
        except RequestRefused:  # deleted before it began
            pass
        finally:
            self.progress.pop(job.id, None)

    def _predict(self, job: Job) -> None:
        if not self._worker.is_running and not self._restart(job):
            return
        job = self._store.update(job.id, state=JobState.RUNNING, started=time.time(), starts=job.starts + 1)
        self._log("started", job=job.id)
        settings = self._store.settings
        unpacked = min(self._store.free_space, _UNPACKED * settings.max_upload)
        task = Task(self._store.folder_of(job.id), job.upload, job.model, job.suffix, job.series, unpacked)

        def note(done: int, total: int) -> None:
            self.progress[job.id] = done, total

        answer = self._worker.predict(task, settings.timeout, lambda: self._is_unwanted(job.id), note)
        if isinstance(answer, Finished):
            state = JobState.STORING if job.store else JobState.DONE
            self._finish(job, state, label_map_hash=answer.label_map_hash, notes=answer.notes)
            return
        if answer.place:
            self._log("error", job=job.id, place=answer.place)
        self._finish(job, JobState.FAILED, message=answer.message, failure=answer.failure)

    def _finish(self, job: Job, state: JobState, **changes: object) -> None:
        try:
            if state is JobState.STORING:
                self._store.update(job.id, state=state, **changes)
                self._log("predicted", job=job.id)
            else:
                self._store.finish(job.id, state, **changes)
        except RequestRefused:  # deleted at this moment
            self._store.remove_files(job.id)

    def _restart(self, job: Job) -> bool:
        """Start the process again; if that fails, so does the job."""
        try:
            self._worker.start(lambda: self._is_unwanted(job.id))
        except MedsegError as error:
            self._log("error", job=job.id, place=type(error).__name__)
            message = "the models cannot be loaded. Ask the administrator of the service."
            self._store.finish(job.id, JobState.FAILED, message=message, failure=Failure.INTERNAL)
            return False
        return True

    def _is_unwanted(self, job_id: str) -> bool:
        return self.thread.is_stopping or not self._exists(job_id)

    def _exists(self, job_id: str) -> bool:
        try:
            self._store.get(job_id)
        except RequestRefused:
            return False
        return True

    def _take_back(self, job: Job) -> None:
        """Let a stopped job wait again, with the number of starts that it had; or remove what is left of a deleted one."""
        if self._exists(job.id):
            self._store.update(job.id, state=JobState.QUEUED, started=None, starts=job.starts)
            self._log("requeued", job=job.id)
        else:
            self._store.remove_files(job.id)

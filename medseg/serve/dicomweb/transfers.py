"""The exchange with the DICOMweb server: one thread that retrieves series before, and stores label maps after their prediction."""

from __future__ import annotations

import time
from collections.abc import Callable

from medseg.errors import DataError, MedsegError, ResourceError
from medseg.io.dicomweb.server import DicomWeb
from medseg.io.dicomweb.web_session import DicomWebError
from medseg.runtime.memory import format_size
from medseg.serve.event_log import EventLog
from medseg.serve.job import RETRIEVED, Failure, Job, JobState
from medseg.serve.job_store import JobStore
from medseg.serve.job_thread import JobThread
from medseg.serve.refusals import RequestRefused

_PATIENCE = 5.0  # seconds for the thread to end, which may wait for the server
_DELETED = 404
_LOCAL = "the files of this job cannot be written or read, often because the disk is full. Ask the administrator of the service."


class _TransferEnded(MedsegError):
    """A transfer is not wanted any more: its job was deleted, or the service ends."""


class Transfers:
    """The thread that retrieves series and stores label maps, those that are predicted first.

    A slow server delays the jobs that need it, but no uploads.

    Args:
        server: The DICOMweb server.
        store: The jobs.
        log: Receives the events.
        retrieved: Called when a job may be predicted.

    Attributes:
        server: The DICOMweb server.
        thread: The thread. A transfer that runs when it is stopped will begin again at the next start.
        received: Bytes that have arrived, of the job whose series is retrieved.
    """

    def __init__(
        self, server: DicomWeb, store: JobStore, log: EventLog, retrieved: Callable[[], None]
    ) -> None:
        self.server = server
        self.received: dict[str, int] = {}
        self._store, self._log, self._retrieved = store, log, retrieved
        self.thread = JobThread(
            "medseg serve: DICOMweb",
            store,
            log,
            next_job=store.next_transfer,
            work=self._run,
            patience=_PATIENCE,
        )

    def _run(self, job: Job) -> None:
        try:
            self._transfer(job)
        except (_TransferEnded, RequestRefused):  # deleted, or the service ends
            self._forget_deleted(job)
        finally:
            self.received.pop(job.id, None)

    def _transfer(self, job: Job) -> None:
        try:
            if job.state is JobState.STORING:
                self.server.store(self._store.folder_of(job.id) / job.label_map)
                self._store.finish(job.id, JobState.DONE, stored=True)
            else:
                self._retrieve(job)
        except _TransferEnded:
            raise
        except RequestRefused as error:
            if error.status == _DELETED:
                raise
            self._fail(job, str(error), Failure.RESOURCES)
        except DicomWebError as error:
            if self.thread.is_stopping:  # the next start tries again
                raise _TransferEnded from None
            self._fail(job, str(error), Failure.DICOMWEB)
        except (DataError, ResourceError) as error:
            self._log("error", job=job.id, place=type(error).__name__)
            self._fail(job, _LOCAL, Failure.RESOURCES)

    def _retrieve(self, job: Job) -> None:
        self._log("retrieving", job=job.id)
        self._store.remove_input(job.id)  # of an earlier start
        folder = self._store.folder_of(job.id) / RETRIEVED
        count = self.server.retrieve(job.study_uid, job.series_uid, folder, watch=self._limits(job))
        self._store.update(job.id, state=JobState.QUEUED, upload=RETRIEVED)
        self._log("queued", job=job.id, bytes=self.received.get(job.id, 0), images=count)
        self._retrieved()

    def _limits(self, job: Job) -> Callable[[int], None]:
        """Return the function that ends a retrieval beyond the limits of the service."""
        settings, claimed = self._store.settings, 0
        end = time.monotonic() + settings.timeout

        def watch(received: int) -> None:
            nonlocal claimed
            self.received[job.id] = received
            if self.thread.is_stopping:
                raise _TransferEnded
            if received > settings.max_upload:
                raise DicomWebError(
                    f"series: found more than {format_size(settings.max_upload)}, the limit of the service. Choose a smaller series."
                )
            if time.monotonic() > end:
                raise DicomWebError(
                    f"series: not retrieved within {settings.timeout:.0f} seconds, the limit of the service. Try again later."
                )
            if received > claimed:
                claimed = self._store.claim_beyond(job.id, received)
            else:
                self._store.get(job.id)  # raises if it was deleted

        return watch

    def _fail(self, job: Job, message: str, failure: Failure) -> None:
        self._store.finish(job.id, JobState.FAILED, message=message, failure=failure)

    def _forget_deleted(self, job: Job) -> None:
        """Remove what is left of a job if it was deleted."""
        try:
            self._store.get(job.id)
        except RequestRefused:
            self._store.remove_files(job.id)

"""The service: jobs, tokens, queue and models together, independent of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.io.dicomweb.server import DicomWeb
from medseg.serve.dicomweb.series_requests import SeriesRequest, checked_series
from medseg.serve.dicomweb.transfers import Transfers
from medseg.serve.event_log import EventLog
from medseg.serve.job import ARCHIVE, FORMATS, REPORT, SINGLE_FILES, Failure, Job, JobState
from medseg.serve.job_queue import JobQueue, Worker
from medseg.serve.job_store import JobStore
from medseg.serve.job_thread import JobThread
from medseg.serve.refusals import RequestRefused
from medseg.serve.settings import ServiceSettings
from medseg.serve.tokens import Tokens


@dataclass(frozen=True)
class JobRequest:
    """What a client wants of its image.

    Attributes:
        model: Identifier of the model.
        suffix: File format of the label map.
        series: Number or UID of the DICOM series in an archive; empty if only one is a volume.
        upload: Neutral name of the image in the job's folder.
    """

    model: str
    suffix: str
    series: str
    upload: str


class Service:
    """The jobs of a folder and the models that predict them.

    Args:
        settings: Folder and limits.
        tokens: Accepted tokens.
        worker: The prediction process.
        log: Receives the events.
        dicomweb: Server whose series are predicted on request; None for uploads only.

    Attributes:
        settings: As given.
        tokens: As given.
        store: The jobs.
        queue: What predicts them.
        transfers: The exchange with the DICOMweb server; None without one.
        log: As given.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        tokens: Tokens,
        worker: Worker,
        log: EventLog | None = None,
        dicomweb: DicomWeb | None = None,
    ) -> None:
        self.settings, self.tokens = settings, tokens
        self.log = log or EventLog()
        self.store = JobStore(settings, self.log)
        self.queue = JobQueue(self.store, worker, self.log)
        self.transfers = (
            None if dicomweb is None else Transfers(dicomweb, self.store, self.log, self.queue.thread.wake)
        )

    def start(self) -> None:
        """Load the models and begin with the jobs that wait.

        Raises:
            ModelError: A model cannot be loaded.
        """
        if self.transfers is None:
            self._fail_transfers()
        for thread in self._threads:
            thread.start()

    def request_stop(self) -> None:
        """Let everything end soon; jobs that are not finished continue at the next start."""
        for thread in self._threads:
            thread.request_stop()

    def stop(self) -> None:
        """Let everything end, and wait for it."""
        self.request_stop()
        for thread in self._threads:
            thread.stop()

    @property
    def _threads(self) -> tuple[JobThread, ...]:
        """The threads, the first of which loads the models."""
        if self.transfers is None:
            return (self.queue.thread,)
        return self.queue.thread, self.transfers.thread

    @property
    def is_working(self) -> bool:
        """Whether jobs are predicted."""
        return self.queue.thread.is_working

    @property
    def is_ending(self) -> bool:
        """Whether the service ends, so that open streams of events have to."""
        return self.queue.thread.is_stopping

    def models(self) -> list[dict[str, Any]]:
        """Return the models as plain values."""
        return [asdict(model) for model in self.queue.models]

    def check_request(self, fields: Mapping[str, str], file_name: str) -> JobRequest:
        """Check what a client wants before its image is received.

        Args:
            fields: The fields ``model`` (not needed if there is one only), ``format`` (with or without its first dot; by default
                ``.nii.gz``) and ``series``.
            file_name: Name of the image, whose suffix is its format.

        Returns:
            What is wanted.

        Raises:
            RequestRefused: There is no such model or format, or they do not fit.
        """
        model, suffix = self._checked(fields.get("model", ""), fields.get("format", ""))
        name = file_name.lower()
        ending = next((one for one in (*SINGLE_FILES, ARCHIVE) if name.endswith(one)), None)
        if ending is None:
            raise RequestRefused(
                415,
                f"file: found a name with an unknown suffix, expected {', '.join((*SINGLE_FILES, ARCHIVE))}. Send one image, or a zip archive of one DICOM series.",
            )
        if suffix.endswith(".dcm") and ending not in (ARCHIVE, ".dcm"):
            raise RequestRefused(
                422,
                f"format: found {suffix} for an image that is no DICOM series, expected .nii.gz, .nrrd or .seg.nrrd. A DICOM segmentation refers to the "
                "images of its source: choose another format, or send the DICOM series.",
            )
        return JobRequest(model, suffix, fields.get("series", "").strip(), f"image{ending}")

    def _checked(self, model: str, suffix: str) -> tuple[str, str]:
        """Return the identifier of a model and the suffix of a format; raise if there is no such one."""
        known = [one.id for one in self.queue.models]
        if model not in known and (model or len(known) > 1):
            found = "no such model" if model else "none"
            raise RequestRefused(
                422, f"model: found {found}, expected one of {', '.join(known)}. Choose one."
            )
        suffix = f".{suffix.lstrip('.')}" if suffix else FORMATS[0]
        if suffix not in FORMATS:
            raise RequestRefused(
                422, f"format: found an unknown one, expected one of {', '.join(FORMATS)}. Choose one."
            )
        return model or known[0], suffix

    def view(self, job: Job) -> dict[str, Any]:
        """Return what clients see of a job, as plain values."""
        done, total = self.queue.progress.get(job.id, (0, 0))
        received = self.transfers.received.get(job.id) if self.transfers is not None else None
        running = job.state is JobState.RUNNING
        return {
            "id": job.id,
            "state": job.state.value,
            "model": job.model,
            "format": job.suffix.removeprefix("."),
            "created": _time(job.created),
            "started": _time(job.started),
            "finished": _time(job.finished),
            "deleted": _time(None if job.finished is None else job.finished + self.settings.keep),
            "position": self.store.position(job),
            "progress": {"done": done, "total": total} if running and total else None,
            "received": received,
            "failure": job.failure,
            "message": job.message,
            "notes": list(job.notes),
            "label_map_hash": job.label_map_hash,
            "has_result": job.is_finished and job.has_result,
            "study": job.study_uid,
            "series": job.series_uid,
            "stored": job.stored,
        }

    def submit(self, job: Job, wanted: JobRequest) -> Job:
        """Let a job whose image is complete wait for its prediction.

        Args:
            job: The job.
            wanted: What the client wants.

        Returns:
            The waiting job.
        """
        size = (self.store.folder_of(job.id) / wanted.upload).stat().st_size
        job = self.store.update(job.id, state=JobState.QUEUED, **asdict(wanted))
        self.log("queued", job=job.id, bytes=size)
        self.queue.thread.wake()
        return job

    def retrieve(self, wanted: SeriesRequest, owner: str) -> Job:
        """Create a job for a series of the DICOMweb server.

        Args:
            wanted: The series and what to do with it.
            owner: Identifier of the token.

        Returns:
            The job, whose series is retrieved as soon as others before it are.

        Raises:
            RequestRefused: The request cannot be fulfilled, or the queue is full.
        """
        assert self.transfers is not None
        model, suffix = self._checked(wanted.model, wanted.format)
        study, series = checked_series(wanted, suffix)
        job = self.store.create(owner)
        changes = {
            "model": model,
            "suffix": suffix,
            "study_uid": study,
            "series_uid": series,
            "store": wanted.store,
        }
        try:
            job = self.store.update(job.id, state=JobState.RETRIEVING, **changes)
        except BaseException:
            self.store.remove(job.id, "refused")
            raise
        self.transfers.thread.wake()
        return job

    def store_again(self, job_id: str, owner: str) -> Job:
        """Let the label map of a finished job be stored on the DICOMweb server again, or for the first time.

        Args:
            job_id: The job.
            owner: Identifier of the token.

        Returns:
            The job.

        Raises:
            RequestRefused: There is no such job, or it has no DICOM object to store.
        """
        assert self.transfers is not None
        job = self.store.get(job_id, owner)
        if not (job.is_finished and job.has_result and job.study_uid and job.suffix.endswith(".dcm")):
            raise RequestRefused(
                409,
                f"job: found it {job.state.value}, expected a label map in a format of DICOM of a series of the DICOMweb server. Choose another job.",
            )
        changes = {"message": "", "failure": None, "finished": None, "store": True}
        job = self.store.update(job_id, state=JobState.STORING, **changes)
        self.transfers.thread.wake()
        return job

    def _fail_transfers(self) -> None:
        """Let jobs of an earlier service with a DICOMweb server fail, because nothing would continue them."""
        while (job := self.store.next_transfer()) is not None:
            message = "the service was started without the DICOMweb server. Ask its administrator to start it with --dicomweb."
            self.store.finish(job.id, JobState.FAILED, message=message, failure=Failure.DICOMWEB)

    def fail_upload(self, job: Job, message: str) -> Job:
        """Record that an upload ended early.

        Args:
            job: The job.
            message: What happened.

        Returns:
            The failed job.
        """
        return self.store.finish(job.id, JobState.FAILED, message=message, failure=Failure.TRUNCATED)

    def delete(self, job_id: str, owner: str) -> None:
        """Delete a job, also while it waits or runs.

        Args:
            job_id: The job.
            owner: Identifier of the token.

        Raises:
            RequestRefused: There is no such job, or it is being uploaded.
        """
        job = self.store.get(job_id, owner)
        if job.state is JobState.UPLOADING:
            raise RequestRefused(
                409, "job: found an upload that is not complete, expected its end. End the upload first."
            )
        self.store.remove(job_id)

    def result(self, job_id: str, owner: str, *, report: bool = False) -> tuple[Job, Path]:
        """Return a finished job and its label map or report.

        Args:
            job_id: The job.
            owner: Identifier of the token.
            report: Whether the page with the viewer is wanted.

        Returns:
            The job and the file.

        Raises:
            RequestRefused: There is no such job, or it is not done.
        """
        job = self.store.get(job_id, owner)
        if not (job.is_finished and job.has_result):
            reason = f" ({job.message})" if job.message else ""
            raise RequestRefused(
                409, f"job: found it {job.state.value}{reason}, expected it done. Wait until it is done."
            )
        return job, self.store.folder_of(job_id) / (REPORT if report else job.label_map)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

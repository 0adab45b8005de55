"""The service: jobs, tokens, queue and models together, independent of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.serve.event_log import EventLog
from medseg.serve.job import ARCHIVE, FORMATS, REPORT, SINGLE_FILES, Failure, Job, JobState
from medseg.serve.job_queue import JobQueue, Worker
from medseg.serve.job_store import JobStore
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

    Attributes:
        settings: As given.
        tokens: As given.
        store: The jobs.
        queue: What predicts them.
        log: As given.
    """

    def __init__(
        self, settings: ServiceSettings, tokens: Tokens, worker: Worker, log: EventLog | None = None
    ) -> None:
        self.settings, self.tokens = settings, tokens
        self.log = log or EventLog()
        self.store = JobStore(settings, self.log)
        self.queue = JobQueue(self.store, worker, self.log)

    @property
    def is_ending(self) -> bool:
        """Whether the service ends, so that open streams of events have to."""
        return self.queue.is_stopping

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
        model, suffix = fields.get("model", ""), fields.get("format", "")
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
        return JobRequest(model or known[0], suffix, fields.get("series", "").strip(), f"image{ending}")

    def view(self, job: Job) -> dict[str, Any]:
        """Return what clients see of a job, as plain values."""
        done, total = self.queue.progress.get(job.id, (0, 0))
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
            "failure": job.failure,
            "message": job.message,
            "notes": list(job.notes),
            "label_map_hash": job.label_map_hash,
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
        self.queue.wake()
        return job

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
        if job.state is not JobState.DONE:
            reason = f" ({job.message})" if job.message else ""
            raise RequestRefused(
                409, f"job: found it {job.state.value}{reason}, expected it done. Wait until it is done."
            )
        return job, self.store.folder_of(job_id) / (REPORT if report else job.label_map)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

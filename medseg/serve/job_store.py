"""The jobs of the service: one folder each with a ``job.json``, which survive the end of the program."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg.errors import DataError, MedsegError
from medseg.runtime.memory import format_size
from medseg.serve.event_log import EventLog
from medseg.serve.job import OUTPUT, REPORT, TRANSFERS, WAITING, Failure, Job, JobState
from medseg.serve.refusals import RequestRefused, no_such_job
from medseg.serve.settings import ServiceSettings
from medseg.storage.atomic import make_folder, write_error, write_text
from medseg.storage.json_files import read_object

RECORD = "job.json"
MOST_STARTS = 3
_CLAIM = 16 * 2**20  # bytes that are reserved ahead for data of unknown size
_RESULTS = {RECORD, OUTPUT, REPORT}


class JobStore:
    """All jobs, in memory and on disk; safe to use from several threads.

    Creating it reads the jobs of an earlier service: finished ones stay, interrupted predictions wait again, interrupted uploads
    have failed.

    Args:
        settings: Folder and limits.
        log: Receives the events.

    Raises:
        DataError: The folder cannot be written, or a job was written by a newer version or damaged.
    """

    def __init__(self, settings: ServiceSettings, log: EventLog) -> None:
        self.settings, self._log = settings, log
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._sizes: dict[str, int] = {}
        self._folder = settings.folder.absolute() / "jobs"
        make_folder(self._folder)
        with suppress(OSError):  # on file systems without permissions
            self._folder.chmod(0o700)
        for folder in sorted(self._folder.iterdir()):
            self._recover(folder)

    def folder_of(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self._folder / job_id

    def create(self, owner: str) -> Job:
        """Create a job whose upload begins.

        Args:
            owner: Identifier of the token.

        Returns:
            The job.

        Raises:
            RequestRefused: The queue is full.
            DiskFullError: The disk is full.
        """
        with self._lock:
            waiting = sum(job.state in WAITING for job in self._jobs.values())
            if waiting >= self.settings.max_queue:
                raise RequestRefused(
                    429,
                    f"queue: found {waiting} jobs, expected fewer than {self.settings.max_queue}. Try again later.",
                )
            job = Job(number=1 + max((job.number for job in self._jobs.values()), default=0), owner=owner)
            try:
                self.folder_of(job.id).mkdir(mode=0o700)
                self._write(job)
            except OSError as error:
                raise write_error(self.folder_of(job.id), error) from None
            except MedsegError:
                self.remove_files(job.id)
                raise
            self._jobs[job.id], self._sizes[job.id] = job, 0
            return job

    def claim_space(self, job_id: str, size: int) -> None:
        """Reserve disk space for a job.

        Args:
            job_id: The job.
            size: Bytes that it takes in total.

        Raises:
            RequestRefused: The quota or the disk does not suffice.
        """
        with self._lock:
            self._require(job_id)
            others = sum(self._sizes.values()) - self._sizes[job_id]
            more = size - self._sizes[job_id]
            quota, free = self.settings.max_disk, shutil.disk_usage(self._folder).free
            if others + size > quota or more > free:
                raise RequestRefused(
                    507,
                    f"disk: found {format_size(min(max(0, quota - others), free))} left for jobs, expected at least {format_size(size)} for "
                    "the upload. Delete finished jobs, or try again later.",
                )
            self._sizes[job_id] = size

    def claim_beyond(self, job_id: str, received: int) -> int:
        """Reserve disk space for data of unknown size, some megabytes more than have arrived.

        Args:
            job_id: The job.
            received: Bytes that have arrived.

        Returns:
            The bytes that are reserved now; nothing has to be reserved until they have arrived.

        Raises:
            RequestRefused: The quota or the disk does not suffice.
        """
        self.claim_space(job_id, received + _CLAIM)
        return received + _CLAIM

    @property
    def free_space(self) -> int:
        """Bytes that further files of jobs may take."""
        with self._lock:
            left = self.settings.max_disk - sum(self._sizes.values())
        return max(0, min(left, shutil.disk_usage(self._folder).free))

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Return a job.

        Args:
            job_id: Its identifier.
            owner: Identifier of the token whose job it has to be; None for any.

        Returns:
            The job as it is now.

        Raises:
            RequestRefused: There is none, or it belongs to another token.
        """
        with self._lock:
            return self._require(job_id, owner)

    def jobs(self, owner: str) -> list[Job]:
        """Return the jobs of a token, the newest first."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.owner == owner]
        return sorted(found, key=lambda job: -job.number)

    def position(self, job: Job) -> int | None:
        """Return the place of a waiting job, 1 for the next one; None for others."""
        if job.state is not JobState.QUEUED:
            return None
        with self._lock:
            return 1 + sum(other.number < job.number for other in self._queued())

    def next(self) -> Job | None:
        """Return the job to predict next; None if none waits."""
        with self._lock:
            return min(self._queued(), key=lambda job: job.number, default=None)

    def next_transfer(self) -> Job | None:
        """Return the job whose series or label map is exchanged with the DICOMweb server next; None if none waits for it."""
        with self._lock:
            waiting = [job for job in self._jobs.values() if job.state in TRANSFERS]
        return min(waiting, key=lambda job: (job.state is not JobState.STORING, job.number), default=None)

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change a job and write its record; one that is predicted or failed loses its input.

        Args:
            job_id: The job.
            **changes: New values of its attributes.

        Returns:
            The changed job.

        Raises:
            RequestRefused: It was deleted meanwhile.
            DataError: The record cannot be written.
        """
        with self._lock:
            job = self._require(job_id).model_copy(update=changes)
            self._write(job)
            self._jobs[job_id] = job
            if job.is_finished or job.has_result:
                self._remove_input(job)
            if job.state is not JobState.UPLOADING:
                self._sizes[job_id] = _size_of(self.folder_of(job_id))
            return job

    def finish(self, job_id: str, state: JobState, **changes: Any) -> Job:
        """Mark a job as done or failed.

        Args:
            job_id: The job.
            state: ``DONE`` or ``FAILED``.
            **changes: New values of other attributes.

        Returns:
            The finished job.
        """
        job = self.update(job_id, state=state, finished=time.time(), **changes)
        seconds = 0.0 if job.started is None or job.finished is None else job.finished - job.started
        reason = {} if job.failure is None else {"failure": job.failure.value}
        self._log(job.state.value, job=job.id, seconds=seconds, **reason)
        return job

    def give_up(self, job_id: str) -> None:
        """Mark a job as failed because its state could not be recorded, for example on a full disk.

        Its files are removed first, which may make room for the record. If it still cannot be written, the job has failed
        until the next start, which begins with the record that exists.

        Args:
            job_id: The job, which may have been deleted meanwhile.
        """
        message = "the state of this job could not be written, often because the disk is full. Ask the administrator of the service."
        changes = {"message": message, "failure": Failure.RESOURCES, "finished": time.time()}
        with self._lock:
            if job_id not in self._jobs:
                return
            job = self._jobs[job_id].model_copy(update={**changes, "state": JobState.FAILED})
            self._remove_input(job)
            self._jobs[job_id], self._sizes[job_id] = job, _size_of(self.folder_of(job_id))
            with suppress(MedsegError):
                self._write(job)
        self._log("failed", job=job_id, failure=Failure.RESOURCES.value)

    def remove(self, job_id: str, event: str = "deleted") -> None:
        """Delete a job with all its files; its prediction is stopped by the queue, which no longer finds it.

        Args:
            job_id: The job.
            event: Word for the log.
        """
        with self._lock:
            job = self._jobs.pop(job_id, None)
            self._sizes.pop(job_id, None)
            if job is None:
                return
            # Without its record, the folder is removed at the next start even if it cannot be removed now.
            (self.folder_of(job_id) / RECORD).unlink(missing_ok=True)
            if job.state is not JobState.RUNNING:
                self.remove_files(job_id)
        self._log(event, job=job_id)

    def remove_files(self, job_id: str) -> None:
        """Remove the folder of a job that was deleted."""
        shutil.rmtree(self.folder_of(job_id), ignore_errors=True)

    def remove_input(self, job_id: str) -> None:
        """Remove what an interrupted transfer has left of the image of a job."""
        with self._lock:
            self._remove_input(self._require(job_id))

    def expire(self) -> None:
        """Delete the jobs that were finished longer ago than they are kept."""
        oldest = time.time() - self.settings.keep
        with self._lock:
            old = [
                job.id for job in self._jobs.values() if job.finished is not None and job.finished < oldest
            ]
        for job_id in old:
            self.remove(job_id, "expired")

    def _queued(self) -> Iterable[Job]:
        return [job for job in self._jobs.values() if job.state is JobState.QUEUED]

    def _require(self, job_id: str, owner: str | None = None) -> Job:
        job = self._jobs.get(job_id)
        if job is None or (owner is not None and job.owner != owner):
            raise no_such_job()
        return job

    def _write(self, job: Job) -> None:
        write_text(self.folder_of(job.id) / RECORD, job.model_dump_json(indent=1) + "\n")

    def _remove_input(self, job: Job) -> None:
        kept = _RESULTS if job.has_result else {RECORD}
        for entry in self.folder_of(job.id).iterdir():
            if entry.name not in kept:
                _remove(entry)

    def _recover(self, folder: Path) -> None:
        """Take over a job of an earlier service, or remove a folder without a record."""
        if not (folder / RECORD).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            return
        job = _read(folder / RECORD)
        self._jobs[job.id], self._sizes[job.id] = job, _size_of(folder)
        if job.state is JobState.UPLOADING:
            message = "the service ended before the upload was complete. Send the image again."
            self.finish(job.id, JobState.FAILED, message=message, failure=Failure.TRUNCATED)
        elif job.state is JobState.RUNNING and job.starts >= MOST_STARTS:
            message = (
                f"the service ended {job.starts} times during this prediction, often for lack of memory. Ask the administrator "
                "of the service."
            )
            self.finish(job.id, JobState.FAILED, message=message, failure=Failure.CRASHED)
        elif job.state is JobState.RUNNING:
            self.update(job.id, state=JobState.QUEUED)
            self._log("requeued", job=job.id)


def _read(path: Path) -> Job:
    try:
        job = Job.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "record"
        raise DataError(
            f"{path}: {where}: found a record of a newer version or a damaged one ({first['msg']}), expected format 1. Delete the "
            "folder of the job, or use the version that wrote it."
        ) from None
    if job.id != path.parent.name:
        raise DataError(
            f"{path}: id: found the record of another job, expected that of {path.parent.name}. Delete the folder."
        )
    return job


def _size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)

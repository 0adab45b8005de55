"""A job: one image and its prediction."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FORMATS = (".nii.gz", ".nrrd", ".seg.nrrd", ".seg.dcm", ".labelmap.dcm", ".rtstruct.dcm")
"""The file formats of results."""

SINGLE_FILES = (
    *(".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mgz", ".mgh"),
    *(".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".dcm"),
)
"""Suffixes of images that consist of one file."""

ARCHIVE = ".zip"


class JobState(StrEnum):
    """How far a job is.

    Attributes:
        UPLOADING: Its image is being received.
        RETRIEVING: Its series is to be retrieved from the DICOMweb server.
        QUEUED: It waits for its prediction.
        RUNNING: It is predicted.
        STORING: Its label map is to be stored on the DICOMweb server.
        DONE: It is finished.
        FAILED: It is finished; the message names the reason.
    """

    UPLOADING = "uploading"
    RETRIEVING = "retrieving"
    QUEUED = "queued"
    RUNNING = "running"
    STORING = "storing"
    DONE = "done"
    FAILED = "failed"


WAITING = (JobState.UPLOADING, JobState.RETRIEVING, JobState.QUEUED)
"""States that count for the length of the queue."""

TRANSFERS = (JobState.RETRIEVING, JobState.STORING)
"""States in which a job waits for the DICOMweb server."""


class Failure(StrEnum):
    """The kind of a failure.

    Attributes:
        REFUSED: The image cannot be used.
        TRUNCATED: The upload ended early.
        TIMEOUT: The prediction took longer than allowed.
        CRASHED: The prediction process ended, for example for lack of memory.
        RESOURCES: Memory or disk space did not suffice.
        DICOMWEB: The DICOMweb server was not reachable or refused a request.
        INTERNAL: An error in medseg.
    """

    REFUSED = "refused"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    RESOURCES = "resources"
    DICOMWEB = "dicomweb"
    INTERNAL = "internal"


class Job(BaseModel):
    """What ``job.json`` holds; it does not hold the name of the uploaded file, which often identifies a patient.

    Attributes:
        format: Version of the file.
        id: Random identifier.
        number: Jobs are predicted in the order of this number.
        owner: Identifier of the token that created it, see `Tokens.owner`.
        model: Identifier of the model; empty until it is known.
        suffix: File format of the label map, one of `FORMATS`.
        series: Number or UID of the DICOM series in an archive with several; empty if only one is a volume.
        upload: Name of the uploaded file in the job's folder, or of the folder of a retrieved series; empty until it is known.
        state: How far it is.
        created: Time at which the upload began, in seconds since 1970.
        started: Time at which the last prediction began.
        finished: Time at which it was done or failed.
        starts: Number of times that its prediction was begun.
        message: Why it failed.
        failure: Kind of the failure.
        notes: Remarks about the image and the prediction.
        label_map_hash: Hash of shape, affine and voxels of the label map; empty until it is predicted.
        study_uid: StudyInstanceUID of a series of the DICOMweb server; empty for an upload.
        series_uid: SeriesInstanceUID of that series.
        store: Whether the label map has to be stored on the DICOMweb server.
        stored: Whether it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[1] = 1
    id: str = Field(default_factory=lambda: secrets.token_hex(16), pattern="^[0-9a-f]{32}$")
    number: int
    owner: str
    model: str = ""
    suffix: str = FORMATS[0]
    series: str = ""
    upload: str = ""
    state: JobState = JobState.UPLOADING
    created: float = Field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    starts: int = 0
    message: str = ""
    failure: Failure | None = None
    notes: tuple[str, ...] = ()
    label_map_hash: str = ""
    study_uid: str = ""
    series_uid: str = ""
    store: bool = False
    stored: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it is done or failed."""
        return self.state in (JobState.DONE, JobState.FAILED)

    @property
    def has_result(self) -> bool:
        """Whether there is a label map, also if it could not be stored."""
        return bool(self.label_map_hash)

    @property
    def label_map(self) -> str:
        """Path of the label map in the job's folder."""
        return f"{OUTPUT}/{LABEL_MAP}{self.suffix}"


OUTPUT = "output"
RETRIEVED = "retrieved"
"""Folder of a series of the DICOMweb server."""
LABEL_MAP = "segmentation"
REPORT = "report.html"

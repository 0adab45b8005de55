"""What clients may ask of the DICOMweb server: to search it, and to predict one of its series."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from medseg.errors import DataError
from medseg.io.dicomweb.listed import checked_uid
from medseg.io.dicomweb.server import DicomWeb
from medseg.io.dicomweb.web_session import DicomWebError
from medseg.serve.refusals import RequestRefused

MOST_STUDIES = 100
STORED_FORMAT = ".seg.dcm"
_LONGEST = 200


class StudySearch(BaseModel):
    """A search for studies; empty values do not restrict it.

    Attributes:
        study: StudyInstanceUID.
        accession: Accession number.
        date: A day such as ``2020-01-31``, or two with a slash between them as the beginning and end of a period.
    """

    model_config = ConfigDict(extra="forbid")

    study: str = Field("", max_length=_LONGEST)
    accession: str = Field("", max_length=_LONGEST)
    date: str = Field("", max_length=_LONGEST)


class SeriesSearch(BaseModel):
    """The study whose series are listed.

    Attributes:
        study: StudyInstanceUID.
    """

    model_config = ConfigDict(extra="forbid")

    study: str = Field(max_length=_LONGEST)


class SeriesRequest(BaseModel):
    """A series to predict.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        model: Identifier of the model; not needed if there is only one.
        format: File format of the label map.
        store: Whether to store it on the server, which needs a format of DICOM.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    study: str = Field(max_length=_LONGEST)
    series: str = Field(max_length=_LONGEST)
    model: str = Field("", max_length=_LONGEST)
    format: str = Field(STORED_FORMAT.removeprefix("."), max_length=_LONGEST)
    store: bool = True


def found_studies(server: DicomWeb, wanted: StudySearch) -> list[dict[str, Any]]:
    """Search for studies.

    Args:
        server: The DICOMweb server.
        wanted: The search.

    Returns:
        The studies as plain values, at most `MOST_STUDIES`.

    Raises:
        RequestRefused: A value has another form, or the server fails.
    """
    try:
        found = server.studies(**wanted.model_dump(), limit=MOST_STUDIES)
    except DataError as error:
        raise _refused(error) from None
    return [asdict(one) for one in found]


def found_series(server: DicomWeb, wanted: SeriesSearch) -> list[dict[str, Any]]:
    """List the series of a study.

    Args:
        server: The DICOMweb server.
        wanted: The study.

    Returns:
        The series as plain values.

    Raises:
        RequestRefused: The UID is none, or the server fails.
    """
    try:
        return [asdict(one) for one in server.series(wanted.study)]
    except DataError as error:
        raise _refused(error) from None


def checked_series(wanted: SeriesRequest, suffix: str) -> tuple[str, str]:
    """Check a request for a series.

    Args:
        wanted: The request.
        suffix: Its file format as a suffix.

    Returns:
        UIDs of study and series.

    Raises:
        RequestRefused: A UID is none, or a file that is not DICOM should be stored.
    """
    if wanted.store and not suffix.endswith(".dcm"):
        raise RequestRefused(
            422,
            f"format: found {suffix}, expected .seg.dcm, .labelmap.dcm or .rtstruct.dcm, because a DICOMweb server stores DICOM only. "
            "Choose one of these, or set store to false.",
        )
    try:
        return checked_uid(wanted.study, "study"), checked_uid(wanted.series, "series")
    except DataError as error:
        raise _refused(error) from None


def _refused(error: DataError) -> RequestRefused:
    """Return the refusal of a request that the DICOMweb server cannot fulfil, or that is wrong itself."""
    return RequestRefused(502 if isinstance(error, DicomWebError) else 422, str(error))

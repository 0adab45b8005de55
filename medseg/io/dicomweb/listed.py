"""Studies and series as a DICOMweb server lists them, without anything that names a patient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.errors import DataError
from medseg.runtime.formatting import shortened

STUDY_FIELDS = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription"),
    *("ModalitiesInStudy", "NumberOfStudyRelatedSeries"),
)
SERIES_FIELDS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "SeriesDescription"),
    "NumberOfSeriesRelatedInstances",
)
_TAGS = {
    "StudyInstanceUID": "0020000D",
    "StudyDate": "00080020",
    "StudyTime": "00080030",
    "AccessionNumber": "00080050",
    "StudyDescription": "00081030",
    "ModalitiesInStudy": "00080061",
    "NumberOfStudyRelatedSeries": "00201206",
    "SeriesInstanceUID": "0020000E",
    "SeriesNumber": "00200011",
    "Modality": "00080060",
    "SeriesDescription": "0008103E",
    "NumberOfSeriesRelatedInstances": "00201209",
}
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID, _LONGEST_TEXT = 64, 80
_DATE = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})")
_LONGEST_ACCESSION = 16


@dataclass(frozen=True)
class ListedStudy:
    """A study of a server.

    Attributes:
        uid: StudyInstanceUID.
        date: Date as ``2020-01-31``; empty if the server states none.
        time: Time as ``12:00``; empty if the server states none.
        accession: Accession number.
        description: Description of the study.
        modalities: Modalities of its series.
        num_series: Number of its series; None if the server does not state it.
    """

    uid: str
    date: str
    time: str
    accession: str
    description: str
    modalities: tuple[str, ...]
    num_series: int | None


@dataclass(frozen=True)
class ListedSeries:
    """A series of a server.

    Attributes:
        study: StudyInstanceUID.
        uid: SeriesInstanceUID.
        number: Series number; None if the server states none.
        modality: Modality such as ``CT``.
        description: Description of the series.
        num_instances: Number of its files; None if the server does not state it.
    """

    study: str
    uid: str
    number: int | None
    modality: str
    description: str
    num_instances: int | None


def listed_study(item: Any) -> ListedStudy:
    """Return a study from an item of a search in the DICOM JSON model.

    Args:
        item: One item of the answer.

    Returns:
        The study.

    Raises:
        ValueError: The item is not one of that model, or has no valid UID.
    """
    date = _DATE.fullmatch(_text(item, "StudyDate"))
    time = re.match("([0-9]{2})([0-9]{2})", _text(item, "StudyTime"))
    return ListedStudy(
        uid=_uid(item, "StudyInstanceUID"),
        date="-".join(date.groups()) if date else "",
        time=":".join(time.groups()) if time else "",
        accession=_text(item, "AccessionNumber"),
        description=_text(item, "StudyDescription"),
        modalities=tuple(shortened(str(one), _LONGEST_TEXT) for one in _values(item, "ModalitiesInStudy")),
        num_series=_number(item, "NumberOfStudyRelatedSeries"),
    )


def listed_series(item: Any, study: str) -> ListedSeries:
    """Return a series from an item of a search in the DICOM JSON model.

    Args:
        item: One item of the answer.
        study: UID of the study that was asked for.

    Returns:
        The series.

    Raises:
        ValueError: The item is not one of that model, has no valid UID, or belongs to another study.
    """
    if _values(item, "StudyInstanceUID") and _uid(item, "StudyInstanceUID") != study:
        raise ValueError("another study")
    return ListedSeries(
        study=study,
        uid=_uid(item, "SeriesInstanceUID"),
        number=_number(item, "SeriesNumber"),
        modality=_text(item, "Modality"),
        description=_text(item, "SeriesDescription"),
        num_instances=_number(item, "NumberOfSeriesRelatedInstances"),
    )


def checked_uid(text: str, field: str) -> str:
    """Return a UID without surrounding spaces.

    Args:
        text: The UID.
        field: Name of the argument, for the message.

    Returns:
        The UID.

    Raises:
        DataError: It is none; its text is not shown.
    """
    text = text.strip()
    if len(text) > _LONGEST_UID or not _UID.fullmatch(text):
        raise DataError(
            f"{field}: found {len(text)} characters that are no UID, expected numbers with points between them, at most {_LONGEST_UID} characters. "
            "Copy the UID again."
        )
    return text


def search_filters(study: str, accession: str, date: str) -> dict[str, str]:
    """Return the filters of a search for studies; empty arguments do not restrict it.

    Args:
        study: StudyInstanceUID.
        accession: Accession number.
        date: A day, or two days with a slash between them as the beginning and end of a period; days are written ``2020-01-31`` or
            ``20200131``.

    Returns:
        Values by attribute.

    Raises:
        DataError: A value has another form.

    >>> search_filters("", " A1 ", "2020-01-01/2020-01-31")
    {'AccessionNumber': 'A1', 'StudyDate': '20200101-20200131'}
    """
    filters = {}
    if study.strip():
        filters["StudyInstanceUID"] = checked_uid(study, "study")
    accession = accession.strip()
    if accession:
        if len(accession) > _LONGEST_ACCESSION or not accession.isprintable() or set(accession) & set("\\*?"):
            raise DataError(
                f"accession: found {len(accession)} characters, expected at most {_LONGEST_ACCESSION} without backslash and wildcards. Correct it."
            )
        filters["AccessionNumber"] = accession
    if date.strip():
        days = [_DATE.fullmatch(day.strip()) for day in date.split("/")]
        if len(days) > 2 or not all(days):
            raise DataError(
                "date: found another form, expected a day such as 2020-01-31, or two days with a slash between them. Correct it."
            )
        filters["StudyDate"] = "-".join("".join(day.groups()) for day in days if day)
    return filters


def _values(item: Any, name: str) -> list[Any]:
    if not isinstance(item, Mapping):
        raise ValueError("no item of the DICOM JSON model")
    element = item.get(_TAGS[name], {})
    values = element.get("Value", []) if isinstance(element, Mapping) else None
    if not isinstance(values, list):
        raise ValueError("no element of the DICOM JSON model")
    return [value for value in values if isinstance(value, str | int | float)]


def _text(item: Any, name: str) -> str:
    values = _values(item, name)
    return shortened(str(values[0]), _LONGEST_TEXT) if values else ""


def _number(item: Any, name: str) -> int | None:
    text = _text(item, name)
    return int(text) if re.fullmatch("-?[0-9]{1,9}", text) else None


def _uid(item: Any, name: str) -> str:
    text = _text(item, name)
    if len(text) > _LONGEST_UID or not _UID.fullmatch(text):
        raise ValueError("no valid UID")
    return text

"""A DICOMweb server: its studies are searched, series are retrieved into folders, and label maps are stored."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from medseg.io.dicom.pydicom_files import read_dataset, require_pydicom
from medseg.io.dicomweb.address import Address, read_address
from medseg.io.dicomweb.listed import (
    SERIES_FIELDS,
    STUDY_FIELDS,
    ListedSeries,
    ListedStudy,
    checked_uid,
    listed_series,
    listed_study,
    search_filters,
)
from medseg.io.dicomweb.web_session import DicomWebError, Watch, web_client, without_warnings
from medseg.runtime.formatting import pluralise
from medseg.storage.atomic import replacing_folder

_LARGEST_LIST = 64 * 2**20  # bytes
_LARGEST_SERIES = 64 * 2**30  # bytes
_MOST_FILES = 20_000
_ANY_SYNTAX = ("application/dicom", "*")  # as stored, so that the server need not decompress
_DUPLICATE = 0x0111  # the server has the instance, see PS3.4, table GG.4-1


class DicomWeb:
    """A DICOMweb server.

    Credentials come from the environment: the variables ``MEDSEG_DICOMWEB_USER`` and ``MEDSEG_DICOMWEB_PASSWORD``, or
    ``MEDSEG_DICOMWEB_TOKEN``. Nothing is sent to another address than the given one, also if the server redirects there.

    Args:
        address: Address of the services, such as ``http://127.0.0.1:8042/dicom-web``; or an `Address` with its credentials.
        patience: Seconds without a byte after which an operation is given up.

    Attributes:
        address: The address.

    Raises:
        ConfigError: The address or the credentials cannot be used.

    Examples:
        >>> DicomWeb("http://127.0.0.1:8042/dicom-web")
        DicomWeb('http://127.0.0.1:8042/dicom-web')
    """

    def __init__(self, address: str | Address, patience: float = 60.0) -> None:
        self.address = address if isinstance(address, Address) else read_address(address, "address")
        self._patience = patience

    def studies(
        self, *, study: str = "", accession: str = "", date: str = "", limit: int = 100
    ) -> list[ListedStudy]:
        """Search for studies (QIDO-RS); without arguments, list any.

        Args:
            study: StudyInstanceUID.
            accession: Accession number.
            date: A day such as ``2020-01-31``, or two with a slash between them as the beginning and end of a period.
            limit: Largest number of studies.

        Returns:
            The studies in the order of the server, an empty list for none.

        Raises:
            DataError: An argument has another form.
            DicomWebError: The server is not reachable, refuses, or answers something else.
        """
        filters = search_filters(study, accession, date)
        with web_client(self.address, self._patience, _LARGEST_LIST) as client:
            found = client.search_for_studies(limit=limit, fields=list(STUDY_FIELDS), search_filters=filters)
            return [listed_study(item) for item in found[:limit]]

    def series(self, study: str) -> list[ListedSeries]:
        """List the series of a study (QIDO-RS).

        Args:
            study: StudyInstanceUID.

        Returns:
            The series in the order of their numbers; an empty list if the server has no such study.

        Raises:
            DataError: The UID is none.
            DicomWebError: The server is not reachable, refuses, or answers something else.
        """
        study = checked_uid(study, "study")
        with web_client(self.address, self._patience, _LARGEST_LIST) as client:
            found = client.search_for_series(study, fields=list(SERIES_FIELDS))
            listed = [listed_series(item, study) for item in found]
        return sorted(listed, key=lambda one: (one.number is None, one.number or 0, one.uid))

    def retrieve(self, study: str, series: str, folder: str | Path, *, watch: Watch | None = None) -> int:
        """Retrieve the images of a series into a folder (WADO-RS), in the compression in which the server stores them.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID.
            folder: Folder to create or replace, once all images have arrived; its files are numbered.
            watch: Called with the bytes that have arrived; it may raise to end the transfer.

        Returns:
            The number of images.

        Raises:
            DataError: A UID is none, or the folder cannot be written.
            DicomWebError: The server has no such series, or fewer images than it lists; or it is not reachable, refuses, or answers
                something else.
            ConfigError: dicomweb-client or pydicom is not installed.
        """
        study, series = checked_uid(study, "study"), checked_uid(series, "series")
        require_pydicom(self.address.url, "images of DICOMweb servers")
        listed = next((one for one in self.series(study) if one.uid == series), None)
        if listed is None or listed.num_instances == 0:
            raise DicomWebError(
                f"{self.address.url}: series: found {'none with this UID' if listed is None else 'no image in it'}, expected images. Choose another "
                "series, or wait until the server has received it."
            )
        with replacing_folder(folder) as temporary:
            count = 0
            with (
                without_warnings(),
                web_client(self.address, self._patience, _LARGEST_SERIES, watch) as client,
            ):
                images = client.iter_series(study, series, media_types=(_ANY_SYNTAX,))
                for count, image in enumerate(self._checked(images, series), start=1):
                    image.save_as(temporary / f"{count - 1:05d}.dcm", enforce_file_format=True)
            expected = listed.num_instances or 1
            if count < expected:
                raise DicomWebError(
                    f"{self.address.url}: series: found {pluralise(count, 'image')}, expected {expected}, as the server lists. Try again, or check "
                    "the log of the server."
                )
        return count

    def store(self, file: str | Path) -> None:
        """Store a DICOM file (STOW-RS); one that the server already has is left there.

        Args:
            file: The file, such as a DICOM segmentation.

        Raises:
            DataError: The file cannot be read.
            DicomWebError: The server did not confirm that it has stored the file, is not reachable, or refuses.
            ConfigError: dicomweb-client or pydicom is not installed.
        """
        require_pydicom(self.address.url, "files for DICOMweb servers")
        dataset = read_dataset(Path(file))
        uid = str(dataset.SOPInstanceUID)
        with without_warnings(), web_client(self.address, self._patience, _LARGEST_LIST) as client:
            stored, reasons = _stored(client, dataset)
            if uid in stored or reasons.get(uid) == _DUPLICATE:
                return
            if not reasons and client.search_for_instances(
                search_filters={"SOPInstanceUID": uid}, fields=["SOPInstanceUID"], limit=1
            ):
                return  # stored by a server that answers without a list
        reason = (
            f"refused it for the reason {reasons[uid]:04X} of PS3.4"
            if uid in reasons
            else "did not confirm it"
        )
        raise DicomWebError(
            f"{self.address.url}: the server {reason}, expected that the file is stored. Check that the server accepts this kind of object, "
            "and its log."
        )

    def _checked(self, images: Iterator[Any], series: str) -> Iterator[Any]:
        """Yield images of a series; raise for others."""
        for number, image in enumerate(images):
            if number >= _MOST_FILES:
                raise DicomWebError(
                    f"{self.address.url}: series: found more than {_MOST_FILES:,} images, the limit. Choose a smaller series."
                )
            if str(image.get("SeriesInstanceUID", "")).strip() != series:
                raise DicomWebError(
                    f"{self.address.url}: series: found an image of another series, expected images of this one. Check the log of the server."
                )
            yield image

    def __repr__(self) -> str:
        return f"DicomWeb({self.address.url!r})"


def _stored(client: Any, dataset: Any) -> tuple[set[str], dict[str, int]]:
    """Store a dataset and return the UIDs of stored objects, and the reasons by UID for which others were refused."""
    from pydicom.dataset import Dataset
    from requests import HTTPError

    try:
        answer = client.store_instances([dataset])
    except HTTPError as error:
        if error.response.status_code != HTTPStatus.CONFLICT:
            raise
        try:
            answer = Dataset.from_json(error.response.json())  # names the reason
        except (ValueError, TypeError, KeyError):
            raise error from None
    stored = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or ()}
    failed = answer.get("FailedSOPSequence") or ()
    return stored, {
        str(item.get("ReferencedSOPInstanceUID")): int(item.get("FailureReason") or 0) for item in failed
    }

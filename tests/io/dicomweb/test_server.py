from __future__ import annotations

import logging
import socket
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest

import medseg
from medseg.errors import DataError, MedsegError
from medseg.io.dicomweb.address import Address
from medseg.io.dicomweb.server import DicomWeb
from medseg.io.dicomweb.web_session import DicomWebError
from tests.helpers.dicomweb_stub import Stub, ct_series

# What a server lets appear in answers, and what messages and logs must not hold.
CANARY = "Doe"


def server_of(stub: Stub, patience: float = 60.0) -> DicomWeb:
    return DicomWeb(Address(stub.address, stub.authorization), patience)


def test_studies_are_found_by_uid_accession_number_and_date(stub: Stub, tmp_path: Path) -> None:
    first = stub.add(ct_series(tmp_path / "a", StudyDescription="abdomen"))
    second = stub.add(ct_series(tmp_path / "b", AccessionNumber="B2", StudyDate="20210102"))
    server = server_of(stub)
    assert {one.uid for one in server.studies()} == {first.StudyInstanceUID, second.StudyInstanceUID}
    for found in (
        server.studies(study=first.StudyInstanceUID),
        server.studies(accession="A1"),
        server.studies(date="2020-01-01"),
    ):
        (study,) = found
        assert (study.uid, study.date, study.accession, study.description) == (
            first.StudyInstanceUID,
            "2020-01-01",
            "A1",
            "abdomen",
        )
    assert server.studies(accession="C3") == []
    assert len(server.studies(limit=1)) == 1
    assert "limit=1" in stub.requests[-1]


def test_a_retrieved_series_is_the_one_that_was_sent(stub: Stub, tmp_path: Path) -> None:
    source = ct_series(tmp_path / "source")
    header = stub.add(source)
    server = server_of(stub)
    (series,) = server.series(header.StudyInstanceUID)
    assert (series.uid, series.modality, series.num_instances) == (header.SeriesInstanceUID, "CT", 8)
    received: list[int] = []
    assert server.retrieve(series.study, series.uid, tmp_path / "found", watch=received.append) == 8
    assert received[-1] > 8 * 12 * 10 * 2
    expected, found = medseg.read(source), medseg.read(tmp_path / "found")
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.grid.affine, expected.grid.affine)


def test_a_stored_file_arrives_complete(stub: Stub, tmp_path: Path) -> None:
    file = sorted(ct_series(tmp_path / "a").iterdir())[0]
    server_of(stub).store(file)
    ((uid, content),) = stub.images.items()
    assert pydicom.dcmread(file).SOPInstanceUID == uid
    assert content == file.read_bytes()


@pytest.mark.parametrize("fault", ["duplicate", "unconfirmed"])
def test_what_the_server_has_is_stored(stub: Stub, tmp_path: Path, fault: str) -> None:
    stub.fault = fault
    server_of(stub).store(sorted(ct_series(tmp_path / "a").iterdir())[0])
    assert len(stub.images) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", "refused it for the reason A700"),
        ("forgotten", "did not confirm it"),
        ("400", "status 400 Bad Request"),
        ("409", "status 409 Conflict"),
        ("503", "status 503 Service Unavailable: expected 200. Try again"),
        ("html", "did not confirm it|breaks the DICOMweb standard|not in JSON"),
    ],
)
def test_a_file_that_the_server_does_not_take_is_an_error(
    stub: Stub, tmp_path: Path, fault: str, message: str
) -> None:
    stub.fault = fault
    with pytest.raises(DicomWebError, match=message) as refused:
        server_of(stub).store(sorted(ct_series(tmp_path / "a", PatientName="Doe^Jane").iterdir())[0])
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "the end of the answer within an image"),
        ("cut", "the end of the answer within an image"),
        ("incomplete", "found 7 images, expected 8"),
        ("empty", "the end of the answer|found 0 images, expected 8"),
        ("no image", r"breaks the DICOMweb standard \(InvalidDicomError\)"),
        ("json images", "breaks the DICOMweb standard"),
        ("other series", "found an image of another series"),
        ("gone", "status 404 Not Found: found nothing at the address"),
    ],
)
def test_a_series_that_does_not_arrive_as_listed_leaves_no_folder(
    stub: Stub, tmp_path: Path, fault: str, message: str
) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.add(ct_series(tmp_path / "b"))
    stub.fault = fault
    with pytest.raises(DicomWebError, match=message) as refused:
        server_of(stub).retrieve(header.StudyInstanceUID, header.SeriesInstanceUID, tmp_path / "found")
    assert header.SeriesInstanceUID not in str(refused.value)
    assert CANARY not in str(refused.value)
    assert {one.name for one in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "status 401 Unauthorized: found no credentials. Set MEDSEG_DICOMWEB_USER"),
        ("403", "status 403 Forbidden"),
        ("404", "status 404 Not Found"),
        ("406", "does not offer the format"),
        ("500", "status 500 Internal Server Error"),
        ("599", "status 599"),
        ("html", "not in JSON"),
        ("no list", "breaks the DICOMweb standard"),
        ("wrong list", "breaks the DICOMweb standard"),
        ("redirect", "redirection to another address"),
    ],
)
def test_a_search_that_fails_names_the_remedy(stub: Stub, fault: str, message: str) -> None:
    stub.fault = fault
    for search in (server_of(stub).studies, lambda: server_of(stub).series("1.2.3")):
        with pytest.raises(DicomWebError, match=message) as refused:
            search()
        assert stub.address in str(refused.value)
        assert "1.2.3" not in str(refused.value)
        assert CANARY not in str(refused.value)
    assert len(stub.requests) == 2  # nothing is repeated or followed


@pytest.mark.parametrize("fault", ["slow", "slow images"])
def test_a_server_that_sends_no_byte_is_given_up(stub: Stub, tmp_path: Path, fault: str) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.fault = fault
    with pytest.raises(DicomWebError, match=r"found no byte for \d+ seconds"):
        server_of(stub, 0.5).retrieve(header.StudyInstanceUID, header.SeriesInstanceUID, tmp_path / "found")


def test_a_server_that_does_not_run_is_not_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        DicomWebError, match=r"cannot be reached .*Check the address, and that the server runs"
    ):
        DicomWeb(f"http://127.0.0.1:{port}").studies()


def test_a_series_that_the_server_does_not_list_is_named_as_such(stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    for study, series in (("1.2.3", "1.2.4"), (header.StudyInstanceUID, "1.2.4")):
        with pytest.raises(DicomWebError, match="none with this UID"):
            server_of(stub).retrieve(study, series, tmp_path / "found")
    with pytest.raises(DataError, match="study: found 4 characters that are no UID"):
        server_of(stub).retrieve("../x", "1.2.3", tmp_path / "found")


def test_credentials_are_sent_with_every_request(stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.authorization = "Bearer secret"
    server = server_of(stub)
    server.retrieve(header.StudyInstanceUID, header.SeriesInstanceUID, tmp_path / "found")
    server.store(tmp_path / "found" / "00000.dcm")
    with pytest.raises(DicomWebError, match="the credentials were not accepted") as refused:
        DicomWeb(Address(stub.address, "Bearer secret-too")).studies()
    assert "secret" not in str(refused.value)


def test_files_with_passwords_and_proxies_are_not_used(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login ann password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    server_of(stub).studies()
    assert "Authorization" not in stub.headers


def test_the_watch_ends_a_retrieval(stub: Stub, tmp_path: Path) -> None:
    class Enough(MedsegError):
        pass

    def watch(received: int) -> None:
        raise Enough("enough")

    header = stub.add(ct_series(tmp_path / "a"))
    with pytest.raises(Enough):
        server_of(stub).retrieve(
            header.StudyInstanceUID, header.SeriesInstanceUID, tmp_path / "found", watch=watch
        )
    assert {one.name for one in tmp_path.iterdir()} == {"a"}


def test_nothing_is_logged_or_warned_about(
    stub: Stub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = stub.add(ct_series(tmp_path / "a", PatientBirthDate="Doe", StudyTime="Doe"))
    server = server_of(stub)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        server.studies()
        server.retrieve(header.StudyInstanceUID, header.SeriesInstanceUID, tmp_path / "found")
        server.store(tmp_path / "found" / "00000.dcm")
        stub.fault = "500"
        with pytest.raises(DicomWebError):
            server.studies(study=header.StudyInstanceUID)
        with pytest.raises(DicomWebError):
            DicomWeb(Address("http://127.0.0.1:9")).studies(study=header.StudyInstanceUID)
    assert (caplog.text, [str(one.message) for one in warned]) == ("", [])


def test_another_thread_may_still_log() -> None:
    logger = logging.getLogger("urllib3.connectionpool")
    DicomWeb("http://127.0.0.1:8042")
    assert all(one.filter(logging.makeLogRecord({})) for one in logger.filters)  # type: ignore[union-attr]

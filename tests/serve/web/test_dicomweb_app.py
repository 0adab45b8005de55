from __future__ import annotations

from collections.abc import Iterator

import pytest

from medseg.io.dicomweb.address import Address
from medseg.io.dicomweb.server import DicomWeb
from tests.helpers.dicomweb_stub import Stub, ct_series, dicomweb_stub
from tests.helpers.services import HeldWorker, Running, running


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Stub]]:
    """A service whose DICOMweb server holds one study."""
    with dicomweb_stub() as stub:
        stub.add(ct_series(tmp_path_factory.mktemp("ct"), PatientName="Doe^Jane", StudyDescription="abdomen"))
        folder = tmp_path_factory.mktemp("service")
        with running(folder, worker=HeldWorker(), dicomweb=DicomWeb(Address(stub.address))) as service:
            yield service, stub


def test_studies_and_their_series_are_listed_without_names(archive: tuple[Running, Stub]) -> None:
    service, stub = archive
    (header, *_) = stub.datasets()
    for wanted in ({}, {"accession": "A1"}, {"date": "2020-01-01"}, {"study": str(header.StudyInstanceUID)}):
        answer = service.client.post("/api/dicomweb/studies", json=wanted)
        (study,) = answer.json()
        assert (study["uid"], study["date"], study["accession"]) == (
            header.StudyInstanceUID,
            "2020-01-01",
            "A1",
        )
        assert "Doe" not in answer.text
    assert service.client.post("/api/dicomweb/studies", json={"accession": "B"}).json() == []
    (series,) = service.client.post("/api/dicomweb/series", json={"study": study["uid"]}).json()
    assert (series["uid"], series["modality"], series["num_instances"]) == (header.SeriesInstanceUID, "CT", 8)


@pytest.mark.parametrize("path", ["studies", "series", "jobs"])
def test_requests_need_a_token(archive: tuple[Running, Stub], path: str) -> None:
    service, stub = archive
    before = len(stub.requests)
    answer = service.client.post(f"/api/dicomweb/{path}", json={}, headers={"Authorization": ""})
    assert (answer.status_code, len(stub.requests)) == (401, before)


@pytest.mark.parametrize(
    ("path", "wanted", "message"),
    [
        ("studies", {"study": "../x"}, "study: found 4 characters that are no UID"),
        ("studies", {"accession": "*"}, "accession: found"),
        ("studies", {"date": "today"}, "date: found another form"),
        ("studies", {"patient": "Doe"}, "body.patient: "),
        ("studies", {"date": "1" * 300}, "body.date: "),
        ("series", {}, "body.study: "),
        ("series", {"study": "x"}, "study: found 1 characters that are no UID"),
        ("jobs", {"study": "1.2"}, "body.series: "),
        ("jobs", {"study": "1.2", "series": "1.2/../3"}, "series: found 8 characters"),
        ("jobs", {"study": "1.2", "series": "1.3", "model": "other"}, "model: found no such model"),
        ("jobs", {"study": "1.2", "series": "1.3", "format": "exe"}, "format: found an unknown one"),
        ("jobs", {"study": "1.2", "series": "1.3", "format": "nii.gz"}, "set store to false"),
    ],
)
def test_wrong_requests_are_refused_with_a_text_and_leave_no_job(
    archive: tuple[Running, Stub], path: str, wanted: dict[str, str], message: str
) -> None:
    service, stub = archive
    before = len(stub.requests)
    answer = service.client.post(f"/api/dicomweb/{path}", json=wanted)
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.text
    assert "Doe" not in answer.text
    assert (service.client.get("/api/jobs").json(), len(stub.requests)) == ([], before)


def test_a_server_that_fails_is_a_bad_gateway(archive: tuple[Running, Stub]) -> None:
    service, stub = archive
    stub.fault = "500"
    try:
        for path, wanted in (("studies", {}), ("series", {"study": "1.2"})):
            answer = service.client.post(f"/api/dicomweb/{path}", json=wanted)
            assert (answer.status_code, "status 500" in answer.json()["detail"]) == (502, True)
    finally:
        stub.fault = ""


def test_the_page_and_the_schema_name_the_server_only_where_there_is_one(
    archive: tuple[Running, Stub], service: Running
) -> None:
    for one, has_server in ((archive[0], True), (service, False)):
        assert ('id="search"' in one.client.get("/").text) is has_server
        assert ("/api/dicomweb/jobs" in one.client.get("/openapi.json").json()["paths"]) is has_server
    assert service.client.post("/api/dicomweb/studies", json={}).status_code == 404

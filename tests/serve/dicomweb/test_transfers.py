from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pydicom
import pytest

import medseg
from medseg.io.dicomweb.address import Address
from medseg.io.dicomweb.server import DicomWeb
from medseg.serve.job import JobState
from medseg.serve.worker.messages import Finished
from tests.helpers.dicomweb_stub import Stub, ct_series
from tests.helpers.services import BOB, HeldWorker, Running, bearer, running


def ask(service: Running, header: pydicom.Dataset, **more: object) -> dict[str, Any]:
    """Ask for the prediction of a series, and return the job."""
    wanted = {"study": str(header.StudyInstanceUID), "series": str(header.SeriesInstanceUID), **more}
    answer = service.client.post("/api/dicomweb/jobs", json=wanted)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def segmentations(stub: Stub) -> list[pydicom.Dataset]:
    return stub.datasets(Modality="SEG")


def test_a_series_returns_as_a_segmentation_that_python_would_write(
    archive: Running, stub: Stub, toy_model: Path, tmp_path: Path
) -> None:
    series = ct_series(tmp_path / "a", PatientName="Doe^Jane")
    header = stub.add(series)
    job = archive.finished(ask(archive, header)["id"])
    assert (job["state"], job["stored"], job["message"]) == ("done", True, "")
    assert (job["study"], job["series"]) == (header.StudyInstanceUID, header.SeriesInstanceUID)
    (found,) = segmentations(stub)
    assert (found.StudyInstanceUID, str(found.PatientName)) == (header.StudyInstanceUID, "Doe^Jane")
    (tmp_path / "found.seg.dcm").write_bytes(stub.images[str(found.SOPInstanceUID)])
    expected = medseg.load(toy_model, device="cpu")(series)
    labels = medseg.read_labels(tmp_path / "found.seg.dcm", like=series)
    assert (labels.data == expected.data).all()
    kept = {one.name for one in (archive.folder / "jobs" / job["id"]).iterdir()}
    assert kept == {"job.json", "output", "report.html"}
    assert archive.client.get(f"/api/jobs/{job['id']}/report").status_code == 200


def test_a_result_need_not_be_stored(archive: Running, stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    job = archive.finished(ask(archive, header, store=False, format="nii.gz")["id"])
    assert (job["state"], job["stored"], job["format"]) == ("done", False, "nii.gz")
    assert not [one for one in stub.requests if one.startswith("POST")]
    assert archive.client.post(f"/api/jobs/{job['id']}/store").status_code == 409


def test_the_log_holds_no_uid_and_no_name(archive: Running, stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a", PatientName="Doe^Jane"))
    job = archive.finished(ask(archive, header)["id"])
    stub.fault = "500"
    archive.finished(ask(archive, header)["id"])
    text = archive.log.getvalue()
    events = [line.split()[1] for line in text.splitlines() if job["id"] in line]
    assert events == ["retrieving", "queued", "started", "predicted", "done"]
    for word in (header.StudyInstanceUID, header.SeriesInstanceUID, "Doe", "A1"):
        assert word not in text


def test_series_that_do_not_arrive_fail_their_jobs_only(stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    worker = HeldWorker()
    folder = tmp_path / "service"
    with running(folder, worker=worker, dicomweb=DicomWeb(Address(stub.address))) as held:
        for fault, message in [
            ("truncated", "end of the answer"),
            ("incomplete", "found 7 images, expected 8"),
            ("500", "status 500"),
            ("401", "Set MEDSEG_DICOMWEB_USER"),
            ("html", "not in JSON"),
        ]:
            stub.fault = fault
            job = held.finished(ask(held, header)["id"])
            assert (job["state"], job["failure"], job["has_result"]) == ("failed", "dicomweb", False)
            assert message in job["message"]
            assert [one.name for one in (folder / "jobs" / job["id"]).iterdir()] == ["job.json"]
        stub.fault = ""
        worker.answers.put(Finished("5e2f", ()))
        assert held.finished(ask(held, header, store=False)["id"])["state"] == "done"


def test_a_result_that_is_refused_is_kept_and_can_be_stored_again(
    archive: Running, stub: Stub, tmp_path: Path
) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.fault = "refuse"
    job = archive.finished(ask(archive, header)["id"])
    assert (job["state"], job["failure"], job["stored"], job["has_result"]) == (
        "failed",
        "dicomweb",
        False,
        True,
    )
    assert "refused it for the reason A700" in job["message"]
    answer = archive.client.get(f"/api/jobs/{job['id']}/result")
    assert pydicom.dcmread(io.BytesIO(answer.content)).Modality == "SEG"
    stub.fault = ""
    assert archive.client.post(f"/api/jobs/{job['id']}/store", headers=bearer(BOB)).status_code == 404
    assert archive.client.post(f"/api/jobs/{job['id']}/store").status_code == 202
    again = archive.finished(job["id"])
    assert (again["state"], again["stored"], again["message"], again["failure"]) == ("done", True, "", None)
    assert len(segmentations(stub)) == 1


def test_larger_series_than_the_limit_are_refused(stub: Stub, toy_model: Path, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    dicomweb = DicomWeb(Address(stub.address))
    for limit, message, failure in [
        ({"max_upload": 1000}, "the limit of the service", "dicomweb"),
        ({"max_disk": 10_000}, "Delete finished jobs", "resources"),
        ({"timeout": 1e-9}, "not retrieved within", "dicomweb"),
    ]:
        with running(tmp_path / message, toy_model, dicomweb=dicomweb, **limit) as small:
            job = small.finished(ask(small, header)["id"])
            assert (job["state"], job["failure"]) == ("failed", failure)
            assert message in job["message"]


def test_jobs_of_the_server_count_for_the_queue(stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.fault = "slow"
    dicomweb = DicomWeb(Address(stub.address), patience=60)
    with running(tmp_path / "service", worker=HeldWorker(), dicomweb=dicomweb, max_queue=2) as held:
        for _ in range(2):
            ask(held, header)
        assert held.post(b"x").status_code == 429
        stub.released.set()


def test_a_job_whose_series_is_retrieved_can_be_deleted(stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.fault = "slow images"
    with running(tmp_path / "service", worker=HeldWorker(), dicomweb=DicomWeb(Address(stub.address))) as held:
        job = ask(held, header)
        assert held.client.delete(f"/api/jobs/{job['id']}").status_code == 204
        assert held.client.get(f"/api/jobs/{job['id']}").status_code == 404
        stub.fault = ""
        stub.released.set()
        second = ask(held, header)
        worker = held.service.queue._worker
        assert isinstance(worker, HeldWorker)
        assert worker.begun.get(timeout=60).folder.name == second["id"]
        assert not (tmp_path / "service" / "jobs" / job["id"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("state", ["retrieving", "running", "storing"])
def test_a_job_continues_after_a_restart(stub: Stub, toy_model: Path, tmp_path: Path, state: str) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    dicomweb = DicomWeb(Address(stub.address))
    folder = tmp_path / "service"
    with running(folder, toy_model, dicomweb=dicomweb) as first:
        stub.fault = "refuse"
        job_id = first.finished(ask(first, header)["id"])["id"]
        stub.fault = ""
        files = {"retrieving": 0, "running": 8, "storing": 0}[state]
        place = folder / "jobs" / job_id / "retrieved"
        for number, file in enumerate(sorted((tmp_path / "a").iterdir())[:files]):
            place.mkdir(exist_ok=True)
            (place / f"{number:05d}.dcm").write_bytes(file.read_bytes())
        changes: dict[str, Any] = {"finished": None, "message": "", "failure": None}
        if state != "storing":
            changes["label_map_hash"] = ""
        if state == "retrieving":  # with what an interrupted retrieval leaves
            (folder / "jobs" / job_id / "rest").write_bytes(b"x")
        job = first.service.store.get(job_id).model_copy(update={**changes, "state": JobState(state)})
        (folder / "jobs" / job_id / "job.json").write_text(job.model_dump_json())
    with running(folder, toy_model, dicomweb=dicomweb) as again:
        done = again.finished(job_id)
        assert (done["state"], done["stored"]) == ("done", True)
        assert not (folder / "jobs" / job_id / "rest").exists()
    assert len(segmentations(stub)) == 1


def test_without_the_server_its_jobs_fail_with_a_message(stub: Stub, tmp_path: Path) -> None:
    header = stub.add(ct_series(tmp_path / "a"))
    stub.fault = "slow"
    folder = tmp_path / "service"
    with running(folder, worker=HeldWorker(), dicomweb=DicomWeb(Address(stub.address))) as first:
        job_id = ask(first, header)["id"]
        first.service.request_stop()
        stub.released.set()
    assert first.service.store.get(job_id).state is JobState.RETRIEVING
    with running(folder, worker=HeldWorker()) as again:
        job = again.client.get(f"/api/jobs/{job_id}").json()
        assert (job["state"], job["failure"]) == ("failed", "dicomweb")
        assert "--dicomweb" in job["message"]

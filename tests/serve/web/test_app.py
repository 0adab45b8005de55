from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import medseg
from tests.helpers.dicom_series import save_series
from tests.helpers.services import ALICE, BOB, HeldWorker, Running, bearer, image_bytes, running
from tests.helpers.zip_archives import zip_of


def test_an_uploaded_image_gets_the_label_map_that_python_computes(
    service: Running, toy_model: Path, tmp_path: Path
) -> None:
    content = image_bytes(tmp_path)
    created = service.post(content, model="toy", format="nii.gz")
    assert created.status_code == 201
    job = service.finished(created.json()["id"])
    assert (job["state"], job["message"], job["failure"]) == ("done", "", None)
    answer = service.client.get(f"/api/jobs/{job['id']}/result")
    (tmp_path / "labels.nii.gz").write_bytes(answer.content)
    found = medseg.read_labels(tmp_path / "labels.nii.gz")
    expected = medseg.load(toy_model, device="cpu")(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.grid.affine, expected.grid.affine)
    assert 'filename="segmentation.nii.gz"' in answer.headers["content-disposition"]


def test_the_same_image_gives_the_same_hash(service: Running, tmp_path: Path) -> None:
    content = image_bytes(tmp_path)
    hashes = {service.finished(service.post(content).json()["id"])["label_map_hash"] for _ in range(2)}
    other = service.finished(service.post(image_bytes(tmp_path, seed=1)).json()["id"])["label_map_hash"]
    assert len(hashes) == 1
    assert other not in hashes


def test_the_report_has_a_viewer_and_names_neither_file_nor_folder(service: Running, tmp_path: Path) -> None:
    job = service.finished(service.post(image_bytes(tmp_path), "Doe_Jane.nii.gz").json()["id"])
    page = service.client.get(f"/api/jobs/{job['id']}/report")
    assert page.headers["content-type"].startswith("text/html")
    assert 'id="view-0"' in page.text
    assert "Doe_Jane" not in page.text
    assert str(service.folder) not in page.text


def test_a_zipped_series_gives_a_dicom_segmentation_of_its_source(service: Running, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    data = np.random.default_rng(0).integers(-200, 300, (1, 12, 10, 8)).astype(np.int16)
    volume = medseg.Volume(data, medseg.Grid.from_spacing((12, 10, 8), (1, 1, 2)))
    series = save_series(tmp_path / "Doe^Jane" / "1", volume)
    archive = zip_of({f"Doe^Jane/CT 1/{file.name}": file.read_bytes() for file in series.iterdir()})
    job = service.finished(service.post(archive, "Doe.zip", format="seg.dcm").json()["id"])
    assert job["state"] == "done", job["message"]
    answer = service.client.get(f"/api/jobs/{job['id']}/result")
    assert answer.headers["content-type"] == "application/dicom"
    found = pydicom.dcmread(io.BytesIO(answer.content))
    source = pydicom.dcmread(next(series.iterdir()))
    assert found.Modality == "SEG"
    assert found.StudyInstanceUID == source.StudyInstanceUID
    assert str(found.PatientName) == str(source.PatientName)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/models"),
        ("GET", "/api/jobs"),
        ("POST", "/api/jobs"),
        ("GET", "/api/jobs/x"),
        ("GET", "/api/jobs/x/events"),
        ("GET", "/api/jobs/x/result"),
        ("GET", "/api/jobs/x/report"),
        ("DELETE", "/api/jobs/x"),
    ],
)
@pytest.mark.parametrize("header", ["", "Bearer wrong-token-0123456789", ALICE, f"Basic {ALICE}"])
def test_requests_without_an_accepted_token_are_refused(
    service: Running, method: str, path: str, header: str
) -> None:
    answer = service.client.request(method, path, headers={"Authorization": header})
    assert answer.status_code == 401
    assert "Authorization: Bearer TOKEN" in answer.json()["detail"]
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_job_of_another_token_does_not_exist(service: Running, tmp_path: Path) -> None:
    job_id = service.finished(service.post(image_bytes(tmp_path)).json()["id"])["id"]
    for method, path in [
        *(("GET", f"/api/jobs/{job_id}{end}") for end in ("", "/events", "/result", "/report")),
        ("DELETE", f"/api/jobs/{job_id}"),
    ]:
        answer = service.client.request(method, path, headers=bearer(BOB))
        assert answer.status_code == 404, path
    assert all(job["id"] != job_id for job in service.client.get("/api/jobs", headers=bearer(BOB)).json())
    assert service.client.get(f"/api/jobs/{job_id}").json()["state"] == "done"


@pytest.mark.parametrize("path", ["", "/events", "/result", "/report"])
def test_a_job_that_never_was_does_not_exist(service: Running, path: str) -> None:
    assert service.client.get(f"/api/jobs/{'0' * 32}{path}").status_code == 404


def test_a_deleted_job_is_gone_with_its_files(service: Running, tmp_path: Path) -> None:
    job_id = service.finished(service.post(image_bytes(tmp_path)).json()["id"])["id"]
    assert (service.folder / "jobs" / job_id).is_dir()
    assert service.client.delete(f"/api/jobs/{job_id}").status_code == 204
    assert service.client.get(f"/api/jobs/{job_id}").status_code == 404
    assert not (service.folder / "jobs" / job_id).exists()


@pytest.mark.parametrize(
    ("name", "fields", "status", "message"),
    [
        ("a.exe", {}, 415, "unknown suffix"),
        ("a", {}, 415, "unknown suffix"),
        ("a.nii.gz", {"model": "other"}, 422, "no such model"),
        ("a.nii.gz", {"format": "exe"}, 422, "expected one of .nii.gz"),
        ("a.nii.gz", {"format": "seg.dcm"}, 422, "no DICOM series"),
        ("a.nii.gz", {"nonsense": "1"}, 422, "unknown field"),
        ("a.nii.gz", {"model": "x" * 2000}, 422, "more than 1024 bytes"),
    ],
)
def test_wrong_forms_are_refused_and_leave_no_job(
    service: Running, name: str, fields: dict[str, str], status: int, message: str
) -> None:
    before = service.client.get("/api/jobs").json()
    answer = service.post(b"x", name, **fields)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert service.client.get("/api/jobs").json() == before
    assert {job["id"] for job in before} == {one.name for one in (service.folder / "jobs").iterdir()}


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_bodies_that_are_no_form_are_refused(service: Running, kind: str) -> None:
    answer = service.client.post("/api/jobs", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "multipart/form-data" in answer.json()["detail"]


def test_a_form_without_a_file_is_refused(service: Running) -> None:
    answer = service.client.post("/api/jobs", files={"model": (None, "toy")})
    assert (answer.status_code, "found none in the form" in answer.text) == (422, True)


def test_a_malformed_form_is_refused(service: Running) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert service.client.post("/api/jobs", content=b"nonsense", headers=headers).status_code == 400


def test_a_form_that_ends_early_is_a_failed_job(service: Running) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="Doe.nii"\r\n\r\n' + bytes(500)
    answer = service.client.post("/api/jobs", content=form, headers=headers)
    assert answer.status_code == 400
    assert "Send the image again" in answer.json()["detail"]
    newest = service.client.get("/api/jobs").json()[0]
    assert (newest["state"], newest["failure"], newest["message"]) == (
        "failed",
        "truncated",
        answer.json()["detail"],
    )
    assert [one.name for one in (service.folder / "jobs" / newest["id"]).iterdir()] == ["job.json"]


def test_a_truncated_file_fails_with_a_message_without_names(service: Running, tmp_path: Path) -> None:
    content = image_bytes(tmp_path)
    job = service.finished(service.post(content[: len(content) // 2], "Doe_Jane.nii.gz").json()["id"])
    assert (job["state"], job["failure"]) == ("failed", "refused")
    assert job["message"].startswith("image.nii.gz: ")
    assert str(service.folder) not in job["message"]
    assert service.client.get(f"/api/jobs/{job['id']}/result").status_code == 409
    assert not (service.folder / "jobs" / job["id"] / "image.nii.gz").exists()


def test_the_log_holds_jobs_and_events_only(service: Running, tmp_path: Path) -> None:
    job_id = service.finished(service.post(image_bytes(tmp_path), "Doe_Jane.nii.gz").json()["id"])["id"]
    service.finished(service.post(b"no image", "Doe_John.nii.gz").json()["id"])
    text = service.log.getvalue()
    assert "Doe" not in text
    assert ALICE not in text
    events = [line.split()[1] for line in text.splitlines() if job_id in line]
    assert events == ["queued", "started", "done"]


def test_a_finished_job_keeps_no_input(service: Running, tmp_path: Path) -> None:
    job_id = service.finished(service.post(image_bytes(tmp_path)).json()["id"])["id"]
    kept = {one.name for one in (service.folder / "jobs" / job_id).iterdir()}
    assert kept == {"job.json", "output", "report.html"}


def test_models_have_names_channels_and_labels(service: Running) -> None:
    (model,) = service.client.get("/api/models").json()
    assert (model["id"], model["channels"]) == ("toy", ["channel 0"])
    assert [(one["name"], one["values"]) for one in model["labels"]] == [("liver", [5]), ("spleen", [7])]


def test_health_needs_no_token(service: Running) -> None:
    answer = service.client.get("/health", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_other_hosts(service: Running, path: str) -> None:
    page = service.client.get(path, headers={"Authorization": ""})
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "https://" not in page.text
    assert 'src="' not in page.text


def test_the_schema_describes_all_requests(service: Running) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    assert set(paths["/api/jobs"]) == {"get", "post"}
    form = paths["/api/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "model", "format", "series"}
    page = service.client.get("/docs").text
    assert all(path in page for path in paths)


def test_every_answer_has_the_headers_that_restrict_browsers(service: Running) -> None:
    for path in ("/", "/api/jobs", "/api/jobs/x", "/nowhere"):
        headers = service.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"


def test_events_show_the_position_and_the_progress(tmp_path: Path) -> None:
    worker = HeldWorker()
    with running(tmp_path, worker=worker) as held:
        first, second = (held.post(b"x").json()["id"] for _ in range(2))
        worker.begun.get(timeout=60)
        shown = held.client.get(f"/api/jobs/{first}").json()
        assert (shown["state"], shown["progress"]) == ("running", {"done": 1, "total": 4})
        assert held.client.get(f"/api/jobs/{second}").json()["position"] == 1
        assert held.client.get(f"/api/jobs/{first}/result").status_code == 409
        assert held.client.delete(f"/api/jobs/{second}").status_code == 204
        held.service.queue.thread.request_stop()  # ends the stream of events
        assert "event" not in held.client.get(f"/api/jobs/{first}/events").text


def test_too_large_uploads_are_refused_before_and_while_they_arrive(tmp_path: Path) -> None:
    with running(tmp_path, worker=HeldWorker(), max_upload=1000) as small:
        assert small.post(bytes(200_000)).status_code == 413

        def parts():
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
            for _ in range(20):
                yield bytes(10_000)

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = small.client.post("/api/jobs", content=parts(), headers=headers)
        assert answer.status_code == 413
        assert "at most 0.001 MB" in answer.json()["detail"]
        assert not list((tmp_path / "jobs").iterdir())


def test_a_full_quota_answers_507_with_a_message(tmp_path: Path) -> None:
    with running(tmp_path, worker=HeldWorker(), max_disk=100_000) as small:
        assert small.post(bytes(60_000)).status_code == 201
        answer = small.post(bytes(60_000))
        assert answer.status_code == 507
        assert "Delete finished jobs" in answer.json()["detail"]
        for job in small.client.get("/api/jobs").json():
            small.client.delete(f"/api/jobs/{job['id']}")


def test_a_full_queue_answers_429(tmp_path: Path) -> None:
    worker = HeldWorker()
    with running(tmp_path, worker=worker, max_queue=2) as small:
        small.post(b"x")
        worker.begun.get(timeout=60)
        assert [small.post(b"x").status_code for _ in range(3)] == [201, 201, 429]


def test_the_record_holds_no_file_name_and_no_token(service: Running, tmp_path: Path) -> None:
    job_id = service.finished(service.post(image_bytes(tmp_path), "Doe_Jane.nii.gz").json()["id"])["id"]
    for file in (service.folder / "jobs" / job_id).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"Doe_Jane" not in content
            assert ALICE.encode() not in content


def test_two_models_have_to_be_chosen_between(toy_model: Path, tmp_path: Path) -> None:
    with running(tmp_path / "service", toy_model, toy_model) as both:
        assert [one["id"] for one in both.client.get("/api/models").json()] == ["toy", "toy-2"]
        assert both.post(image_bytes(tmp_path)).status_code == 422
        assert both.post(image_bytes(tmp_path), model="toy-2").json()["model"] == "toy-2"

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.errors import DiskFullError, ModelError
from medseg.serve import job_store
from medseg.serve.job import Failure, JobState
from medseg.serve.worker.messages import Failed, Finished
from tests.helpers.services import HeldWorker, Running, running

DONE = Finished("5e2f", ("a remark",))


def post(service: Running) -> str:
    return str(service.post(b"x").json()["id"])


def test_jobs_run_one_after_the_other(tmp_path: Path) -> None:
    worker = HeldWorker()
    with running(tmp_path, worker=worker) as service:
        ids = [post(service) for _ in range(3)]
        for job_id in ids:
            assert worker.begun.get(timeout=60).folder.name == job_id
            assert worker.begun.empty()
            worker.answers.put(DONE)
        job = service.finished(ids[-1])
        assert (job["state"], job["label_map_hash"], job["notes"]) == ("done", "5e2f", ["a remark"])
        assert worker.starts == 1


@pytest.mark.parametrize("failure", [Failure.CRASHED, Failure.TIMEOUT])
def test_a_process_that_crashed_fails_its_job_and_is_replaced(tmp_path: Path, failure: Failure) -> None:
    worker = HeldWorker()
    with running(tmp_path, worker=worker) as service:
        first, second = post(service), post(service)
        worker.answers.put(Failed(failure, "it ended", "ValueError@file.py:3"))
        worker.answers.put(DONE)
        assert service.finished(first)["failure"] == failure.value
        assert service.finished(second)["state"] == "done"
        assert worker.starts == 2
        assert f"failed job={first}" in service.log.getvalue()
        assert "place=ValueError@file.py:3" in service.log.getvalue()
        assert "it ended" not in service.log.getvalue()


def test_a_job_that_runs_can_be_deleted(tmp_path: Path) -> None:
    worker = HeldWorker()
    with running(tmp_path, worker=worker) as service:
        first, second = post(service), post(service)
        worker.begun.get(timeout=60)
        assert service.client.delete(f"/api/jobs/{first}").status_code == 204
        assert worker.begun.get(timeout=60).folder.name == second  # which begins after the first was removed
        assert not (tmp_path / "jobs" / first).exists()
        worker.answers.put(DONE)
        assert service.finished(second)["state"] == "done"


def test_a_service_that_ends_puts_its_job_back(tmp_path: Path) -> None:
    worker = HeldWorker()
    with running(tmp_path, worker=worker) as service:
        job_id = post(service)
        worker.begun.get(timeout=60)
    job = service.service.store.get(job_id)
    assert (job.state, job.starts) == (JobState.QUEUED, 0)
    with running(tmp_path, worker=worker) as again:
        worker.answers.put(DONE)
        assert again.finished(job_id)["state"] == "done"


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    class Broken(HeldWorker):
        def start(self, stopped: object) -> None:
            raise ModelError("model: damaged.")

    with pytest.raises(ModelError, match="damaged"), running(tmp_path, worker=Broken()):
        pass


def test_a_process_that_cannot_be_started_again_fails_the_job_only(tmp_path: Path) -> None:
    class Fragile(HeldWorker):
        def start(self, stopped: object) -> None:
            if self.starts == 1:
                self.starts += 1
                raise ModelError("/srv/model: damaged.")
            super().start(lambda: False)

    worker = Fragile()
    with running(tmp_path, worker=worker) as service:
        ids = [post(service) for _ in range(3)]
        worker.answers.put(Failed(Failure.CRASHED, "it ended"))
        worker.answers.put(DONE)
        jobs = [service.finished(job_id) for job_id in ids]
        assert [job["state"] for job in jobs] == ["failed", "failed", "done"]
        assert "/srv" not in jobs[1]["message"]


@pytest.mark.parametrize("state", ["running", "done"])
def test_a_state_that_cannot_be_written_fails_the_job_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    written = job_store.write_text
    refused: list[Path] = []

    def full(path: Path, text: str) -> None:
        if json.loads(text)["state"] == state and not refused:
            refused.append(path)
            raise DiskFullError("disk: full.")
        written(path, text)

    worker = HeldWorker()
    with running(tmp_path, worker=worker) as service:
        monkeypatch.setattr(job_store, "write_text", full)
        first, second = post(service), post(service)
        for _ in range(2):
            worker.answers.put(DONE)
        job = service.finished(first)
        assert (job["state"], job["failure"]) == ("failed", "resources")
        assert "disk is full" in job["message"]
        assert [one.name for one in (tmp_path / "jobs" / first).iterdir()] == ["job.json"]
        assert service.finished(second)["state"] == "done"

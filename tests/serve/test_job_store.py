from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest

from medseg.errors import DataError, DiskFullError
from medseg.serve.event_log import EventLog
from medseg.serve.job import Failure, Job, JobState
from medseg.serve.job_store import MOST_STARTS, JobStore
from medseg.serve.refusals import RequestRefused
from medseg.serve.settings import ServiceSettings
from tests.helpers.runs import files_of_at_most


def store_of(folder: Path, **settings: float) -> JobStore:
    return JobStore(ServiceSettings(folder, **settings), EventLog(io.StringIO()))  # type: ignore[arg-type]


def queued(store: JobStore, owner: str = "a") -> Job:
    job = store.create(owner)
    (store.folder_of(job.id) / "image.nii").write_bytes(bytes(1000))
    return store.update(job.id, state=JobState.QUEUED, upload="image.nii", model="toy")


def test_jobs_are_predicted_in_the_order_of_their_arrival_also_after_a_restart(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    jobs = [queued(store) for _ in range(3)]
    assert [store.position(job) for job in jobs] == [1, 2, 3]
    again = store_of(tmp_path)
    assert again.next() == jobs[0]
    later = queued(again)
    assert [again.position(job) for job in [*jobs, later]] == [1, 2, 3, 4]


def test_a_restart_keeps_finished_jobs_and_queues_running_ones(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    done, running, uploading = queued(store), queued(store), store.create("a")
    done = store.finish(done.id, JobState.DONE, label_map_hash="5e2f")
    store.update(running.id, state=JobState.RUNNING, starts=1)
    again = store_of(tmp_path)
    assert again.get(done.id) == done
    assert again.get(running.id).state is JobState.QUEUED
    assert (again.folder_of(running.id) / "image.nii").is_file()
    failed = again.get(uploading.id)
    assert (failed.state, failed.failure) == (JobState.FAILED, Failure.TRUNCATED)


def test_a_job_that_ended_the_service_repeatedly_fails(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = queued(store)
    store.update(job.id, state=JobState.RUNNING, starts=MOST_STARTS)
    failed = store_of(tmp_path).get(job.id)
    assert (failed.state, failed.failure) == (JobState.FAILED, Failure.CRASHED)
    assert f"{MOST_STARTS} times" in failed.message


def test_folders_without_a_record_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "x").mkdir(parents=True)
    (tmp_path / "jobs" / "x" / "upload").write_bytes(b"x")
    store_of(tmp_path)
    assert not list((tmp_path / "jobs").iterdir())


@pytest.mark.parametrize("change", [{"format": 2}, {"state": "new"}, {"more": 1}, {"id": "0" * 32}])
def test_records_of_newer_versions_and_damaged_ones_are_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    store = store_of(tmp_path)
    record = store.folder_of(queued(store).id) / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(DataError, match=r"job.json: .*Delete the folder"):
        store_of(tmp_path)


def test_uploads_beyond_the_quota_are_refused_until_space_is_free(tmp_path: Path) -> None:
    store = store_of(tmp_path, max_disk=10_000)
    first, second = store.create("a"), store.create("a")
    store.claim_space(first.id, 6_000)
    with pytest.raises(RequestRefused, match="Delete finished jobs") as refused:
        store.claim_space(second.id, 6_000)
    assert refused.value.status == 507
    store.remove(first.id)
    store.claim_space(second.id, 6_000)
    assert store.free_space == 4_000


def test_space_for_data_of_unknown_size_is_reserved_ahead(tmp_path: Path) -> None:
    store = store_of(tmp_path, max_disk=20 * 2**20)
    job = store.create("a")
    reserved = store.claim_beyond(job.id, 2**20)
    assert reserved == 17 * 2**20
    assert store.free_space == 20 * 2**20 - reserved
    with pytest.raises(RequestRefused, match="left for jobs"):
        store.claim_beyond(job.id, reserved)


def test_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, max_disk=10**30)
    with pytest.raises(RequestRefused, match="left for jobs") as refused:
        store.claim_space(store.create("a").id, 10**29)
    assert refused.value.status == 507


def test_the_sizes_of_files_count_after_a_restart(tmp_path: Path) -> None:
    queued(store_of(tmp_path))
    store = store_of(tmp_path, max_disk=3_000)
    with pytest.raises(RequestRefused, match="disk"):
        store.claim_space(store.create("a").id, 2_500)


def test_a_job_that_cannot_be_recorded_does_not_exist(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    with files_of_at_most(10), pytest.raises((DiskFullError, Exception), match="cannot be written"):
        store.create("a")
    assert store.jobs("a") == []
    assert not list((tmp_path / "jobs").iterdir())


def test_old_jobs_are_deleted_with_their_files(tmp_path: Path) -> None:
    store = store_of(tmp_path, keep=100.0)
    old, new, waiting = queued(store), queued(store), queued(store)
    for job in (old, new):
        store.finish(job.id, JobState.DONE)
    store.update(old.id, finished=1.0)
    store.expire()
    assert {job.id for job in store.jobs("a")} == {new.id, waiting.id}
    assert not store.folder_of(old.id).exists()


def test_a_failed_job_keeps_only_its_record(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = queued(store)
    (store.folder_of(job.id) / "output").mkdir()
    store.finish(job.id, JobState.FAILED, message="no image", failure=Failure.REFUSED)
    assert [one.name for one in store.folder_of(job.id).iterdir()] == ["job.json"]


def test_only_the_user_may_read_the_jobs(tmp_path: Path) -> None:
    store = store_of(tmp_path / "service")
    job = store.create("a")
    for folder in (tmp_path / "service" / "jobs", store.folder_of(job.id)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_another_owner_finds_no_job(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = queued(store, "a")
    assert store.jobs("b") == []
    with pytest.raises(RequestRefused, match="found none") as refused:
        store.get(job.id, "b")
    assert refused.value.status == 404

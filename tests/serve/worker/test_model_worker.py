from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from medseg.serve.job import Failure
from medseg.serve.settings import ModelSettings
from medseg.serve.worker.messages import Failed, Finished, Task
from medseg.serve.worker.model_worker import ModelWorker, Stopped, serve_models
from tests.helpers.services import image_bytes, save_toy_model


def no() -> bool:
    return False


@pytest.mark.slow
def test_a_process_predicts_and_a_crash_fails_its_job(toy_model: Path, tmp_path: Path) -> None:
    image_bytes(tmp_path)
    task = Task(tmp_path, "ct.nii.gz", "toy", ".nii.gz", "", 10**9)
    seen: list[tuple[int, int]] = []
    worker = ModelWorker(ModelSettings((str(toy_model),), device="cpu"))
    worker.start(no)
    try:
        assert [model.id for model in worker.models] == ["toy"]
        done = worker.predict(task, 600, no, lambda *progress: seen.append(progress))
        assert isinstance(done, Finished)
        assert seen[-1][0] == seen[-1][1]
        (process,) = multiprocessing.active_children()
        os.kill(process.pid or 0, signal.SIGKILL)
        ended = worker.predict(task, 600, no, lambda *_: None)
        assert isinstance(ended, Failed)
        assert (ended.failure, worker.is_running) == (Failure.CRASHED, False)
        assert "with signal 9" in ended.message
    finally:
        worker.stop()


def test_a_prediction_that_takes_too_long_fails(tmp_path: Path) -> None:
    worker = ModelWorker(ModelSettings(()))
    worker._connection, other = multiprocessing.Pipe()
    task = Task(tmp_path, "ct.nii.gz", "toy", ".nii.gz", "", 10**9)
    late = worker.predict(task, 0.0, no, lambda *_: None)
    assert other.recv() == task
    other.close()
    assert isinstance(late, Failed)
    assert (late.failure, worker.is_running) == (Failure.TIMEOUT, False)
    assert "after 0 seconds, the limit of the service" in late.message


@pytest.mark.slow
def test_a_process_that_is_not_wanted_any_more_ends_while_it_starts() -> None:
    worker = ModelWorker(ModelSettings(("nowhere",)))
    with pytest.raises(Stopped):
        worker.start(lambda: True)
    assert not worker.is_running
    assert not multiprocessing.active_children()


def test_a_damaged_model_is_named_in_the_answer(tmp_path: Path) -> None:
    model = save_toy_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"x")
    here, there = multiprocessing.Pipe()
    with here, there:
        serve_models(ModelSettings((str(model),), device="cpu"), there)
        answer = here.recv()
    assert isinstance(answer, Failed)
    assert "model.safetensors" in answer.message

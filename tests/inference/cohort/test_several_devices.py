"""Cases spread over processes, one per device; here all of them are on the CPU."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import ConfigError, ModelError, ResourceError
from medseg.inference.cohort import several_devices
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.several_devices import predict_on_devices
from medseg.model_folder.folder import save_model
from medseg.runtime.devices import device_list


@dataclass(frozen=True)
class Copy:
    """Writes the name of the device; some cases end the process, always or the first time."""

    folder: Path

    def __call__(self, device, pairs):
        if device == "broken":
            raise ModelError("model.safetensors: cannot be loaded")
        if device == "late":
            atexit.register(os.kill, os.getpid(), signal.SIGTERM)
        for case, target in pairs:
            tries = self.folder / f"{case.id}.tries"
            tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
            if case.id == "fatal" or (case.id == "once" and tries.read_text() == "x"):
                os.kill(os.getpid(), signal.SIGKILL)
            if case.id == "slow":
                threading.Event().wait(600)
            target.write_text(device)
            yield Outcome(case, target)


@pytest.fixture
def forked(monkeypatch):
    """Fork the processes, which saves the imports of new interpreters; these tests run no network."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(several_devices.multiprocessing, "get_context", lambda method: fork)


def pairs_of(folder, *names):
    return [(Case(name, (folder / name,)), folder / f"{name}.txt") for name in names]


@pytest.mark.slow
def test_every_case_is_done_once_on_one_of_the_devices(tmp_path, forked):
    names = [str(number) for number in range(12)]
    outcomes = list(predict_on_devices(Copy(tmp_path), ("a", "b"), pairs_of(tmp_path, *names)))
    assert sorted(outcome.case.id for outcome in outcomes) == sorted(names)
    assert {outcome.target.read_text() for outcome in outcomes} == {"a", "b"}
    assert all((tmp_path / f"{name}.tries").read_text() == "x" for name in names)


@pytest.mark.slow
def test_only_a_case_that_ends_its_process_twice_fails(tmp_path, forked):
    notes = []
    pairs = pairs_of(tmp_path, "one", "fatal", "once", "two", "three", "four", "five", "six", "seven")
    outcomes = list(predict_on_devices(Copy(tmp_path), ("a", "b"), pairs, notes.append))
    assert sorted(o.case.id for o in outcomes) == sorted(case.id for case, _ in pairs)
    (failed,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed.case.id == "fatal"
    assert isinstance(failed.error, ResourceError)
    assert "ended with signal 9 twice" in str(failed.error)
    assert 1 <= len(notes) <= 3
    assert "the process ended with signal 9; its cases are predicted again" in notes[0]
    assert (tmp_path / "once.txt").is_file()


@pytest.mark.slow
def test_an_interrupted_prediction_leaves_no_process(tmp_path, forked):
    before = set(multiprocessing.active_children())  # loops that other tests have left
    outcomes = predict_on_devices(Copy(tmp_path), ("a",), pairs_of(tmp_path, "one", "slow", "two"))
    assert next(outcomes).case.id == "one"
    outcomes.close()
    assert set(multiprocessing.active_children()) <= before
    assert not (tmp_path / "two.txt").exists()


@pytest.mark.slow
def test_a_process_that_cannot_start_its_work_says_why(tmp_path, forked):
    with pytest.raises(ModelError, match="cannot be loaded"):
        list(predict_on_devices(Copy(tmp_path), ("broken",), pairs_of(tmp_path, "one")))


@pytest.mark.slow
def test_a_process_that_is_stopped_while_it_ends_prints_nothing(tmp_path, capfd):
    (outcome,) = predict_on_devices(Copy(tmp_path), ("late",), pairs_of(tmp_path, "one"))
    assert outcome.error is None
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_label_maps_are_those_of_one_process(make_predictor, tmp_path, measured_children):
    made = make_predictor()
    save_model(tmp_path / "model", made.model, made.saved, made.labels)
    images = []
    for seed in range(3):
        images.append(tmp_path / f"ct_{seed}.nii.gz")
        medseg.write(phantom_case(seed, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0], images[-1])
    for folder, device in (("one", "cpu"), ("two", "cpu,cpu")):
        outcomes = medseg.predict(tmp_path / "model", images, tmp_path / folder, device=device)
        assert [outcome.error for outcome in outcomes] == [None] * 3
    for image in images:
        one, two = (medseg.read_labels(tmp_path / folder / image.name).data for folder in ("one", "two"))
        assert np.array_equal(one, two)
    again = medseg.predict(tmp_path / "model", images, tmp_path / "two", device="cpu", existing="keep")
    assert again == []  # the processes recorded what they wrote


def test_devices_of_an_option(monkeypatch):
    assert device_list(None) == (None,)
    assert device_list("cuda:1") == ("cuda:1",)
    assert device_list("cuda:0, cuda:1,") == ("cuda:0", "cuda:1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_list("all") == ("cuda:0", "cuda:1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        device_list("all")

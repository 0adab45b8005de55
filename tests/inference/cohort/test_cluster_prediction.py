"""Prediction on a Dask cluster of this machine."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import ConfigError
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.cluster_prediction import PredictOnWorker
from medseg.inference.cohort.loaded_models import ModelSource
from medseg.inference.cohort.output_files import OutputFiles
from medseg.model_folder.folder import save_model
from medseg.storage.tsv import read_tsv
from tests.helpers.children import Program, start_program
from tests.helpers.held_prediction import begun, release
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow
pytest.importorskip("distributed", reason="the extra medseg[cluster] is not installed")
CASES = 12
SECONDS = 300.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A model folder, a folder of images of which one is damaged, and the label maps of an undisturbed prediction."""
    from medseg.inference.predictor import Predictor
    from medseg.labels.label_table import Labels
    from medseg.model_folder.settings import SavedModel

    folder = tmp_path_factory.mktemp("cohort")
    saved = SavedModel.parse(
        {
            "medseg": "0.1",
            "name": "liver",
            "model": {"name": "unet_3d", "channels": [4, 8]},
            "channel_names": ["CT"],
            "preprocessing": {"channels": [{"method": "zscore"}]},
            "window": [8, 8, 8],
        }
    )
    network = medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
    labels = Labels.from_names({"background": 0, "liver": 5})
    save_model(folder / "model", network, saved, labels)
    write_phantoms(folder / "data", cases=CASES, shape=(14, 12, 10), spacing=(22, 24, 25))
    images = folder / "data" / "imagesTr"
    predictor: Predictor = medseg.load(folder / "model", device="cpu")
    expected = {file.name: predictor(file).data for file in sorted(images.iterdir())}
    return folder / "model", images, expected


def check(out: Path, expected: dict[str, np.ndarray]) -> None:
    assert sorted(file.name for file in out.glob("*.nii.gz")) == sorted(expected)
    for name, data in expected.items():
        assert np.array_equal(medseg.read_labels(out / name).data, data)
    rows = [row.cells for row in read_tsv(out / "cases.tsv").rows]
    assert [row["state"] for row in rows] == ["predicted"] * len(expected)
    assert not (out / ".cohort" / "claims").exists()
    assert not list(out.glob(".tmp*"))


@contextmanager
def command(
    cohort, out: Path, passing: int, environment: Mapping[str, str], cluster: str = "local:2"
) -> Iterator[tuple[Program, Path]]:
    """Start ``medseg predict`` on a cluster, by default two workers, which hold all but the first cases.

    Yields:
        The process, and the notes of `held_prediction`.
    """
    notes = out.with_name("notes")
    process = start_program("-m", *held(cohort, out, passing, cluster), cwd=ROOT, env=environment)
    try:
        yield process, notes
    finally:
        release(notes)
        process.kill()
        process.communicate()


def held(cohort, out: Path, passing: int, cluster: str) -> list[str]:
    """Return the words of a prediction on a cluster that holds all but the first cases."""
    model, images, _ = cohort
    call = ["predict", str(model), str(images), "-o", str(out), "--device", "cpu", "--cluster", cluster]
    return ["tests.helpers.held_prediction", str(out.with_name("notes")), str(passing), *call]


def wait_until(condition: Callable[[], bool], process: Program | subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, process.poll()
        time.sleep(0.05)


def wait_for_files(out: Path, count: int, process: Program | subprocess.Popen[str]) -> None:
    wait_until(lambda: len(list(out.glob("*.nii.gz"))) >= count, process)


def workers_of(notes: Path) -> list[psutil.Process]:
    """Return the processes that predict and have begun a case."""
    pids = {pid for _, pid in begun(notes)}
    return [process for process in psutil.process_iter() if process.pid in pids]


def test_label_maps_and_tables_are_those_of_one_process(cohort, tmp_path, monkeypatch, forked_workers):
    model, images, expected = cohort
    monkeypatch.chdir(tmp_path)  # paths that are relative to this process
    outcomes = medseg.predict(model, images, "out", device="cpu", cluster="local:2")
    assert sorted(outcome.target for outcome in outcomes) == [Path("out") / name for name in sorted(expected)]
    assert [outcome.error for outcome in outcomes] == [None] * CASES
    check(tmp_path / "out", expected)
    assert medseg.predict(model, images, "out", device="cpu", cluster="local:2", existing="keep") == []
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    (bad,) = medseg.predict(model, "bad.nii.gz", "out", device="cpu", cluster="local:1")
    assert "bad.nii.gz" in str(bad.error)
    assert [row.cells["case"] for row in read_tsv(tmp_path / "out" / "failed.tsv").rows] == ["bad"]


def test_killed_workers_cost_nothing_but_time(cohort, tmp_path, forked_workers):
    """Two workers are killed while they predict a case, and one at any moment; each label map is there as from an undisturbed one.

    A case is given up after three lost workers, so no case loses more than two.
    """
    out = tmp_path / "out"
    with command(cohort, out, passing=4, environment=forked_workers) as (process, notes):
        hit: list[tuple[str, int]] = []
        while len(hit) < 2:
            names, pids = {name for name, _ in hit}, {pid for _, pid in hit}

            def waiting(names=names, pids=pids) -> list[tuple[str, int]]:
                return [
                    (name, pid) for name, pid in begun(notes)[4:] if name not in names and pid not in pids
                ]

            wait_until(lambda waiting=waiting: bool(waiting()), process)
            hit.append(waiting()[0])
            os.kill(hit[-1][1], signal.SIGKILL)
        release(notes)
        time.sleep(random.Random(0).uniform(0, 1))
        for worker in workers_of(notes)[:1]:
            worker.send_signal(signal.SIGKILL)
        printed, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
        assert f"{CASES} of {CASES} cases in" in printed
    check(out, cohort[2])
    names = [name for name, _ in begun(notes)]
    assert all(names.count(name) > 1 for name, _ in hit)


def test_a_killed_command_continues(cohort, tmp_path, forked_workers):
    """With local:N, the scheduler is part of the command."""
    out = tmp_path / "out"
    with command(cohort, out, passing=3, environment=forked_workers) as (process, notes):
        wait_for_files(out, 3, process)
        workers = workers_of(notes)
        assert workers
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=SECONDS)
        assert not alive
    continue_and_check(cohort, out, cluster="local:1")


def continue_and_check(cohort, out: Path, **options: str) -> None:
    """Predict what the three label maps of a folder leave, which are kept unless they were being recorded."""
    written = {file.name: file.stat().st_mtime_ns for file in out.glob("*.nii.gz")}
    assert len(written) == 3
    for name in written:
        assert np.array_equal(medseg.read_labels(out / name).data, cohort[2][name])
    medseg.predict(*cohort[:2], out, device="cpu", existing="keep", **options)
    check(out, cohort[2])
    kept = [name for name, at in written.items() if (out / name).stat().st_mtime_ns == at]
    assert len(kept) >= len(written) - 2


@contextmanager
def dask_process(*arguments: str, **environment: str) -> Iterator[Program]:
    """Start a scheduler or a worker of its own."""
    words = ("-m", *arguments, "--dashboard-address", "127.0.0.1:0")
    process = start_program(*words, cwd=ROOT, env={**os.environ, **environment}, errors_in_output=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address_of(scheduler: Program) -> str:
    """Return the address that a scheduler prints."""
    for line in scheduler.stdout:
        if match := re.search(r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)", line):
            return match[1]
    raise AssertionError(scheduler.poll())


def test_a_killed_scheduler_ends_the_command_which_continues(cohort, tmp_path):
    out = tmp_path / "out"
    scheduler = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
    worker = ("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny")
    preload = ("--preload", "tests.helpers.held_prediction")
    notes = {"MEDSEG_TESTS_NOTES": str(tmp_path / "notes"), "MEDSEG_TESTS_PASSING": "3"}
    with dask_process(*scheduler) as first:
        address = address_of(first)
        with (
            dask_process(*worker, *preload, address, **notes),
            command(cohort, out, passing=3, environment=os.environ, cluster=address) as (process, _),
        ):
            wait_for_files(out, 3, process)
            first.kill()
            _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 4
    assert "medseg predict: cluster: lost the connection to the scheduler" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    continue_and_check(cohort, out)


def test_an_interrupted_command_ends_with_one_message(cohort, tmp_path):
    """Ctrl-C reaches all processes of a terminal; here they are those of a user, new interpreters."""
    out, notes = tmp_path / "out", tmp_path / "notes"
    process = subprocess.Popen(
        [sys.executable, "-m", *held(cohort, out, 1, "local:2")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_files(out, 1, process)
        os.killpg(process.pid, signal.SIGINT)
        release(notes)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("medseg predict: interrupted; finished results are kept.")
        assert "Traceback" not in errors
        assert not (out / ".cohort" / "claims").exists()
    finally:
        release(notes)
        process.kill()
        process.communicate()


def test_a_wrong_cluster_is_refused_before_any_work(cohort, tmp_path):
    model, images, _ = cohort
    with pytest.raises(ConfigError, match="cluster: found 'nowhere'"):
        medseg.predict(model, images, tmp_path / "out", cluster="nowhere")
    assert not (tmp_path / "out").exists()


def test_a_worker_predicts_a_case_unless_a_lost_one_has_recorded_it(cohort, tmp_path):
    model, images, expected = cohort
    name = min(expected)
    source = ModelSource((str(model),), {}, None, None)
    work = PredictOnWorker(source, OutputFiles(tmp_path), CaseRecords(tmp_path), "cpu", 2)
    pair = Case("one", (images / name,)), tmp_path / "one.nii.gz"
    assert work((pair, None)).error is None
    assert np.array_equal(medseg.read_labels(pair[1]).data, expected[name])
    written, record = pair[1].stat().st_mtime_ns, work.records.get("one")
    again = work((pair, None))  # there was no record when the task was sent
    assert (again.error, again.network) == (None, record.seconds)
    assert pair[1].stat().st_mtime_ns == written
    assert work((pair, record.id)).error is None  # the case is to be predicted again
    assert pair[1].stat().st_mtime_ns > written

"""Several processes that predict into one folder share the cases."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

import medseg
from medseg.cluster.claims import Claims
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import write_phantoms
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_queue import CaseQueue, record_ids
from medseg.inference.cohort.case_records import CaseRecord, CaseRecords, CaseState
from medseg.inference.cohort.predict_folder import FolderPrediction, LoadedModels, OutputFiles, named_cases
from medseg.model_folder.folder import save_model
from medseg.storage.tsv import read_tsv
from tests.helpers.children import start_program
from tests.helpers.held_prediction import begun
from tests.helpers.paths import ROOT

CASES = 16
SECONDS = 300.0


@pytest.fixture
def cohort(make_predictor, tmp_path):
    """A model folder and a folder of images."""
    made = make_predictor()
    save_model(tmp_path / "model", made.model, made.saved, made.labels)
    write_phantoms(tmp_path / "data", cases=CASES, shape=(14, 12, 10), spacing=(22, 24, 25))
    return tmp_path / "model", tmp_path / "data" / "imagesTr"


@pytest.fixture
def start(cohort, tmp_path):
    """Return a function that starts ``medseg predict`` in another process, which may hold its cases."""
    model, images = cohort
    started = []

    def start(*options, passing=100 * CASES):
        call = ["predict", str(model), str(images), "-o", str(tmp_path / "out"), "--device", "cpu", *options]
        program = ["-m", "tests.helpers.held_prediction", str(tmp_path / "notes"), str(passing), *call]
        started.append(start_program(*program, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.slow
def test_parts_and_a_process_for_all_cases_share_them_and_a_killed_one_is_replaced(start, cohort, tmp_path):
    """The killed process holds its only case, for which the others wait as long as it lives."""
    model, images = cohort
    out, notes = tmp_path / "out", tmp_path / "notes"
    expected = sorted(file.name for file in images.iterdir())
    killed = start("--part", f"{CASES}/{CASES}", "--skip-existing", passing=0)
    wait_until(lambda: begun(notes))
    ((lost, pid),) = begun(notes)
    assert pid == killed.pid
    others = [start(*part, "--skip-existing") for part in (("--part", "1/2"), ("--part", "2/2"), ())]
    wait_until(lambda: len(list(out.glob("*.nii.gz"))) == CASES - 1)
    assert not (out / lost).exists()
    assert others[-1].poll() is None
    killed.kill()
    for process in others:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
    assert sorted(name for name, _ in begun(notes)) == sorted([*expected, lost])
    assert sorted(file.name for file in out.glob("*.nii.gz")) == expected
    rows = [row.cells for row in read_tsv(out / "cases.tsv").rows]
    assert [row["case"] for row in rows] == [name.removesuffix(".nii.gz") for name in expected]
    assert {row["state"] for row in rows} == {"predicted"}
    assert not (out / ".cohort" / "claims").exists()
    run = json.loads((out / "run.json").read_text())
    assert sorted(one["state"] for one in run["processes"]) == ["finished"] * 3 + ["running"]
    assert sorted(one["part"] for one in run["processes"] if "part" in one) == sorted(
        [f"{CASES}/{CASES}", "1/2", "2/2"]
    )
    predictor = medseg.load(model, device="cpu")
    for name in expected[::5]:
        assert np.array_equal(medseg.read_labels(out / name).data, predictor(images / name).data)


def test_parts_of_a_folder_are_disjoint_and_complete(cohort, tmp_path):
    model, images = cohort
    seen = []
    for index in range(1, 4):
        seen += medseg.predict(model, images, tmp_path / "out", device="cpu", part=f"{index}/3")
    assert sorted(outcome.case.id for outcome in seen) == sorted(file.name[:-7] for file in images.iterdir())
    assert len(read_tsv(tmp_path / "out" / "cases.tsv").rows) == CASES


def pairs_of(folder, names):
    return [(Case(name, (folder / f"{name}.nii",)), folder / f"{name}.nii.gz") for name in names]


@pytest.fixture
def queue_of(tmp_path):
    """Return a function that creates a queue of some cases, whose records say whether they are predicted."""
    records = CaseRecords(tmp_path)

    def create(claims, names="abc"):
        pairs = pairs_of(tmp_path, names)
        before = record_ids(records, [target for _, target in pairs])
        return CaseQueue(pairs, records, claims, before, lambda case, target: True)

    return create


def test_a_queue_skips_what_others_have_claimed_and_waits_for_it_last(queue_of, tmp_path):
    from tests.cluster.test_claims import machine

    records, folder = CaseRecords(tmp_path), tmp_path / "claims"
    with Claims(folder, identity=machine("a")) as one, Claims(folder, identity=machine("b")) as other:
        assert one.take("b")
        queue = queue_of(other)
        assert [case.id for case, _ in queue.free()] == ["a", "c"]
        for case, target in pairs_of(tmp_path, "ac"):
            records.write(CaseRecord(case.id, CaseState.PREDICTED))
            queue.finish(target)
        assert list(queue.free()) == []
        records.write(CaseRecord("b", CaseState.UNFINISHED))
        assert list(queue.free()) == []
        records.write(CaseRecord("b", CaseState.PREDICTED))
        one.finish("b")
        assert queue.next() is None
        assert queue.by_others == 1


def test_a_case_that_failed_elsewhere_is_reported_and_not_tried_again(queue_of, tmp_path):
    records = CaseRecords(tmp_path)
    records.write(CaseRecord("a", CaseState.FAILED, message="of an earlier call"))
    with Claims(tmp_path / "claims") as claims:
        queue = queue_of(claims)
        records.write(CaseRecord("b", CaseState.FAILED, message="damaged"))
        assert [case.id for case, _ in queue.free()] == ["a", "c"]
        (outcome,) = queue.failed_elsewhere()
        assert (outcome.case.id, str(outcome.error)) == ("b", "damaged")
        assert queue.failed_elsewhere() == []


def test_without_skipping_only_what_was_predicted_meanwhile_is_skipped(cohort, tmp_path):
    model, images = cohort
    models = LoadedModels.load(model, device="cpu")
    cases = named_cases(images, 1)[:3]
    first = list(FolderPrediction(models, cases, OutputFiles(tmp_path / "out")))
    assert len(first) == 3
    one, other = (FolderPrediction(models, cases, OutputFiles(tmp_path / "out")) for _ in range(2))
    outcomes: list[Outcome] = list(one)
    assert len(outcomes) == 3  # those of the earlier call are predicted again
    assert list(other) == []  # it began before these


def test_a_case_that_was_being_written_when_a_process_began_is_not_predicted_again(cohort, tmp_path):
    model, images = cohort
    models = LoadedModels.load(model, device="cpu")
    cases = named_cases(images, 1)[:2]
    others = []
    write = CaseRecords.write

    def begin_meanwhile(records, record):
        write(records, record)
        if record.is_unfinished:
            others.append(FolderPrediction(models, cases, OutputFiles(tmp_path / "out"), "keep"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaseRecords, "write", begin_meanwhile)
        assert len(list(FolderPrediction(models, cases, OutputFiles(tmp_path / "out")))) == 2
    assert [len(other.pending) for other in others] == [2, 1]
    assert [list(other) for other in others] == [[], []]

"""The tables of a folder are built from the records of all cases and processes."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager

import pytest

import medseg
from medseg.cluster.claims import Claims
from medseg.data.datasets.phantom import write_phantoms
from medseg.inference.cohort import cohort_tables
from medseg.inference.cohort.case_records import CaseRecord, CaseRecords, CaseState
from medseg.inference.cohort.cohort_tables import CohortTables, complete_tables, review_line
from medseg.inference.cohort.model_id import model_hash
from medseg.inference.quality.quality_model import (
    DiceRegression,
    QualityModel,
    UsualRange,
    VolumeRatios,
)
from medseg.model_folder.folder import save_model
from medseg.storage.temporary_names import temporary_file
from medseg.storage.tsv import read_tsv
from medseg.volumes.voxel_hash import voxel_hash


@pytest.fixture
def cohort(make_predictor, tmp_path):
    """A model folder and a folder of three images, the second of which is damaged."""
    made = make_predictor()
    save_model(tmp_path / "model", made.model, made.saved, made.labels)
    write_phantoms(tmp_path / "data", cases=3, shape=(14, 12, 10), spacing=(22, 24, 25))
    images = tmp_path / "data" / "imagesTr"
    (images / "phantom_001.nii.gz").write_bytes(b"no image")
    return tmp_path / "model", images


def rows(path):
    return [row.cells for row in read_tsv(path).rows]


def test_a_prediction_leaves_tables_behind(cohort, tmp_path):
    model, images = cohort
    out = tmp_path / "out"
    medseg.predict(model, images, out, device="cpu", overlap=0.25)
    cases = rows(out / "cases.tsv")
    assert [row["case"] for row in cases] == [f"phantom_00{number}" for number in range(3)]
    assert [row["state"] for row in cases] == ["predicted", "failed", "predicted"]
    assert cases[0]["source"] == str(images / "phantom_000.nii.gz")
    assert cases[0]["input_hash"] == voxel_hash(medseg.read(images / "phantom_000.nii.gz"))
    labels = medseg.read_labels(out / "phantom_000.nii.gz")
    assert cases[0]["output_hash"] == voxel_hash(labels)
    assert cases[1]["output_hash"] == ""
    assert float(cases[0]["seconds"]) > 0
    assert int(cases[0]["peak_memory_bytes"]) > 10**7
    (failed,) = rows(out / "failed.tsv")
    assert failed["case"] == "phantom_001"
    assert str(images / "phantom_001.nii.gz") in failed["message"]
    volumes = [row for row in rows(out / "volumes.tsv") if row["case"] == "phantom_000"]
    assert [(row["label_value"], row["label"]) for row in volumes] == [
        ("5", "liver"),
        ("7", "spleen"),
        ("300", "tumour"),
    ]
    for row in volumes:
        voxels = (labels.data == int(row["label_value"])).sum()
        assert float(row["volume_ml"]) == pytest.approx(voxels * 22 * 24 * 25 / 1000, rel=1e-4)
    run = json.loads((out / "run.json").read_text())
    assert run["counts"] == {"cases": 3, "unfinished": 0, "predicted": 2, "failed": 1}
    assert run["models"] == [{"model": model_hash(model), "settings": ["overlap=0.25"], "cases": 2}]
    (process,) = run["processes"]
    assert process["state"] == "finished"
    assert process["counts"] == {
        "cases": 3,
        "predicted_before": 0,
        "predicted": 2,
        "failed": 1,
        "by_others": 0,
    }
    assert {"python", "packages", "cores"} <= set(process["environment"])
    assert process["seconds"] > 0


def test_a_later_call_adds_to_the_tables_and_forgets_old_failures(cohort, tmp_path):
    model, images = cohort
    out = tmp_path / "out"
    medseg.predict(model, images / "phantom_000.nii.gz", out, device="cpu")
    medseg.predict(model, images / "phantom_001.nii.gz", out, device="cpu")
    medseg.write(medseg.read(images / "phantom_002.nii.gz"), images / "phantom_001.nii.gz")
    medseg.predict(model, images, out, device="cpu", existing="keep")
    assert [row["state"] for row in rows(out / "cases.tsv")] == ["predicted"] * 3
    assert rows(out / "failed.tsv") == []
    run = json.loads((out / "run.json").read_text())
    assert [one["counts"]["predicted_before"] for one in run["processes"]] == [0, 0, 1]


@pytest.mark.parametrize("complete", [True, False])
def test_the_next_start_removes_what_a_killed_process_left_among_the_records(
    cohort, tmp_path, monkeypatch, complete
):
    model, images = cohort
    out, image = tmp_path / "out", images / "phantom_000.nii.gz"
    medseg.predict(model, image, out, device="cpu")
    ended = subprocess.Popen(["true"])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        names = ("cases/phantom_000.json", "processes/a.json", "claims/phantom_000.claim")
        left = [temporary_file(out / ".cohort" / name) for name in names]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    if complete:
        complete_tables(out)
    else:
        medseg.predict(model, image, out, device="cpu", existing="keep")
    assert not any(file.exists() for file in left)
    assert [row["state"] for row in rows(out / "cases.tsv")] == ["predicted"]


def test_estimates_and_flags_are_in_the_tables_and_in_the_closing_line(make_predictor, cohort, tmp_path):
    model, images = cohort
    medseg.write(medseg.read(images / "phantom_002.nii.gz"), images / "phantom_001.nii.gz")
    made, out = make_predictor(), tmp_path / "out"
    quality = QualityModel(
        cases=40,
        threshold=1.5,
        dice={"liver": DiceRegression(intercept=0.8, low=-0.1, high=0.1, cases=40)},
        volumes={"liver": VolumeRatios(low=0.5, high=2.0, cases=40), "spleen": VolumeRatios(cases=4)},
        usual={"volume": {"liver": UsualRange(median=-9.0, below=0.1, above=0.1)}},
    )
    save_model(model, made.model, made.saved, made.labels, finish=quality.write)
    medseg.predict(model, images, out, device="cpu", part="1/2", source_names=False)
    medseg.predict(model, images, out, device="cpu", part="2/2", source_names=False)
    medseg.predict(model, images, out, device="cpu", existing="keep", source_names=False)
    liver, spleen, _ = [row for row in rows(out / "volumes.tsv") if row["case"] == "phantom_000"]
    ml = float(liver["volume_ml"])
    assert 0 < float(liver["expected_dice"]) < 0.8  # reduced, because the volume is flagged
    assert (liver["volume_low_ml"], liver["volume_high_ml"]) == ("", "")  # likewise
    assert (liver["expected_dice_low"], liver["expected_dice_high"], liver["coverage"]) == ("0", "0.9", "")
    assert [spleen[column] for column in list(spleen)[4:]] == [""] * 6
    cases = rows(out / "cases.tsv")
    assert [row["flags"] for row in cases] == ["volume"] * 3
    assert f"volume of liver: found {ml:.3g} ml, expected " in cases[0]["reasons"]
    assert str(images) not in (out / "cases.tsv").read_text()
    names = [row["case"] for row in cases]
    assert review_line(out, names, most=2).startswith(
        "3 of 3 cases to review: phantom_000 (volume), phantom_001 (volume), 1 more; see "
    )
    assert review_line(out, names[:1]).startswith("1 of 1 case to review: phantom_000 (volume); see ")
    assert review_line(out, names).endswith(f"see {out / 'volumes.tsv'} and {out / 'cases.tsv'}")


def test_no_tables_are_written_into_a_folder_without_predictions(tmp_path):
    complete_tables(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_are_left_out_on_request(cohort, tmp_path):
    model, images = cohort
    medseg.predict(model, images, tmp_path / "out", device="cpu", source_names=False)
    files = [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".json", ".tsv")]
    assert len(files) >= 4 + 3 + 1
    for file in files:
        assert str(images) not in file.read_text()
        assert "phantom_001.nii.gz" not in file.read_text()
    assert [row["source"] for row in rows(tmp_path / "out" / "cases.tsv")] == [""] * 3


def test_tables_of_an_interrupted_prediction_hold_what_was_done(cohort, tmp_path):
    model, images = cohort

    def interrupt(done, total, what):
        if (tmp_path / "out" / "phantom_000.nii.gz").exists():
            raise KeyboardInterrupt

    (images / "phantom_001.nii.gz").unlink()
    with pytest.raises(KeyboardInterrupt):
        medseg.predict(model, images, tmp_path / "out", device="cpu", max_memory="100GB", progress=interrupt)
    assert [row["case"] for row in rows(tmp_path / "out" / "cases.tsv")] == ["phantom_000"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["processes"][0]["state"] == "interrupted"


def test_only_changed_records_are_read_again(tmp_path, monkeypatch):
    records, tables, seen = CaseRecords(tmp_path), CohortTables(tmp_path, Claims(tmp_path / "claims")), []
    for name in "ab":
        records.write(CaseRecord(name, CaseState.FAILED, message="first"))
    import medseg.inference.cohort.cohort_tables as module

    read = module.read_record
    monkeypatch.setattr(module, "read_record", lambda path: seen.append(path.stem) or read(path))
    tables.write()
    records.write(CaseRecord("b", CaseState.FAILED, message="second\tone\nof two lines"))
    tables.write()
    assert sorted(seen) == ["a", "b", "b"]
    assert (tmp_path / "failed.tsv").read_text() == "case\tmessage\na\tfirst\nb\tsecond one of two lines\n"


def test_tables_are_due_after_a_while(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tables = CohortTables(tmp_path, Claims(tmp_path / "claims"))
    assert not tables.are_due
    now[0] += 31
    assert tables.are_due
    tables.write()
    assert not tables.are_due


def test_a_record_that_vanishes_hides_no_other_record(tmp_path, monkeypatch):
    class Vanished:
        name = "a.json"

        def stat(self):
            raise FileNotFoundError

    (tmp_path / "b.json").touch()
    scan = os.scandir

    @contextmanager
    def with_vanished(folder):
        with scan(folder) as entries:
            yield [Vanished(), *entries]

    monkeypatch.setattr(os, "scandir", with_vanished)
    assert list(cohort_tables._listing(tmp_path)) == ["b.json"]

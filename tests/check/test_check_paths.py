from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg.check.check_paths import check_paths, is_model_folder
from medseg.check.check_report import Report
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.datasets.splits import Split
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.experiment.experiment import Experiment
from medseg.experiment.run_folder import RunFolder
from medseg.inference.reference_output import write_reference
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from tests.helpers.planted_faults import AFFINE, arrays, image_file, label_file, name, save, write_clean
from tests.helpers.predictors import MakePredictor


def codes(report: Report) -> list[tuple[str, str]]:
    return [(one.code, one.file) for one in report.findings]


def test_image_files_are_compared_with_each_other(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", arrays(0)[0])
    save(tmp_path / "b.nii", arrays(0)[0].astype(np.float32))
    save(tmp_path / "c.nii", np.zeros((4, 4, 4), np.uint8))
    report = check_paths(sorted(tmp_path.iterdir()))
    assert codes(report) == [("IMAGE_CONSTANT", "c.nii"), ("IMAGE_DUPLICATE", "a.nii.gz")]
    assert report.findings[1].cases == ("a.nii.gz", "b.nii")


def test_the_same_image_in_another_orientation_is_a_duplicate(tmp_path: Path) -> None:
    data = arrays(0)[0]
    save(tmp_path / "a.nii", data)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = data.shape[0] - 1
    save(tmp_path / "b.nii", np.ascontiguousarray(data[::-1]), AFFINE @ flip)
    assert codes(check_paths([tmp_path / "a.nii", tmp_path / "b.nii"])) == [("IMAGE_DUPLICATE", "a.nii")]


def test_a_broken_description_is_a_finding(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=1)
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text[:-1] + ",}")
    (finding,) = check_paths([root]).findings
    assert (finding.code, finding.file) == ("DATASET_UNREADABLE", "dataset.json")
    assert "line 1, column" in f"{finding.field} {finding.found}"


def test_maps_without_an_image_are_listed_and_the_other_cases_checked(tmp_path: Path) -> None:
    for folder, index in (("images", 0), ("labels", 2)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.nii.gz", arrays(0)[index])
    save(tmp_path / "labels" / "b.nii.gz", arrays(1)[2])
    report = check_paths([tmp_path])
    assert codes(report) == [("LABEL_WITHOUT_IMAGE", "labels/b.nii.gz"), ("LABEL_NAMES_MISSING", ".")]
    assert [case.id for case in report.cases] == ["a"]


def test_subjects_of_a_table_may_not_be_on_both_sides_of_a_split(tmp_path: Path) -> None:
    rows = ["case\timage\tlabel\tsubject"]
    for number in range(4):
        save(tmp_path / f"image{number}.nii.gz", arrays(number)[0])
        save(tmp_path / f"label{number}.nii.gz", arrays(number)[2])
        rows.append(f"c{number}\timage{number}.nii.gz\tlabel{number}.nii.gz\ts{number // 2}")
    (tmp_path / "cases.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tliver\n2\ttumour\n")
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ["c0", "c2"], "validation": ["c1"]}]))
    assert codes(check_paths([tmp_path])) == [("SPLIT_LEAKS_SUBJECT", "splits.json")]
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ["c0", "c9"], "validation": ["c1"]}]))
    (finding,) = check_paths([tmp_path]).findings
    assert (finding.code, finding.field) == ("SPLIT_INVALID", "fold 0")
    assert "'c9'" in finding.found


def test_a_label_in_no_training_case_of_a_fold(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=6)
    for number in range(1, 6):
        save(root / label_file(number), np.minimum(arrays(number)[2], 1))
    (root / "splits_final.json").unlink()
    (finding,) = check_paths([root]).findings
    assert (finding.code, finding.file) == ("LABEL_MISSING_IN_FOLD", "default 5 folds")
    assert finding.found == "tumour in no training case, but in case_000"


def test_phantoms_have_no_finding_but_their_orientations(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", cases=8, shape=(32, 28, 20), spacing=(9, 9, 12))
    assert {one.code for one in check_paths([tmp_path / "set"]).findings} <= {"ORIENTATIONS_MIXED"}


def test_a_changed_file_of_a_model_folder_is_found(tmp_path: Path, make_predictor: MakePredictor) -> None:
    folder = tmp_path / "model"
    predictor = make_predictor()
    save_model(folder, predictor.model, predictor.saved, predictor.labels, finish=write_reference)
    assert is_model_folder(folder)
    assert check_paths([folder]).findings == ()
    with (folder / "labels.tsv").open("a") as file:
        file.write("9\tmore\n")
    (finding,) = check_paths([folder]).findings
    assert finding.code == "MODEL_DAMAGED"
    assert "labels.tsv" in f"{finding.field} {finding.found}"


def test_a_missing_image_of_one_of_two_channels(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=2)
    (root / image_file(1, 1)).unlink()
    assert codes(check_paths([root])) == [("IMAGE_MISSING", image_file(1, 1))]
    shutil.rmtree(root / "labelsTr")
    assert [code for code, _ in codes(check_paths([root]))] == [
        "IMAGE_MISSING",
        "LABEL_MISSING",
        "LABEL_MISSING",
    ]


@pytest.mark.parametrize("suffix", [".png", ".nrrd", ".tif"])
def test_web_pages_are_recognised_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    path.write_text("<html><body>Sign in</body></html>")
    (finding,) = check_paths([path]).findings
    assert (finding.code, finding.found) == ("FILE_IS_WEB_PAGE", "an HTML page")


def test_a_run_is_checked_with_its_own_labels_and_splits(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=6)
    (root / "splits_final.json").unlink()
    shutil.copy(root / image_file(0), root / image_file(5))
    shutil.copy(root / image_file(0, 1), root / image_file(5, 1))
    (root / label_file(2)).unlink()
    experiment = Experiment.parse(
        {
            "name": "a",
            "model": {"name": "unet_3d"},
            "data": {"path": str(root), "labels": {"background": 0, "liver": 1}},
        }
    )
    run = RunFolder(tmp_path / "run")
    preprocessing = Preprocessing.parse({"channels": [{"method": "zscore"}] * 2})
    split = Split(train=(name(0), name(1), name(2), name(3)), validation=(name(5),))
    run.open(experiment, split, Labels.from_names({"liver": 1}), preprocessing)
    report = check_paths([run.path])
    unknown = [("LABEL_VALUE_UNKNOWN", label_file(number)) for number in (0, 1, 3, 4, 5)]
    leak = ("SPLIT_LEAKS_IMAGE", str(run.splits))
    duplicate = ("IMAGE_DUPLICATE", image_file(0))
    assert codes(report) == [("LABEL_MISSING", label_file(2)), *unknown, leak, duplicate]


def test_a_run_whose_config_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: [")
    (finding,) = check_paths([tmp_path]).findings
    assert finding.code == "RUN_UNREADABLE"


def test_files_of_several_datasets_keep_their_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        root = write_clean(tmp_path / folder, cases=1)
        (root / label_file(0)).unlink()
    report = check_paths([tmp_path / "a", tmp_path / "b"])
    files = [one.file for one in report.findings if one.code == "LABEL_MISSING"]
    assert files == [str(tmp_path / folder / label_file(0)) for folder in ("a", "b")]

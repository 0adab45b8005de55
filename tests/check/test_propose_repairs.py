from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.check.cases.check_case import CheckedCase
from medseg.check.datasets.check_dataset import CheckedDataset
from medseg.check.finding import Finding
from medseg.check.propose_repairs import _of_finding, propose_repairs
from medseg.cli.main import main
from medseg.data.datasets.cases import Case, Dataset, ReadingOptions
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.data.datasets.repairs import Repair, Repairs
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import DataError
from medseg.evaluation.label_maps.pairs import Pair
from medseg.experiment.experiment import Experiment
from medseg.experiment.resolve_data import find_dataset
from medseg.experiment.run_folder import RunFolder
from medseg.labels.label_table import Labels
from tests.helpers import nifti_files
from tests.helpers.planted_faults import (
    CASES,
    LABELS,
    arrays,
    describe,
    label_file,
    name,
    plant,
    save,
    write_clean,
)

REPAIRED = {
    10: "read_orientation_from",
    11: "read_orientation_from",
    12: "read_orientation_from",
    13: "read_orientation_from",
    18: "take_image_grid",
    24: "round_values",
    25: "map_values",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The dataset with planted faults, and its file of repairs."""
    folder = tmp_path_factory.mktemp("repairs")
    root = write_clean(folder / "set")
    plant(root)
    describe(
        root, labels=LABELS, numTraining=CASES
    )  # without a label in no case, to which a value could be mapped, too
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main(["check", str(root), "--repair", str(folder / "repairs.yaml")]) == 2
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    return root, folder / "repairs.yaml"


@pytest.fixture
def repaired(written: tuple[Path, Path]) -> Dataset:
    root, repairs = written
    return read_dataset(root, reading=ReadingOptions(repairs=str(repairs)))


def test_repaired_cases_have_the_labels_and_images_of_the_clean_dataset(
    repaired: Dataset, tmp_path: Path
) -> None:
    clean = read_dataset(write_clean(tmp_path / "clean"))
    assert clean.labels is not None
    for number in REPAIRED:
        case, expected = repaired.case(name(number)), clean.case(name(number))
        label, truth = (read_case_label(one, clean.labels) for one in (case, expected))
        assert np.array_equal(label.data, truth.data), number
        assert label.grid.matches(truth.grid), number
        assert np.array_equal(read_case_image(case).data, read_case_image(expected).data), number


def test_each_repair_states_its_reason_and_the_content_of_its_files(written: tuple[Path, Path]) -> None:
    repairs = Repairs.read(written[1]).repairs
    actions = {one.case: one.action for one in repairs}
    assert {number: actions[name(number)] for number in REPAIRED} == REPAIRED
    assert actions[name(1)] == actions[name(4)] == actions[name(34)] == "leave_out"
    assert name(33) not in actions
    for one in repairs:
        assert one.reason.split()[0] in ("error", "warning")
        assert len(one.files) == 3
    missing = next(one for one in repairs if one.case == name(1))
    assert [file for file, state in missing.files.items() if state is None] == [
        "imagesTr/case_001_0000.nii.gz"
    ]


def test_cases_that_cannot_be_repaired_are_left_out(repaired: Dataset) -> None:
    left_out = {name(number) for number in (1, 2, 3, 4, 5, 6, 7, 9, 14, 15, 16, 17, 19, 26, 29, 34)}
    assert left_out.isdisjoint(repaired.ids)
    assert len(repaired.cases) == 40 - len(left_out)


def test_a_check_with_the_repairs_has_no_errors_in_cases(
    written: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(written[0]), "--repairs", str(written[1])])
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert [line.split()[1] for line in errors] == [
        "SPLIT_INVALID"
    ]  # the split still names cases that are left out


def test_files_of_cases_that_are_left_out_are_still_listed(
    written: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(written[0]), "--repairs", str(written[1])])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines if "FILE_NOT_LISTED" in line] == ["labelsTr/case_099.nii.gz:"]
    assert not [line for line in lines if "COUNT_DIFFERS" in line]


def test_the_repair_of_a_changed_file_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_clean(tmp_path / "set", cases=3)
    save(root / label_file(1), arrays(1)[2].astype(np.float32) * np.float32(0.97))
    file = tmp_path / "repairs.yaml"
    main(["check", str(root), "--repair", str(file)])
    reading = ReadingOptions(repairs=str(file))
    assert read_dataset(root, reading=reading).case(name(1)).reading.round_labels
    save(root / label_file(1), arrays(2)[2].astype(np.float32) * np.float32(0.97))
    with pytest.raises(DataError, match=f"case {name(1)}: round_values: {label_file(1)} changed"):
        read_dataset(root, reading=reading)
    capsys.readouterr()
    assert main(["check", str(root), "--repairs", str(file)]) == 2
    shown = capsys.readouterr().out
    assert f"error REPAIR_OUTDATED {label_file(1)}: round_values" in shown
    assert f"error LABEL_NOT_WHOLE {label_file(1)}" in shown


@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")  # of files that a plan reads anyway
def test_a_plan_and_its_experiment_use_the_repairs(written: tuple[Path, Path], tmp_path: Path) -> None:
    root, repairs = written
    plan = tmp_path / "plan.yaml"
    assert main(["plan", str(root), "--repairs", str(repairs), "--device", "cuda", "-o", str(plan)]) == 0
    experiment = Experiment.load(plan)
    assert experiment.data.repairs == str(repairs)
    case = find_dataset(experiment, tmp_path).case(name(25))
    assert case.reading.label_values == ((255, 2),)


def test_a_run_keeps_a_copy_of_the_repairs(written: tuple[Path, Path], tmp_path: Path) -> None:
    root, repairs = written
    experiment = Experiment.parse(
        {"name": "a", "model": {"name": "unet_3d"}, "data": {"path": str(root), "repairs": str(repairs)}}
    )
    run = RunFolder(tmp_path / "run")
    run.open_for_folds(experiment, [], Preprocessing.parse({"channels": [{"method": "zscore"}]}))
    assert (run.path / "repairs.yaml").read_bytes() == repairs.read_bytes()
    run.check_vacant_for_folds()


def test_references_are_repaired_and_predictions_are_not(repaired: Dataset) -> None:
    case = repaired.case(name(25))
    assert case.label is not None
    prediction, reference = Pair(case.id, case.label, case.label, reading=case.reading).volumes()
    assert set(np.unique(prediction.data)) == {0, 1, 255}
    assert set(np.unique(reference.data)) == {0, 1, 2}


def test_an_existing_file_of_repairs_is_not_replaced(
    written: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = written[1].read_bytes()
    assert main(["check", str(written[0]), "--repair", str(written[1])]) == 1
    assert "may have been edited" in capsys.readouterr().err
    assert written[1].read_bytes() == before


def test_repairs_of_unknown_cases_and_formats_are_refused(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=2)
    file = tmp_path / "repairs.yaml"
    file.write_text("format: 1\nrepairs:\n- {case: case_0001, action: leave_out, reason: none, files: {}}\n")
    with pytest.raises(DataError, match="no case 'case_0001'"):
        read_dataset(root, reading=ReadingOptions(repairs=str(file)))
    file.write_text("format: 2\nrepairs: []\n")
    with pytest.raises(DataError, match="newer medseg"):
        Repairs.read(file)


HEADER = Finding("QFORM_SFORM_DIFFER", "a.nii", "sform", "another place", case="a")
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def of_finding(code: str, case: Case, counts: dict[int, int] | None = None) -> Repair | None:
    dataset = Dataset(
        "set", case.images[0].parent, (case,), ("CT",), Labels.from_names({"background": 0, "liver": 1})
    )
    checked = CheckedCase("a", "a", (), label_counts=counts)
    return _of_finding(Finding(code, "a.nii", "voxels", "a fault", case="a"), case, checked, dataset)


def test_a_contradictory_header_is_repaired_only_by_a_form_with_which_the_files_agree(tmp_path: Path) -> None:
    voxels, shifted = np.zeros((4, 5, 6), np.uint8), AFFINE.copy()
    shifted[0, 3] = 40
    image, same, other, torn = (tmp_path / f"{name}.nii" for name in ("image", "same", "other", "torn"))
    nifti_files.save(image, voxels, AFFINE)
    nifti_files.save(same, voxels, AFFINE)
    nifti_files.save(other, voxels, shifted)
    torn.write_bytes(b"torn")
    assert of_finding(HEADER.code, Case("a", (image,))) is None  # without another file
    assert of_finding(HEADER.code, Case("a", (image,), label=other)) is None
    assert of_finding(HEADER.code, Case("a", (image,), label=torn)) is None
    found = of_finding(HEADER.code, Case("a", (image,), label=same))
    assert found is not None
    assert (found.action, found.orientation_from) == ("read_orientation_from", "sform")


@pytest.mark.parametrize("code", ["GRID_LABEL_DIFFERS", "LABEL_NOT_WHOLE", "LABEL_VALUE_UNKNOWN"])
def test_a_fault_of_an_instance_map_has_no_repair(tmp_path: Path, code: str) -> None:
    image = nifti_files.save(tmp_path / "image.nii", np.zeros((4, 5, 6), np.uint8))
    assert of_finding(code, Case("a", (image,), instances=image)) is None


def test_a_label_map_that_cannot_be_read_has_no_repair(tmp_path: Path) -> None:
    image = nifti_files.save(tmp_path / "image.nii", np.zeros((4, 5, 6), np.uint8))
    assert of_finding("GRID_LABEL_DIFFERS", Case("a", (image,), label=tmp_path / "missing.nii")) is None


def test_an_unknown_value_is_mapped_only_to_the_one_label_that_is_absent(tmp_path: Path) -> None:
    image = nifti_files.save(tmp_path / "image.nii", np.zeros((4, 5, 6), np.uint8))
    case = Case("a", (image,), label=image)
    mapped = of_finding("LABEL_VALUE_UNKNOWN", case, {0: 5, 7: 3})
    assert mapped is not None
    assert mapped.values == {7: 1}
    assert of_finding("LABEL_VALUE_UNKNOWN", case, {0: 5, 7: 3, 8: 2}) is None


def test_a_dataset_without_a_usable_description_has_no_repairs(tmp_path: Path) -> None:
    assert propose_repairs(CheckedDataset(tmp_path, (), (HEADER,), None)).repairs == ()

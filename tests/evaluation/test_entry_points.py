from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.evaluation.entry_points import evaluate
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.pairs import Pair, pair_files
from medseg.io.files import write
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.paths import SHARED_FOLDER

CASES = ("case_01", "case_02", "case_10")


def cube(size: int = 4, values: tuple[int, int] = (1, 2)) -> Volume:
    data = np.zeros((1, 8, 8, 8), np.uint8)
    data[0, 1 : 1 + size, 1:5, 1:5] = values[0]
    data[0, 6:, 6:, 6:] = values[1]
    return Volume(data, Grid.from_spacing((8, 8, 8), (1, 1, 2)), "label")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, references = tmp_path / "predictions", tmp_path / "labels"
    predictions.mkdir()
    references.mkdir()
    for case in CASES:
        write(cube(3), predictions / f"{case}.nii.gz")
        write(cube(4), references / f"{case}.nii.gz")
    return predictions, references


def test_two_volumes() -> None:
    table = evaluate(cube(3), cube(4))
    assert [row.label for row in table.rows] == ["label_1", "label_2"]
    assert table.mean()["label_1"]["dice"] == pytest.approx(2 * 3 / 7)
    assert table.mean()["label_2"]["dice"] == 1


def test_names_come_from_labels_or_from_either_map() -> None:
    names = Labels.from_names({"tumour": 2, "organ": 1})
    assert evaluate(cube(), cube(), names).labels == ("organ", "tumour")
    assert evaluate(cube(values=(1, 5)), cube()).labels == ("label_1", "label_2", "label_5")


def test_volume_against_file(tmp_path: Path) -> None:
    path = tmp_path / "patient.7.nii.gz"
    write(cube(4), path)
    for table in (evaluate(cube(3), path), evaluate(path, cube(3)), evaluate(str(path), path)):
        assert table.cases == ("patient.7",)
    assert evaluate(cube(3), path).mean()["label_1"]["dice"] == pytest.approx(6 / 7)


def test_formats_and_orientations_may_differ(tmp_path: Path) -> None:
    write(cube(3), tmp_path / "a.nii.gz")
    write(cube(4).reoriented("LPS"), tmp_path / "b.nrrd")
    assert evaluate(tmp_path / "a.nii.gz", tmp_path / "b.nrrd").rows[0].dice == pytest.approx(6 / 7)


def test_folders_match_by_case(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (references / "dataset.json").write_text("{}")
    (references / ".hidden.nii.gz").write_text("")
    write(cube(), predictions / "unreferenced.nii.gz")
    table = evaluate(predictions, str(references), tolerance_mm=3)
    assert table.cases == CASES
    assert len(table) == 6
    assert table.options.tolerance_mm == 3
    assert table.foreground_mean()["dice"] == pytest.approx((6 / 7 + 1) / 2)


def test_missing_predictions_are_all_named(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "case_02.nii.gz").unlink()
    (predictions / "case_10.nii.gz").unlink()
    with pytest.raises(DataError, match="missing for 2 of 3 references: case_02, case_10"):
        evaluate(predictions, references)
    assert [pair.case for pair in pair_files(predictions, references, ["case_01"])] == ["case_01"]


def test_cases_without_reference_are_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(
        DataError, match=r"found no reference of case_3, expected one per case\. Did you mean 'case_"
    ):
        pair_files(*folders, ["case_01", "case_3"])


def test_repeated_case_raises(folders: tuple[Path, Path]) -> None:
    write(cube(), folders[0] / "case_01.nrrd")
    with pytest.raises(DataError, match=r"'case_01' has two files.*case_01.nii.gz and case_01.nrrd"):
        evaluate(*folders)


def test_incompatible_paths_raise(folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = folders[0] / "case_01.nii.gz"
    with pytest.raises(DataError, match="no such file or folder"):
        evaluate(tmp_path / "nowhere", folders[1])
    with pytest.raises(DataError, match="a file and a folder"):
        evaluate(file, folders[1])
    with pytest.raises(DataError, match="a folder and a volume"):
        evaluate(cube(), folders[1])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="found no label map"):
        evaluate(empty, folders[1])


def test_cases_come_one_by_one_and_name_the_faulty_one(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(cube().cropped((0, 0, 0), (8, 8, 7)), predictions / "case_02.nii.gz")
    cases = evaluate_cases(pair_files(predictions, references))
    assert {row.case for row in next(cases)} == {"case_01"}
    with pytest.raises(DataError, match="case_02: prediction: not on the grid"):
        next(cases)


def test_pairs_may_be_in_memory() -> None:
    rows = list(
        evaluate_cases(
            [Pair("x", cube(3), cube(4)), Pair("y", cube(4), cube(4))], options=MetricOptions(tolerance_mm=0)
        )
    )
    assert [case[0].case for case in rows] == ["x", "y"]
    assert rows[1][0].surface_dice == 1


def test_nothing_to_measure_is_an_empty_table() -> None:
    blank = cube(values=(0, 0))
    assert evaluate(blank, blank).rows == ()


def test_real_labels() -> None:
    folder = SHARED_FOLDER / "data" / "ct_torso"
    if not folder.is_dir():
        pytest.skip("no shared data beside the checkout")
    labels = Labels.from_tsv(folder / "labels.tsv")
    table = evaluate(folder / "labels.nii.gz", folder / "labels.nii.gz", labels)
    assert len(table) == 117
    assert table.foreground_mean()["dice"] == table.foreground_mean()["surface_dice"] == 1
    assert table.foreground_mean()["hd95_mm"] == 0
    assert sum(found["dice"].n for found in table.statistics().values()) == 61

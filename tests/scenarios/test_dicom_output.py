"""From a DICOM series to a DICOM segmentation, and on to evaluation and viewer."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest

import medseg
from medseg.cli.main import main
from medseg.data.datasets.cases import Case
from medseg.evaluation.label_maps.pairs import Pair
from medseg.io.companions.label_names import label_names_of
from medseg.model_folder.folder import save_model
from medseg.storage.tsv import read_tsv
from medseg.viz.viewer.open_cases import open_image
from medseg.volumes.volume import Volume
from tests.helpers.dicom_labels import SUFFIXES, image_on, oblique_grid, texts_of
from tests.helpers.dicom_series import save_series
from tests.helpers.paths import SHARED_FOLDER

CANARY = "Kanarienvogel"
PATIENT = {
    "PatientName": f"{CANARY}^" + "x" * 70,  # longer than the standard allows, so that libraries complain
    "PatientID": f"{CANARY}-id" * 9,
    "PatientBirthDate": f"{CANARY}-day",
    "ReferringPhysicianName": f"{CANARY}^doctor",
    "InstitutionName": f"{CANARY} hospital",
    "PatientComments": f"{CANARY} comment",
    "StudyDescription": f"{CANARY} study",
}


@pytest.fixture
def model(make_predictor, tmp_path: Path) -> Path:
    """A model folder of a small 3D U-Net."""
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    return tmp_path / "model"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A series whose headers name a patient everywhere."""
    return save_series(tmp_path / "scan", image_on(oblique_grid(shape=(12, 10, 9))), **PATIENT)


@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_command_writes_evaluates_and_skips(
    model: Path, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / "out"
    assert (
        main(["predict", str(model), str(series), "-o", str(out), "--suffix", suffix, "--device", "cpu"]) == 0
    )
    expected = medseg.load(model, device="cpu")(series)
    found = medseg.read_labels(out / f"scan{suffix}")
    assert expected.data.any()
    assert np.array_equal(found.data, expected.data)
    names = label_names_of(out / f"scan{suffix}")
    assert names is not None
    assert set(names.names) <= {"background", "liver", "spleen", "tumour"}
    capsys.readouterr()
    again = [
        "predict",
        str(model),
        str(series),
        "-o",
        str(out),
        "--suffix",
        suffix,
        "--skip-existing",
        "--device",
        "cpu",
    ]
    assert main(again) == 0
    assert "1 of 1 case predicted already" in capsys.readouterr().out
    medseg.write(expected, tmp_path / "reference.nii.gz")
    for pair in (
        Pair("scan", out / f"scan{suffix}", tmp_path / "reference.nii.gz"),
        Pair("scan", tmp_path / "reference.nii.gz", out / f"scan{suffix}"),
    ):
        prediction, reference = pair.volumes()
        assert prediction.grid.matches(reference.grid)
        assert np.array_equal(prediction.data, reference.data)
    case = open_image(series, [out / f"scan{suffix}"])
    assert np.array_equal(next(iter(case.maps.values())).data, expected.data)


@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
def test_model_and_version_are_recorded(model: Path, series: Path, tmp_path: Path) -> None:
    (outcome,) = medseg.predict(model, series, tmp_path / "out", suffix=".seg.dcm", device="cpu")
    item = pydicom.dcmread(outcome.target).SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert item.AlgorithmName == "toy"
    recorded = (tmp_path / "out" / "run.json").read_text()
    assert len(item.AlgorithmVersion) == 12
    assert item.AlgorithmVersion in recorded


def test_other_images_and_series_without_uids_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_on(oblique_grid(shape=(12, 10, 9)))
    medseg.write(image, tmp_path / "ct.nii.gz")
    command = ["predict", str(model), "-o", str(tmp_path / "out"), "--suffix", ".seg.dcm", "--device", "cpu"]
    assert main([*command, str(tmp_path / "ct.nii.gz")]) == 1
    assert "expected folders with DICOM series" in capsys.readouterr().err
    stripped = save_series(tmp_path / "stripped", image, StudyInstanceUID=None)
    assert main([*command, str(stripped)]) == 2
    assert "StudyInstanceUID: found none" in capsys.readouterr().err
    rows = read_tsv(tmp_path / "out" / "failed.tsv").rows
    assert len(rows) == 1


@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
def test_patient_appears_only_where_the_standard_wants_it(
    model: Path,
    series: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    wanted = {"PatientName", "PatientID", "ReferringPhysicianName"}
    for suffix in SUFFIXES:
        command = [
            "predict",
            str(model),
            str(series),
            "-o",
            str(out / suffix),
            "--suffix",
            suffix,
            "--report",
        ]
        assert main([*command, "--device", "cpu", "--debug"]) == 0
        with pydicom.config.disable_value_validation():
            dataset = pydicom.dcmread(out / suffix / f"scan{suffix}")
            plain = [one for one in dataset.iterall() if one.VR != "SQ"]
            assert {one.keyword for one in plain if CANARY in str(one.value)} == wanted
        (out / suffix / f"scan{suffix}").unlink()
    captured = capsys.readouterr()
    assert CANARY not in captured.out + captured.err + caplog.text
    assert CANARY not in texts_of(out)
    broken = save_series(
        tmp_path / "broken", image_on(oblique_grid(shape=(12, 10, 9))), SeriesInstanceUID="", **PATIENT
    )
    assert (
        main(["predict", str(model), str(broken), "-o", str(out), "--suffix", ".seg.dcm", "--device", "cpu"])
        == 2
    )
    captured = capsys.readouterr()
    assert "SeriesInstanceUID" in captured.err
    assert CANARY not in captured.out + captured.err + caplog.text + texts_of(out)


def test_dataset_with_structure_sets_as_labels(tmp_path: Path) -> None:
    grid = oblique_grid(shape=(12, 10, 9))
    series = save_series(tmp_path / "scan", image_on(grid))
    label_map = medseg.read(series)
    label_map = label_map.with_data((label_map.data > 500).astype(np.uint8), "label")
    names = medseg.Labels.from_names({"liver": 1})
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    file = tmp_path / "elsewhere" / "deep" / "scan.rtstruct.dcm"
    medseg.write(label_map, file, names=names)
    from medseg.data.datasets.read_case import read_case_label

    found = read_case_label(Case("scan", (series,), file), names)
    assert np.array_equal(found.data, label_map.data)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_FOLDER / "data" / "ct_torso").is_dir(), reason="the torso CT is not there")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_torso_labels_come_back(tmp_path: Path, suffix: str) -> None:
    folder = SHARED_FOLDER / "data" / "ct_torso"
    names = medseg.Labels.from_tsv(folder / "labels.tsv")
    box = ((0, 0, 60), (122, 101, 12))
    labels = medseg.read_labels(folder / "labels.nii.gz").cropped(*box)
    series = save_series(tmp_path / "series", medseg.read(folder / "example_ct.nii.gz").cropped(*box))
    medseg.write(labels, tmp_path / f"torso{suffix}", names=names, like=series)
    found: Volume = medseg.read_labels(tmp_path / f"torso{suffix}").reoriented_like(labels.grid)
    assert found.grid.matches(labels.grid)
    assert np.array_equal(found.data, labels.data)
    read_back = label_names_of(tmp_path / f"torso{suffix}")
    assert read_back is not None
    assert read_back.values == tuple(np.unique(labels.data))
    assert len(read_back) == 19
    assert all(names.value_of(one.name) == one.value for one in read_back.foreground)

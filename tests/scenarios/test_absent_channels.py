"""Training cases and images without files of some channels: checked, planned, trained, cross-validated, predicted, exported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.data.datasets.cases import ReadingOptions
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_image
from medseg.data.preprocessing.prepare import prepare
from medseg.errors import DataError, DataWarning
from medseg.experiment.experiment import Experiment
from medseg.planning.fingerprint.measure import fingerprint
from tests.helpers.absent_channels import images_of, write_dataset

ZEROS = ReadingOptions(absent_channels="zeros")
LACKING = {1: 0, 2: 1, 4: 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("absent") / "data", LACKING)


def experiment(folder: Path, **changes: object) -> Experiment:
    values: dict[str, object] = {
        "name": "toy",
        "data": {"path": str(folder), "absent_channels": "zeros", "folds": 2},
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1},
        "patch": {"size": [16, 16, 16]},
        "augment": {"drop_channel_p": 0.3},
        "train": {"steps": 4, "batch_size": 2, "validate_every": 4, "validation_batches": 1},
    }
    return Experiment.parse({**values, **changes}, source="toy")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A training on cases that lack channels."""
    folder = data.parent / "run"
    for _ in experiment(data).trainer(run=folder):
        pass
    return folder


def test_statistics_leave_absent_channels_out(data: Path, tmp_path: Path) -> None:
    """The same figures as for the cases that have each channel, of which the CT has its own statistics."""
    measured = fingerprint(read_dataset(data, reading=ZEROS))
    assert {case.id: case.absent for case in measured.cases} == {
        f"case{number}": (LACKING[number],) if number in LACKING else () for number in range(6)
    }
    complete = write_dataset(tmp_path / "complete", {})
    everything = read_dataset(complete)
    for channel in range(2):
        having = [f"case{number}" for number in range(6) if LACKING.get(number) != channel]
        expected = fingerprint(everything.subset(having)).intensities[channel]
        assert measured.intensities[channel] == expected
    (finding, other) = [one for one in measured.findings if one.code == "absent-channel"]
    assert (finding.cases, other.cases) == (("case1",), ("case2", "case4"))
    assert not [one for one in measured.findings if one.code in ("constant-channel", "no-air")][1:]


@pytest.mark.slow
def test_the_model_records_that_it_accepts_absent_channels(run: Path, data: Path) -> None:
    saved = medseg.load(run / "model", device="cpu").saved
    assert saved.absent_channels == "zeros"
    assert "absent channels" in (run / "model" / "README.md").read_text()
    ct = saved.preprocessing.channels[0]
    low = min(images_of(n)[0].data[images_of(n)[2].data > 0].min() for n in range(6) if LACKING.get(n) != 0)
    assert ct.method == "ct"
    assert ct.low is not None
    assert ct.low >= low > 0  # zeros of the absent CT do not count
    assert saved.training_data is not None
    assert saved.training_data.channels[1].low[0] > 0


@pytest.mark.slow
def test_predictions_of_images_that_lack_a_channel(run: Path, data: Path, tmp_path: Path) -> None:
    assert main(["predict", str(run / "model"), str(data / "imagesTr"), "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "cases.tsv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert {name: row["absent_channels"] for name, row in rows.items()} == {
        f"case{number}": str(LACKING.get(number, "")) for number in range(6)
    }
    assert {row["state"] for row in rows.values()} == {"predicted"}
    predictor = medseg.load(run / "model", device="cpu")
    with pytest.warns(DataWarning, match="channel CT: found no file; zeros were used"):
        alone = predictor([None, data / "imagesTr" / "case1_0001.nii.gz"])
    np.testing.assert_array_equal(alone.data, medseg.read_labels(tmp_path / "out" / "case1.nii.gz").data)
    table = tmp_path / "images.tsv"
    table.write_text(f"case\timage_CT\timage_T1\nfirst\t\t{data}/imagesTr/case1_0001.nii.gz\n")
    words = [str(run / "model"), str(table), "--files-root", str(data), "-o", str(tmp_path / "listed")]
    assert main(["predict", *words]) == 0
    listed = medseg.read_labels(tmp_path / "listed" / "first.nii.gz")
    np.testing.assert_array_equal(listed.data, alone.data)
    assert (
        main(
            [
                "predict",
                str(run / "model"),
                str(data / "imagesTr"),
                "-o",
                str(tmp_path / "out"),
                "--skip-existing",
            ]
        )
        == 0
    )
    assert main(["predict", str(run / "model"), str(data / "imagesTr"), "--estimate"]) == 0


@pytest.mark.slow
def test_an_absent_ct_is_zero_for_the_network_and_named_in_a_note(run: Path, data: Path) -> None:
    predictor = medseg.load(run / "model", device="cpu")
    case = read_dataset(data, reading=ZEROS).case("case1")
    image = prepare(read_case_image(case), predictor.saved.preprocessing).image.data
    assert not image[0].any()
    assert image[1].any()
    assert [
        note for note in predictor.prepare(case).notes if "channel CT: found no file; zeros were used" in note
    ]


@pytest.mark.slow
def test_other_models_refuse_images_that_lack_a_channel(run: Path, data: Path, tmp_path: Path) -> None:
    complete = write_dataset(tmp_path / "complete", {}, cases=3)
    for _ in experiment(complete, data={"path": str(complete), "folds": 2}, augment={}).trainer(
        run=tmp_path / "run"
    ):
        pass
    other = medseg.load(tmp_path / "run" / "model", device="cpu")
    for source in (
        [None, data / "imagesTr" / "case1_0001.nii.gz"],
        read_dataset(data, reading=ZEROS).case("case1"),
    ):
        with pytest.raises(DataError, match=r"found no file of CT, expected 2 \(CT, T1\)"):
            other(source)
    with pytest.raises(DataError, match="3 files are missing"):
        medseg.predict(tmp_path / "run" / "model", data / "imagesTr", tmp_path / "out")
    with pytest.raises(DataError, match="3 files are missing"):
        experiment(data, data={"path": str(data), "folds": 2}).trainer(run=tmp_path / "refused")


@pytest.mark.slow
def test_commands_for_datasets_take_the_option(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(data), "-o", str(tmp_path / "plan.yaml")]) == 1
    option = ["--absent-channels", "zeros"]
    assert main(["plan", str(data), "-o", str(tmp_path / "plan.yaml"), *option]) == 0
    assert Experiment.load(tmp_path / "plan.yaml").data.absent_channels == "zeros"
    assert main(["inspect", str(data), *option]) == 0
    assert main(["check", str(data), *option, "--workers", "0"]) in (0, 2)
    assert "CHANNEL_COUNT_DIFFERS" not in capsys.readouterr().out


@pytest.mark.slow
def test_held_out_cases_of_a_cross_validation_may_lack_channels(data: Path, tmp_path: Path) -> None:
    folds = experiment(data).cross_validation(tmp_path / "cv")
    for _ in folds:
        pass
    summary = json.loads((tmp_path / "cv" / "evaluation" / "summary.json").read_text())
    assert summary
    predicted = {file.name for file in (tmp_path / "cv" / "predictions").glob("*.nii.gz")}
    assert predicted == {f"case{number}.nii.gz" for number in range(6)}
    assert medseg.load(tmp_path / "cv" / "model", device="cpu").saved.absent_channels == "zeros"
    table = medseg.evaluate(
        tmp_path / "cv" / "predictions",
        data / "labelsTr",
        labels=medseg.load(tmp_path / "cv", device="cpu").labels,
    )
    assert len({row.case for row in table.rows}) == 6


@pytest.mark.slow
def test_the_model_is_exported_and_tested_like_any_other(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    assert main(["export", "onnx", str(run / "model"), "-o", str(tmp_path / "model.onnx")]) == 0
    images = [str(data / "imagesTr" / "case1_0001.nii.gz")]
    code = main(["check", str(run / "model"), *images])
    assert (code in (0, 2), "self-test with case1" in capsys.readouterr().out) == (True, True)

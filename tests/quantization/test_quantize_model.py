"""8-bit networks: calibrated on training cases, measured on held-out ones, stored beside the model or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.data.datasets.layouts import read_dataset
from medseg.errors import ConfigError, ModelError
from medseg.inference.cohort.model_id import ModelId, model_hash
from medseg.labels.label_table import Labels
from medseg.quantization import quantize_model
from medseg.quantization.calibration_windows import calibration_windows
from medseg.quantization.choose_cases import cases_of_dataset, cases_of_run, spread

pytestmark = pytest.mark.slow
needs_openvino = pytest.mark.extra("openvino", "nncf")


@pytest.fixture(scope="module")
def run(make_experiment, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantize") / "run"
    for _ in make_experiment("train.steps=8").trainer(folder):
        pass
    return folder


@needs_openvino
def test_the_command_stores_a_network_that_predicts_like_the_original(run, workplace, capfd):
    identity = model_hash(run / "model")
    assert main(["quantize", str(run), "--max-loss", "1", "--windows", "12"]) == 0
    out = capfd.readouterr().out
    assert "calibrating on 2 cases, measuring 2" in out
    assert "loss of mean Dice" in out
    measured = json.loads((run / "model/int8/measured.json").read_text())
    assert (measured["windows"], measured["cases"]) == (12, 2)
    assert measured["dice"].keys() == measured["dice_int8"].keys()
    assert sorted(path.name for path in (run / "model/int8").iterdir()) == [
        "manifest.json",
        "measured.json",
        "model.bin",
        "model.xml",
    ]
    assert model_hash(run / "model") == identity  # predictions in float32 stay those of this model
    image = read_dataset(workplace / "data").cases[0].images[0]
    settings = {"engine": "openvino", "precision": "int8"}
    exact, int8 = medseg.load(run)(image), medseg.load(run, **settings)(image)
    assert float(np.mean(exact.data == int8.data)) > 0.9
    assert not np.array_equal(exact.data, int8.data)  # or nothing was quantized
    first, second = (ModelId.from_folders([run / "model"], one) for one in (settings, {}))
    assert first.model != second.model == identity


@needs_openvino
def test_a_larger_loss_is_refused_and_stores_nothing(run, monkeypatch, capfd, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model", ignore=shutil.ignore_patterns("int8"))
    means = iter([0.9, 0.8] * 9)
    monkeypatch.setattr("medseg.quantization.quantize_model._mean", lambda dice: next(means))
    data = str(Path(medseg.Experiment.from_run(run).data.path))
    assert main(["quantize", str(tmp_path / "model"), "--data", data, "--windows", "4"]) == 1
    assert "found 0.1000 on 1 cases" in capfd.readouterr().err
    assert not (tmp_path / "model/int8").exists()
    assert not [path for path in (tmp_path / "model").iterdir() if path.name.startswith(".")]


@needs_openvino
def test_a_changed_file_of_the_network_is_refused(run, tmp_path):
    if not (run / "model/int8").is_dir():
        main(["quantize", str(run), "--max-loss", "1", "--windows", "4"])
    shutil.copytree(run / "model", tmp_path / "model")
    file = tmp_path / "model/int8/model.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"int8/model\.bin: found SHA-256"):
        medseg.load(tmp_path / "model", engine="openvino", precision="int8")


@pytest.mark.parametrize(
    ("dice", "stored"), [([0.9, 0.89, 0.8995], True), ([0.9, 0.899, 0.8992], False), ([0.9, 0.7, 0.8], None)]
)
def test_the_better_form_is_stored_unless_it_loses_too_much(run, tmp_path, monkeypatch, dice, stored):
    """With stand-ins for NNCF and OpenVINO: the figures decide between all layers and float ends."""
    shutil.copytree(run / "model", tmp_path / "model", ignore=shutil.ignore_patterns("int8"))
    measured = iter(dice)
    monkeypatch.setattr(quantize_model, "int8_graph", lambda model, windows, float_ends: float_ends)
    monkeypatch.setattr(
        quantize_model, "save_graph", lambda graph, folder: (folder / "model.xml").write_text(str(graph))
    )
    monkeypatch.setattr(quantize_model, "_with_int8", lambda predictor, form: predictor)
    monkeypatch.setattr(quantize_model, "_mean_dice", lambda rows: {"organ": next(measured)})
    cases = cases_of_run_folder(run)
    arguments = (tmp_path / "model", cases.calibrate, cases.measure)
    if stored is None:
        with pytest.raises(
            ModelError, match=r"found 0\.1000 on 2 cases \(0\.9000 to 0\.8000\), expected at most 0\.002"
        ):
            quantize_model.quantize_model(*arguments, windows=3)
        assert not (tmp_path / "model/int8").exists()
        return
    figures = quantize_model.quantize_model(*arguments, windows=3)
    assert figures.float_ends is stored
    assert (tmp_path / "model/int8/model.xml").read_text() == str(stored)
    assert json.loads((tmp_path / "model/int8/measured.json").read_text())["windows"] == 3
    assert figures.loss == pytest.approx(dice[0] - dice[2 if stored else 1])
    assert model_hash(tmp_path / "model") == model_hash(run / "model")


def test_windows_are_those_that_the_network_sees(run):
    predictor = medseg.load(run, precision="float32")
    cases = cases_of_run_folder(run).calibrate
    windows = calibration_windows(predictor, cases, 5)
    assert len(windows) == 5
    assert {window.shape for window in windows} == {(1, 1, *predictor.saved.window)}
    assert all(window.std() > 0 for window in windows)
    again = calibration_windows(predictor, cases, 5)
    assert all(np.array_equal(one, other) for one, other in zip(windows, again, strict=True))


def cases_of_run_folder(run: Path):
    from medseg.experiment.run_folder import RunFolder

    return cases_of_run(RunFolder(run))


def test_training_cases_calibrate_and_held_out_cases_are_measured(run, workplace):
    found = cases_of_run_folder(run)
    assert found.held_out
    split = json.loads((run / "splits.json").read_text())[0]
    assert [case.id for case in found.measure] == split["validation"]
    assert not {case.id for case in found.calibrate} & {case.id for case in found.measure}
    labels = Labels.from_tsv(run / "model/labels.tsv")
    divided = cases_of_dataset(workplace / "data", labels)
    assert (len(divided.calibrate), len(divided.measure), divided.held_out) == (3, 1, None)
    other = Labels.from_names({"background": 0, "kidney": 1})
    with pytest.raises(ConfigError, match="expected those of the model"):
        cases_of_dataset(workplace / "data", other)


def test_cases_are_spread_evenly():
    assert spread(tuple("abcdefghij"), 5) == ("a", "c", "e", "g", "i")
    assert spread(tuple("abc"), 5) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "0"], "--windows: found 0"),
        (["--max-loss", "-1"], "--max-loss: found -1.0"),
        ([], "--data: missing"),
    ],
)
def test_wrong_options_are_named(run, capsys, arguments, message):
    assert main(["quantize", str(run / "model"), *arguments]) == 1
    assert message in capsys.readouterr().err

"""train, predict, evaluate and inspect on toy data."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.train.reports.reporting import read_metrics
from tests.helpers.children import start_program
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow


def test_overrides_are_accepted_after_flags(workplace, tmp_path, capsys):
    run = tmp_path / "run"
    data = str(workplace / "data")
    config = str(workplace / "toy.yaml")
    assert (
        main(
            [
                "train",
                config,
                "train.steps=3",
                "--data",
                data,
                "train.report_every=3",
                "--run",
                str(run),
                "seed=5",
            ]
        )
        == 0
    )
    told = capsys.readouterr()
    assert "Trainer(unet_3d, " in told.out
    assert re.search(r"^step 1/3 done after \d+\.\d s", told.out, re.MULTILINE)
    assert "(best so far)" in told.out
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [3]
    assert "seed: 5" in (run / "config.yaml").read_text()
    assert f"model: {run / 'model'}" in told.out


def test_train_refuses_existing_runs_and_missing_files(workplace, capsys):
    config, run = str(workplace / "toy.yaml"), str(workplace / "run")
    before = (workplace / "run" / "metrics.jsonl").read_bytes()
    assert main(["train", config, "--run", run]) == 1
    assert "found other files" in capsys.readouterr().err
    assert (workplace / "run" / "metrics.jsonl").read_bytes() == before
    assert main(["train"]) == 1
    assert "config: found none" in capsys.readouterr().err
    assert main(["train", config, "--resume", run]) == 1
    assert "--resume: found also a config, expected only the run" in capsys.readouterr().err
    assert main(["train", "--resume", str(workplace)]) == 1
    assert "found no run" in capsys.readouterr().err


def test_predict_continues_after_a_broken_file_and_ends_with_2(workplace, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(workplace / "data" / "imagesTr", images)
    victim = images / "phantom_001.nii.gz"
    victim.write_bytes(victim.read_bytes()[:-200])
    output = tmp_path / "out"
    model = str(workplace / "run" / "model")
    assert main(["predict", model, str(images), "-o", str(output), "--report"]) == 2
    told = capsys.readouterr()
    assert "phantom_001" in told.err
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"report: {output / 'report.html'}" in told.out
    table = page[page.index('id="cases"') :]
    assert table.index("phantom_001") < table.index("phantom_000")  # the failed case first
    assert page.count('class="open"') == 3
    assert "damaged or end early" in told.err
    assert "3 of 4 cases in" in told.out
    assert sorted(path.name for path in output.glob("*.nii*")) == [f"phantom_00{i}.nii.gz" for i in (0, 2, 3)]
    for path in output.glob("*.nii*"):
        labels, image = medseg.read_labels(path), medseg.read(images / path.name)
        assert labels.grid.affine.tobytes() == image.grid.affine.tobytes()
        assert labels.grid.shape == image.grid.shape


def test_predict_files_settings_and_skip_existing(workplace, tmp_path, capsys):
    files = [str(workplace / "data" / "imagesTr" / f"phantom_00{i}.nii.gz") for i in (0, 1)]
    model, output = str(workplace / "run" / "model"), tmp_path / "out"
    (tmp_path / "out").mkdir()
    (output / "phantom_000.nii.gz").write_bytes(b"foreign")  # not written by medseg
    call = [
        "predict",
        model,
        files[0],
        "-o",
        str(output),
        files[1],
        "--skip-existing",
        "overlap=0.25",
        "mirror_axes=[0]",
    ]
    assert main(call) == 0
    for name in ("phantom_000.nii.gz", "phantom_001.nii.gz"):
        assert medseg.read_labels(output / name).grid.shape
    printed = capsys.readouterr().out
    assert "0 of 2 cases predicted already" in printed
    assert f"2 of 2 cases in {output}" in printed
    assert main(call) == 0
    assert "2 of 2 cases predicted already" in capsys.readouterr().out
    assert main(["predict", model, files[0], "-o", str(output), "overlp=0.25"]) == 1
    assert "Did you mean 'overlap'" in capsys.readouterr().err


def test_predict_never_replaces_an_input_and_never_two_by_one(workplace, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(workplace / "data" / "imagesTr", images)
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    model = str(workplace / "run" / "model")
    assert main(["predict", model, str(images), "-o", str(images)]) == 1
    assert "the output would replace an input" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before
    one = str(images / "phantom_000.nii.gz")
    assert (
        main(
            [
                "predict",
                model,
                one,
                str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz"),
                "-o",
                str(tmp_path),
            ]
        )
        == 1
    )
    assert "phantom_000" in capsys.readouterr().err
    assert main(["predict", model]) == 1
    assert main(["predict", model, one, "--held-out"]) == 1


def test_predict_held_out_and_evaluate_the_run(workplace, capsys):
    run = workplace / "run"
    assert main(["evaluate", str(run)]) == 1
    assert "predictions are missing" in capsys.readouterr().err
    assert main(["predict", str(run), "--held-out"]) == 0
    assert "2 of 2 cases" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--tolerance-mm", "2", "--report"]) == 0
    told = capsys.readouterr().out
    page = (run / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert page.count('class="open"') == 2
    assert "training loss" in page
    assert "liver" in told
    rows = (run / "evaluation" / "cases.tsv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 5
    assert json.loads((run / "evaluation" / "summary.json").read_text())


def test_evaluate_a_file_against_itself(workplace, tmp_path, capsys):
    label = str(workplace / "data" / "labelsTr" / "phantom_000.nii.gz")
    assert main(["evaluate", label, label, "-o", str(tmp_path / "table")]) == 0
    assert "1.000" in capsys.readouterr().out
    assert (tmp_path / "table" / "cases.tsv").is_file()


def test_inspect_a_file_a_dataset_and_several(workplace, tmp_path, capsys):
    file = workplace / "data" / "imagesTr" / "phantom_000.nii.gz"
    assert main(["inspect", str(file)]) == 0
    told = capsys.readouterr().out
    assert "Volume(" in told
    assert "origin (" in told
    assert main(["inspect", str(workplace / "data"), "--cases", "2"]) == 0
    told = capsys.readouterr().out
    for part in (
        "4 cases, 4 with a label map, 4 subjects",
        "channels: CT",
        "1 liver",
        "phantom_001",
        "... 2 more",
    ):
        assert part in told
    assert "phantom_002" not in told
    assert main(["inspect", str(tmp_path / "none.nii.gz"), str(file)]) == 2
    both = capsys.readouterr()
    assert "no such file" in both.err
    assert "Volume(" in both.out


def test_inspect_reports_a_sheared_grid(tmp_path, capsys, make_volume):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 0.6
    medseg.write(make_volume(affine=affine), tmp_path / "tilted.nii.gz")
    assert main(["inspect", str(tmp_path / "tilted.nii.gz")]) == 0
    assert "sheared" in capsys.readouterr().out


def test_inspect_a_dicom_folder(shared_data, capsys):
    assert main(["inspect", str(shared_data / "dicom" / "jpeg2000_ct")]) == 0
    assert "512x512x20" in capsys.readouterr().out


def test_evaluate_maps_on_different_grids_is_refused(workplace, tmp_path, capsys):
    reference = workplace / "data" / "labelsTr" / "phantom_000.nii.gz"
    volume = medseg.read_labels(reference)
    medseg.write(volume.cropped((0, 0, 0), [n - 1 for n in volume.grid.shape]), tmp_path / "small.nii.gz")
    assert main(["evaluate", str(tmp_path / "small.nii.gz"), str(reference)]) == 1
    assert "phantom_000: prediction: not on the grid of its reference: found " in capsys.readouterr().err


def test_evaluate_continues_after_a_broken_case_and_ends_with_2(workplace, tmp_path, capsys):
    folder = tmp_path / "predicted"
    shutil.copytree(workplace / "data" / "labelsTr", folder)
    (folder / "phantom_001.nii.gz").write_bytes(b"broken")
    assert (
        main(["evaluate", str(folder), str(workplace / "data" / "labelsTr"), "-o", str(tmp_path / "t")]) == 2
    )
    told = capsys.readouterr()
    assert "phantom_001" in told.err
    assert "1 of 4 cases could not be evaluated" in told.out
    assert len((tmp_path / "t" / "cases.tsv").read_text().splitlines()) == 1 + 3 * 5


def test_evaluate_does_not_replace_the_tables_of_a_prediction(workplace, tmp_path, capsys):
    out, model = tmp_path / "out", str(workplace / "run" / "model")
    assert main(["predict", model, str(workplace / "data" / "imagesTr"), "-o", str(out)]) == 0
    before = (out / "cases.tsv").read_text()
    call = ["evaluate", str(out), str(workplace / "data" / "labelsTr")]
    assert main([*call, "-o", str(out)]) == 1
    assert "found a folder of predictions, whose cases.tsv would be replaced" in capsys.readouterr().err
    assert (out / "cases.tsv").read_text() == before
    assert main([*call, "-o", str(out / "evaluation")]) == 0


def test_a_part_of_the_images_is_predicted(workplace, tmp_path, capsys):
    call = [
        "predict",
        str(workplace / "run" / "model"),
        str(workplace / "data" / "imagesTr"),
        "-o",
        str(tmp_path),
    ]
    assert main([*call, "--part", "2/3"]) == 0
    assert [file.name for file in tmp_path.glob("*.nii.gz")] == ["phantom_001.nii.gz"]
    assert "1 of 1 case in" in capsys.readouterr().out
    assert main([*call, "--part", "4/3"]) == 1
    assert "part: found '4/3', expected I/N" in capsys.readouterr().err
    assert main([*call, "--cluster", "everywhere"]) == 1
    assert "cluster: found 'everywhere'" in capsys.readouterr().err
    assert main([*call, "--cluster", "local:2", "--estimate"]) == 1
    assert "--cluster: found it with --estimate" in capsys.readouterr().err


def test_evaluate_at_a_tolerance_of_zero(workplace, capsys):
    label = str(workplace / "data" / "labelsTr" / "phantom_000.nii.gz")
    assert main(["evaluate", label, label, "--tolerance-mm", "0"]) == 0
    assert "surface Dice at 0 mm" in capsys.readouterr().out


def test_inspect_a_folder_of_images(workplace, capsys):
    assert main(["inspect", str(workplace / "data" / "imagesTr"), "--cases", "3"]) == 0
    told = capsys.readouterr().out
    assert told.count("Volume(") == 3
    assert "... 1 more images" in told


def test_inspect_continues_after_a_bad_file_in_a_folder(workplace, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(workplace / "data" / "imagesTr", folder)
    bad = sorted(folder.iterdir())[1]
    bad.write_bytes(b"broken")
    assert main(["inspect", str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out.count("Volume(") == 3
    assert [line.startswith(f"{bad}: ") for line in told.err.splitlines()] == [True]


def test_inspect_continues_after_a_bad_case_of_a_dataset(workplace, tmp_path, capsys):
    shutil.copytree(workplace / "data", tmp_path / "data")
    bad = tmp_path / "data" / "imagesTr" / "phantom_001.nii.gz"
    bad.write_bytes(b"broken")
    assert main(["inspect", str(tmp_path / "data")]) == 2
    told = capsys.readouterr()
    assert [name for name in ("000", "001", "002", "003") if f"phantom_{name} " in told.out] == [
        *("000", "002", "003")
    ]
    assert told.err.startswith(f"{bad}: ")


def test_inspect_counts_nan_voxels(tmp_path, capsys, make_volume):
    volume = make_volume()
    data = volume.data.copy()
    data[0, 0, 0, :2] = np.nan
    medseg.write(volume.with_data(data), tmp_path / "nan.nii.gz")
    assert main(["inspect", str(tmp_path / "nan.nii.gz")]) == 0
    assert "NaN or infinity in 2 voxels" in capsys.readouterr().out


def test_the_best_weights_are_a_model_too(workplace, tmp_path):
    image = workplace / "data" / "imagesTr" / "phantom_000.nii.gz"
    assert main(["predict", str(workplace / "run" / "best"), str(image), "-o", str(tmp_path)]) == 0
    assert (tmp_path / "phantom_000.nii.gz").is_file()


def test_run_stores_the_absolute_path_of_its_data(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    run = str(tmp_path / "run")
    assert main(["train", "toy.yaml", "data.path=data", "--run", run]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["predict", run, "--held-out"]) == 0


def test_waiting_threads_sleep(monkeypatch, capsys):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert main(["models"]) == 0
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"


def test_predict_within_a_budget_and_with_probabilities_and_together(workplace, tmp_path, capsys):
    import nibabel as nib

    file = str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz")
    model = str(workplace / "run" / "model")
    assert (
        main(["predict", model, file, "-o", str(tmp_path / "a"), "--max-memory", "100GB", "--probabilities"])
        == 0
    )
    labels = medseg.read_labels(tmp_path / "a" / "phantom_000.nii.gz")
    probabilities = nib.load(tmp_path / "a" / "phantom_000_probabilities.nii")
    assert probabilities.shape == (*labels.grid.shape, 6)
    capsys.readouterr()
    assert main(["predict", model, file, "-o", str(tmp_path / "b"), "--ensemble-with", model]) == 0
    out = capsys.readouterr().out
    assert out.count("ensembles of several model folders have no estimates") == 1
    assert "no quality model" not in out
    assert np.array_equal(medseg.read_labels(tmp_path / "b" / "phantom_000.nii.gz").data, labels.data)
    tables = {"cases.tsv", "failed.tsv", "volumes.tsv", "run.json"}
    assert {path.name for path in (tmp_path / "b").iterdir()} == {".cohort", "phantom_000.nii.gz", *tables}
    capsys.readouterr()
    assert main(["predict", model, file, "-o", str(tmp_path / "c"), "--max-memory", "10MB"]) == 2
    assert "max_memory: found 10 MB, expected at least" in capsys.readouterr().err
    assert main(["predict", model, file, "-o", str(tmp_path / "c"), "--max-memory", "much"]) == 1
    assert "max_memory: found 'much', expected a size such as 8GB" in capsys.readouterr().err


def test_predict_estimates_without_predicting(workplace, tmp_path, capsys):
    file = str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz")
    assert main(["predict", str(workplace / "run" / "model"), file, "--estimate"]) == 0
    told = capsys.readouterr().out
    assert "phantom_000  " in told
    assert " windows (0 empty), " in told
    assert "1 of 1 case: " in told
    model = str(workplace / "run" / "model")
    assert main(["predict", model, file, "--estimate", "--ensemble-with", model]) == 0
    assert capsys.readouterr().out.count(" windows (0 empty)") == 2


def test_predict_writes_the_requested_format(workplace, tmp_path, capsys):
    file, run = str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz"), workplace / "run"
    model = str(run / "model")
    for suffix in (".nrrd", ".nii.gz"):
        assert main(["predict", model, file, "-o", str(tmp_path), "--suffix", suffix]) == 0
    files = sorted(tmp_path.glob("*.n*"))
    assert [path.name for path in files] == ["phantom_000.nii.gz", "phantom_000.nrrd"]
    one, other = map(medseg.read_labels, files)
    assert one.grid.matches(other.grid)
    assert np.array_equal(one.data, other.data)
    assert main(["predict", model, file, "-o", str(tmp_path), "--suffix", ".png"]) == 1
    assert "phantom_000.nii.gz, expected natural images" in capsys.readouterr().err
    strange = tmp_path / "my file (1).nii.gz"
    strange.symlink_to(file)
    assert main(["predict", model, str(strange), "-o", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.nii*")] == [strange.name]
    assert main(["predict", model, str(strange), "-o", str(tmp_path)]) == 1
    assert "the output would replace an input" in capsys.readouterr().err
    assert main(["predict", str(run), "--held-out", "--suffix", ".nrrd"]) == 1
    assert "--suffix: found it with --held-out" in capsys.readouterr().err


def test_predict_killed_leaves_only_complete_files(workplace, tmp_path):
    import signal
    import time

    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        shutil.copy(workplace / "data" / "imagesTr" / "phantom_000.nii.gz", images / f"{index:02}.nii.gz")
    output = tmp_path / "out"
    held = ["-m", "tests.helpers.held_prediction", str(tmp_path / "notes"), "2"]
    words = ["predict", str(workplace / "run" / "model"), str(images), "-o", str(output)]
    process = start_program(*held, *words, cwd=ROOT)
    deadline = time.monotonic() + 300
    while len(list(output.glob("*.nii.gz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "interrupted; finished results are kept" in told
    assert "Traceback" not in told
    assert sorted(path.name for path in output.glob("*.nii*")) == ["00.nii.gz", "01.nii.gz"]
    assert len({medseg.read_labels(path).data.shape for path in output.glob("*.nii*")}) == 1


def test_a_command_names_the_one_that_usually_follows(workplace, tmp_path, monkeypatch, capsys):
    def last_line(*words: str) -> str:
        assert main(list(words)) == 0
        return capsys.readouterr().out.splitlines()[-1]

    monkeypatch.chdir(workplace)
    assert last_line("inspect", "data") == "next: medseg check data"
    assert last_line("check", "data") == "next: medseg plan data -o plan.yaml"
    assert not last_line("inspect", "data/imagesTr/phantom_000.nii.gz").startswith("next:")
    assert not last_line("check", "data", "--json", "-").startswith("next:")
    out = str(tmp_path / "out put")
    expected = f"next: medseg evaluate '{out}' REFERENCES -o EVALUATION --report"
    assert last_line("predict", "run", "data/imagesTr/phantom_000.nii.gz", "-o", out) == expected
    assert last_line("predict", "run", "--held-out") == "next: medseg evaluate run --report"

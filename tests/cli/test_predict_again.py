"""What a later call does with what an earlier one has left: nothing old is taken for new."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medseg
from medseg.cli.main import main
from medseg.cli.prediction.predict import _shown_notes
from medseg.data.datasets.cases import Case
from medseg.inference.cohort.batch import Outcome
from medseg.inference.quality.case_quality import CaseQuality, Flag, FlagKind
from medseg.storage.atomic import write_text

pytestmark = pytest.mark.slow


@pytest.fixture
def run(workplace, tmp_path) -> Path:
    """A finished run of its own."""
    return Path(shutil.copytree(workplace / "run", tmp_path / "run"))


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.nii.gz")}


def test_predictions_of_a_model_that_was_trained_further_are_not_measured(run, capsys):
    assert main(["predict", str(run), "--held-out"]) == 0
    before = stamps(run / "predictions")
    assert main(["evaluate", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--extend", "2"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 1
    told = capsys.readouterr().err
    assert f"2 of 2 predictions come from another model than {run / 'model'}" in told
    assert f"Predict again: medseg predict {run} --held-out" in told
    assert main(["predict", str(run), "--held-out", "--skip-existing"]) == 0
    assert "0 of 2 cases predicted already" in capsys.readouterr().out
    after = stamps(run / "predictions")
    assert all(after[name] > before[name] for name in before)
    assert main(["evaluate", str(run)]) == 0
    assert main(["predict", str(run), "--held-out", "--skip-existing"]) == 0
    assert stamps(run / "predictions") == after


def test_label_maps_of_two_models_or_settings_are_not_mixed(workplace, tmp_path, capsys):
    image, model = str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz"), str(workplace / "run")
    call = ["predict", model, image, "-o", str(tmp_path), "--skip-existing"]
    assert main(call) == 0
    assert main(call) == 0
    first = capsys.readouterr().out
    assert first.count("no quality model, which a cross-validation fits") == 2
    assert "no estimates" not in first
    closing = [line for line in first.splitlines() if " of 1 case to review" in line]
    assert len(closing) == 2
    assert all(
        line.endswith(f"; see {tmp_path / 'volumes.tsv'} and {tmp_path / 'cases.tsv'}") for line in closing
    )
    assert main([*call, "overlap=0.25"]) == 1
    assert (
        "phantom_000.nii.gz: found a label map of another model or other settings" in capsys.readouterr().err
    )
    assert main([*call[:-1], "overlap=0.25"]) == 0
    assert main([*call, "overlap=0.25"]) == 0
    shutil.rmtree(tmp_path / ".cohort")
    for table in ("cases.tsv", "failed.tsv", "volumes.tsv", "run.json"):  # tables without records are refused
        (tmp_path / table).unlink()
    assert main(call) == 0  # a label map without a record may come from anywhere
    assert "0 of 1 case predicted already" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["device=cpu", "max_memory=1GB", "folder=x"])
def test_options_of_the_call_are_not_settings_of_the_model(setting, workplace, tmp_path, capsys):
    image = str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz")
    assert main(["predict", str(workplace / "run"), image, "-o", str(tmp_path), setting]) == 1
    name, found = setting.split("=")[0], capsys.readouterr().err
    assert f"{name}: found an option among the settings" in found or f"{name}: unknown key" in found


def test_finished_run_is_reported_and_not_changed(run, capsys):
    before = {path.relative_to(run) for path in run.rglob("*")}
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    assert (
        f"finished already; to continue training: medseg train --resume {run} --extend"
        in capsys.readouterr().out
    )
    assert {path.relative_to(run) for path in run.rglob("*")} == before


def test_unfinished_run_is_not_evaluated(run, capsys):
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "predictions", ignore_errors=True)  # other tests may have predicted in the shared run
    assert main(["evaluate", str(run)]) == 1
    told = capsys.readouterr().err
    assert f"not finished, expected predictions. Continue with: medseg train --resume {run}" in told


def test_all_cases_train_and_none_is_held_out(workplace, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(workplace / "toy.yaml"), "--run", str(run), "data.fold=all"]) == 0
    assert "4 cases)" in capsys.readouterr().out
    assert not (run / "best").exists()
    for command in (["predict", str(run), "--held-out"], ["evaluate", str(run)]):
        assert main(command) == 1
        assert "because the run trains on all cases (data.fold=all)" in capsys.readouterr().err
    image = str(workplace / "data" / "imagesTr" / "phantom_000.nii.gz")
    assert main(["predict", str(run), image, "-o", str(tmp_path / "out")]) == 0


def test_only_predicted_cases_are_evaluated_on_request(workplace, tmp_path, capsys):
    references = workplace / "data" / "labelsTr"
    shutil.copy(references / "phantom_000.nii.gz", tmp_path)
    assert main(["evaluate", str(tmp_path), str(references)]) == 1
    told = capsys.readouterr().err
    assert "predictions are missing for 3 of 4 references" in told
    assert "Did you mean" not in told
    assert main(["evaluate", str(tmp_path), str(references), "--only-predicted"]) == 0
    assert "1 case" in capsys.readouterr().out
    for other in ([str(workplace / "run")], [str(tmp_path), str(references), "--components-of", "both"]):
        assert main(["evaluate", *other, "--only-predicted"]) == 1
        assert "--only-predicted: found it without two folders" in capsys.readouterr().err


def test_a_volume_model_is_refused_for_single_slices(workplace, tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 2, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{number}.png")
    text = (workplace / "toy.yaml").read_text().replace(str(workplace / "data"), str(tmp_path / "data"))
    write_text(tmp_path / "toy.yaml", text)
    call = ["train", str(tmp_path / "toy.yaml"), "--run", str(tmp_path / "run"), "data.labels={x: 1}"]
    assert main(call) == 1
    told = capsys.readouterr().err
    assert "patch.size: found 8 along Z, expected 1, because all cases are single slices across Z" in told
    assert "such as unet_2d" in told
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert main([*call, "model.name=unet_2d", "patch.size=[8,8]"]) == 0
    assert medseg.load(tmp_path / "run").saved.model["name"] == "unet_2d"


def test_at_most_three_reasons_per_case_are_printed(tmp_path):
    kinds = [FlagKind.VOLUME, FlagKind.BORDER, FlagKind.SHAPE, FlagKind.IMAGE, FlagKind.IMAGE]
    flags = tuple(
        Flag(kind, f"property {number}", "1", "2", learned=True) for number, kind in enumerate(kinds)
    )
    case = Case("a", (tmp_path / "a.nii.gz",))
    notes = ("a.nii.gz: read with another orientation", *(flag.note(str(case.images[0])) for flag in flags))
    shown = list(
        _shown_notes(Outcome(case, tmp_path / "out.nii.gz", notes=notes, quality=CaseQuality(flags=flags)))
    )
    assert shown == [*notes[:4], f"{case.images[0]}: and 2 more in cases.tsv"]
    known = tuple(replace(flag, learned=False) for flag in flags)  # of the training ranges
    plain = tuple(flag.note(str(case.images[0])) for flag in known)
    every = Outcome(case, tmp_path / "out.nii.gz", notes=plain, quality=CaseQuality(flags=known))
    assert list(_shown_notes(every)) == list(plain)
    few = Outcome(case, tmp_path / "out.nii.gz", notes=notes[:3], quality=CaseQuality(flags=flags[:2]))
    assert list(_shown_notes(few)) == list(notes[:3])

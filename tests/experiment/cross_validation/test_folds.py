"""Cross-validation from end to end: folds, interruption, out-of-fold predictions, table, ensemble."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import medseg
from medseg.cli.main import main
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.splits import k_fold, read_splits
from medseg.data.fingerprint.measure_case import case_histograms
from medseg.data.preprocessing.histogram import pool_histograms
from medseg.data.preprocessing.normalize import normalizations
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import ConfigError, DataError, DiskFullError
from medseg.experiment.cross_validation import aggregate as aggregate_module
from medseg.experiment.cross_validation.aggregate import aggregate, no_post_processing_reason
from medseg.experiment.held_out import held_out_cases, held_out_pairs
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.batch import Outcome
from medseg.model_folder.folder import load_model, save_model
from medseg.train.reports.reporting import read_metrics
from medseg.train.trainer import Trainer

pytestmark = pytest.mark.slow


def results(run: Path) -> dict[str, str]:
    """Return hashes of all results of training and aggregation, which contain no times or machines."""
    folders = [*(f"fold_{fold}/model" for fold in range(3)), "model", "predictions", "evaluation"]
    files = [file for folder in folders for file in sorted((run / folder).iterdir()) if file.is_file()]
    return {
        str(file.relative_to(run)): hashlib.sha256(without_times(file)).hexdigest()
        for file in [*files, run / "splits.json", run / "preprocessing.yaml", run / "config.yaml"]
    }


def without_times(file: Path) -> bytes:
    """Return the content of a file; of the tables of predictions, without times, memory and processes."""
    if file.parent.name == "predictions" and file.name == "run.json":
        return json.dumps(json.loads(file.read_text())["models"]).encode()
    if file.parent.name == "predictions" and file.name == "cases.tsv":
        return "\n".join(line.rsplit("\t", 2)[0] for line in file.read_text().splitlines()).encode()
    return file.read_bytes()


def test_every_case_is_predicted_by_the_fold_that_held_it_out(whole, workplace):
    dataset = read_dataset(workplace / "data")
    splits = json.loads((whole / "splits.json").read_text())
    assert sorted(case for split in splits for case in split["validation"]) == list(dataset.ids)
    assert read_splits(whole / "splits.json") == k_fold(dataset.labelled_cases, 3, 0)
    for fold, split in enumerate(splits):
        own = whole / f"fold_{fold}"
        assert json.loads((own / "splits.json").read_text()) == [split]
        assert [case.id for case in held_out_cases(RunFolder(own))] == split["validation"]
        assert len(read_metrics(own / "metrics.jsonl")) == 3
        predictor = medseg.load(own)
        for case in split["validation"]:
            expected = predictor(dataset.case(case).images[0])
            assert np.array_equal(
                expected.data, medseg.read_labels(whole / f"predictions/{case}.nii.gz").data
            )


def test_a_cluster_prepares_predicts_and_measures_as_one_process(
    whole, workplace, make_experiment, tmp_path, monkeypatch, forked_workers
):
    config = tmp_path / "toy.yaml"
    config.write_text(make_experiment().to_yaml())
    monkeypatch.chdir(tmp_path)  # relative to this process, not to the workers
    assert main(["train", "toy.yaml", "--run", "run", "--all-folds", "--cluster", "local:2"]) == 0
    assert results(tmp_path / "run") == results(whole)


def test_all_folds_share_preprocessing_and_store(whole, workplace, make_experiment):
    dataset = read_dataset(workplace / "data")
    cases = dataset.labelled_cases
    histograms = [case_histograms(case, dataset.labels, 1)[0] for case in cases]
    (ct,) = normalizations(["ct"], {0: pool_histograms(histograms)})
    assert Preprocessing.load(whole / "preprocessing.yaml").channels == (ct,)
    assert {load_model(whole / f"fold_{fold}")[1].preprocessing.channels for fold in range(3)} == {(ct,)}
    assert not (whole / ".prepared").exists()
    # Other tests of this session prepare the same cases in other ways.
    stored = (workplace / "stored_by_whole.txt").read_text().split()
    assert sum(dataset.ids[0] in name for name in stored) <= 1
    assert RunFolder(whole).fold(1).shared_folder == RunFolder(whole).shared_folder == workplace


def test_the_ensemble_predicts_the_mean_of_its_folds(whole, workplace, tmp_path, capsys):
    model, saved, _ = load_model(whole)
    assert saved.members == len(model.members) == 3
    folds = [load_model(whole / f"fold_{fold}")[0].eval() for fold in range(3)]
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = torch.stack([fold(image) for fold in folds]).mean(0)
        assert torch.allclose(model.eval()(image), expected, atol=1e-5)
    path = read_dataset(workplace / "data").cases[0].images[0]
    assert main(["predict", str(whole), str(path), "-o", str(tmp_path)]) == 0
    assert "5 classes" not in capsys.readouterr().err
    (written,) = tmp_path.glob("*.nii.gz")
    assert np.array_equal(medseg.read_labels(written).data, medseg.load(whole / "model")(path).data)
    card = (whole / "model" / "README.md").read_text()
    dice = json.loads((whole / "evaluation" / "summary.json").read_text())["foreground_mean"]["dice"]
    assert f"| foreground mean |  | {dice:.3f} | " in card
    assert "cases of a cross-validation, each predicted by a network that was not trained on it" in card
    assert "| folds | 3 |" in card


def test_the_ensemble_has_a_quality_model_of_all_held_out_cases(whole):
    quality = medseg.load(whole / "model", device="cpu").quality
    assert quality.cases == len(held_out_cases(RunFolder(whole)))
    assert quality.threshold is None  # a few phantoms are too few to learn what is usual
    assert not (whole / "fold_0" / "model" / "quality.json").exists()
    labels = {one.name for one in medseg.load(whole / "model", device="cpu").labels.evaluated}
    assert set(quality.volumes) == labels


def test_the_summary_contains_folds_intervals_and_post_processing(whole, workplace):
    summary = json.loads((whole / "evaluation" / "summary.json").read_text())
    splits = read_splits(whole / "splits.json")
    references = {case.id: case.label for case in read_dataset(workplace / "data").labelled_cases}
    names = read_dataset(workplace / "data").labels

    def means(ids, change=lambda volume: volume):
        tables = [
            medseg.evaluate(
                change(medseg.read_labels(whole / f"predictions/{i}.nii.gz")), references[i], names
            )
            for i in ids
        ]
        rows = [{row.label: row.dice for row in table.rows} for table in tables]
        return {name: np.mean([row[name] for row in rows]) for name in names.names[1:]}

    for fold, split in enumerate(splits):
        entry = summary["folds"][fold]
        assert (entry["fold"], entry["cases"]) == (fold, list(split.validation))
        assert entry["foreground_mean"]["dice"] == pytest.approx(np.mean([*means(split.validation).values()]))
    of_folds = [entry["foreground_mean"]["dice"] for entry in summary["folds"]]
    assert summary["over_folds"]["dice"]["mean"] == pytest.approx(np.mean(of_folds))
    assert summary["over_folds"]["dice"]["std"] == pytest.approx(np.std(of_folds, ddof=1))
    interval = summary["foreground_mean_interval"]["dice"]
    assert interval["low"] < summary["foreground_mean"]["dice"] < interval["high"]
    # The selected post-processing is that of the ensemble, and its reported gain is that of applying it.
    _, saved, _ = load_model(whole)
    found = summary["post_processing"]
    assert saved.predict.keep_largest_foreground == found["keep_largest_foreground"]
    assert list(saved.predict.keep_largest) == found["keep_largest"]
    everyone = [case for split in splits for case in split.validation]
    before, after = means(everyone), means(everyone, medseg.load(whole).post_processed)
    for name, values in found["labels"].items():
        assert (values["before"], values["after"]) == pytest.approx((before[name], after[name]))


def test_folds_trained_separately_and_resumed_are_bit_identical(
    whole, workplace, make_experiment, tmp_path, capsys, monkeypatch
):
    config, run = tmp_path / "toy.yaml", workplace / "separate"
    config.write_text(make_experiment().to_yaml())
    train = ["train", str(config), "--run", str(run)]
    assert main([*train, "--fold", "2"]) == 0
    assert "folds still to train: 0, 1" in capsys.readouterr().out
    plain = Trainer._report

    def stopping(self, log, last):
        if (self.run.folder.name, self.step) == ("fold_1", 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, log, last)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_report", stopping)
        assert main([*train, "--all-folds"]) == 143
    printed = capsys.readouterr()
    assert f"resume with: medseg train --resume {run}\n" in printed.err
    assert "fold 0: Trainer(" in printed.out
    assert "fold 2" not in printed.out
    assert not (run / "fold_1" / "model").exists()
    with pytest.raises(ConfigError, match=rf"folds not finished: found 1 of 3.*train --resume {run}"):
        aggregate(RunFolder(run))
    assert main([*train, "--fold", "1"]) == 0
    assert (
        f"all folds are trained; aggregate them with: medseg train --resume {run}" in capsys.readouterr().out
    )
    assert [row["step"] for row in read_metrics(run / "fold_1" / "metrics.jsonl")] == [2, 4, 6]
    assert not (run / "predictions").exists()
    assert main([*train, "--all-folds"]) == 0
    output = capsys.readouterr().out
    assert [output.count(f"fold {fold}: finished") for fold in range(3)] == [1, 1, 1]
    few = "quality model: too few cases ("
    for part in ("95 % interval", "mean ± sd", "post-processing:", few, f"model: {run / 'model'}"):
        assert part in output
    assert results(run) == results(whole)


def test_a_second_call_and_evaluate_change_nothing(copied, whole, tmp_path, capsys):
    stamps = {file: file.stat().st_mtime_ns for file in (copied / "predictions").glob("*.nii.gz")}
    assert main(["train", "--resume", str(copied)]) == 0
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    (copied / "evaluation" / "summary.json").unlink()
    assert main(["evaluate", str(copied), "--report"]) == 0
    page = (copied / "evaluation" / "report.html").read_text(encoding="utf-8")
    (copied / "evaluation" / "report.html").unlink()
    assert main(["compare", str(whole), str(copied), "-o", str(tmp_path), "--report"]) == 0
    compared = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert compared.count('class="open"') == page.count('class="open"')
    names = [
        one["name"] for one in json.loads(re.findall(r'id="view-0">(.*?)</script>', compared)[0])["maps"]
    ]
    assert names == [whole.name, copied.name, "reference"]
    assert "Dice over 3 folds" in page
    assert page.count('class="open"') == len(list((copied / "predictions").glob("*.nii.gz")))
    assert "mean ± sd" in capsys.readouterr().out
    assert results(copied) == results(whole)


def test_options_that_do_not_fit_the_cross_validation_are_refused(whole, make_experiment, tmp_path, capsys):
    config = tmp_path / "toy.yaml"
    config.write_text(make_experiment().to_yaml())
    for wrong, message in (
        (["train.steps=7", "--all-folds"], "differs from the given experiment"),
        (["data.folds=2", "--fold", "1"], "differs from the given experiment"),
        (["--fold", "3"], "fold: found 3, expected 0 to 2"),
        ([], "found other files, expected a new or empty folder"),
    ):
        assert main(["train", str(config), "--run", str(whole), *wrong]) == 1
        assert message in capsys.readouterr().err
    for folder in (whole, whole / "fold_1"):
        assert main(["train", "--resume", str(folder), "--extend", "5"]) == 1
        assert "all folds are trained equally long" in capsys.readouterr().err


@pytest.fixture
def copied(whole, workplace, request):
    run = workplace / request.node.name
    shutil.copytree(whole, run)
    return run


def test_predictions_of_another_model_are_repeated(copied, whole):
    model, saved, labels = load_model(copied / "fold_1")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(copied / "fold_1" / "model", model, saved, labels)
    files = {file.name: file.stat().st_mtime_ns for file in (copied / "predictions").glob("*.nii.gz")}
    outdated = copied / "evaluation" / "report.html"
    outdated.write_text('<p class="lead">Evaluation by medseg 0.1.')
    seen = []
    table = aggregate(RunFolder(copied), progress=lambda done, total, what: seen.append(what))
    held_out = read_splits(copied / "splits.json")[1].validation
    assert [what for what in seen if what.startswith("predicting")] == [f"predicting {i}" for i in held_out]
    assert [what for what in seen if what.startswith("measuring")] == [
        f"measuring {i}" for i in table.table.cases
    ]
    assert seen[-1] == "fitting temperatures"
    assert not outdated.exists()
    again = {
        name for name, stamp in files.items() if (copied / "predictions" / name).stat().st_mtime_ns != stamp
    }
    assert again == {f"{case}.nii.gz" for case in held_out}
    before, after = results(whole), results(copied)
    changed = {name for name in before if before[name] != after.get(name)}
    assert "model/member_1.safetensors" in changed
    assert not changed & {"model/member_0.safetensors", "model/member_2.safetensors", "config.yaml"}


@pytest.mark.parametrize("disk_is_full", [True, False])
def test_cases_that_cannot_be_predicted_end_the_aggregation(copied, capsys, monkeypatch, disk_is_full):
    cases = held_out_cases(RunFolder(copied))
    errors = [
        DataError("the first case is damaged"),
        DiskFullError("no space left"),
        DataError("the last case is damaged"),
    ]
    begun = []

    def predicted(run, todo, **options):
        for case, error in zip(cases, errors if disk_is_full else errors[::2], strict=False):
            begun.append(case.id)
            yield Outcome(case, copied / "predictions" / f"{case.id}.nii.gz", error=error)

    monkeypatch.setattr(aggregate_module, "predict_out_of_fold", predicted)
    (copied / "evaluation" / "summary.json").unlink()
    assert main(["train", "--resume", str(copied)]) == (4 if disk_is_full else 1)
    error = capsys.readouterr().err
    assert len(begun) == 2
    assert ("no space left" in error) == disk_is_full
    assert ("the last case is damaged" in error) != disk_is_full


def test_held_out_predictions_are_completed(copied, capsys):
    case = held_out_cases(RunFolder(copied))[3].id
    (copied / "predictions" / f"{case}.nii.gz").unlink()
    with pytest.raises(DataError, match=f"1 of 6 predictions are missing: {case}"):
        held_out_pairs(RunFolder(copied))
    for folder in (copied, copied / "model"):  # the ensemble has seen all of them
        assert main(["predict", str(folder), "--held-out"]) == 0
        output = capsys.readouterr().out
        assert ("1 of 1 case " if folder == copied else "all held-out cases were predicted already") in output
    assert main(["predict", str(copied), "--held-out", "overlap=0"]) == 1
    assert "--held-out: found it with overlap=, expected none of them" in capsys.readouterr().err
    assert main(["predict", str(copied / "fold_0"), "--held-out", "overlap=0"]) == 0
    assert len(list((copied / "fold_0" / "predictions").glob("*.nii.gz"))) == 2


@pytest.mark.parametrize("command", ["train", "predict"])
def test_tables_that_a_killed_process_had_not_written_are_completed(copied, whole, capsys, command):
    """All cases were predicted, so that the next start has nothing to predict."""
    expected = {
        name: without_times(whole / "predictions" / name) for name in ("cases.tsv", "volumes.tsv", "run.json")
    }
    (copied / "predictions" / "volumes.tsv").unlink()
    for name in ("cases.tsv", "run.json"):
        (copied / "predictions" / name).write_text("case\n")
    words = (
        ["train", "--resume", str(copied)] if command == "train" else ["predict", str(copied), "--held-out"]
    )
    assert main(words) == 0
    assert {name: without_times(copied / "predictions" / name) for name in expected} == expected


def test_folds_of_different_models_are_not_combined(copied):
    model, saved, labels = load_model(copied / "fold_2")
    save_model(copied / "fold_2" / "model", model, saved.replace(window=(8, 8, 8)), labels)
    before = (copied / "model" / "manifest.json").read_bytes()
    with pytest.raises(
        medseg.MedsegError, match=r"fold_2/model: differs from .*fold_0/model in more than its weights"
    ):
        aggregate(RunFolder(copied))
    assert (copied / "model" / "manifest.json").read_bytes() == before


def test_a_config_may_change_until_a_fold_has_begun(workplace, make_experiment):
    run = workplace / "changed"
    make_experiment().cross_validation(run)
    assert len(make_experiment("data.folds=2").cross_validation(run).folds) == 2
    (run / "config.yaml").unlink()  # killed before it was whole
    validation = make_experiment("data.fold=1").cross_validation(run)
    assert (validation.experiment.data.fold, len(validation.folds)) == (0, 3)
    fold = run / "fold_0"
    fold.mkdir()
    (fold / "run.json").write_text("{}")  # a fold that was killed as it began
    assert validation.trainer(0).step == 0
    (fold / "config.yaml").unlink()
    assert validation.trainer(0).step == 0
    (fold / "config.yaml").unlink()
    (fold / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="fold_0: found other files"):
        validation.trainer(0)


def test_other_folders_and_other_splits_are_refused(workplace, make_experiment, whole, tmp_path):
    ids = read_dataset(workplace / "data").ids
    with pytest.raises(ConfigError, match="found a single run, expected a new folder"):
        make_experiment().cross_validation(whole / "fold_0")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="found notes, expected a new folder"):
        make_experiment().cross_validation(tmp_path)
    file = tmp_path / "splits.json"
    for splits, message in (
        ([{"train": ids[1:], "val": ids[:1]}], "found 1 fold, expected at least 2"),
        ([{"train": ids[1:], "val": ids[:1]}] * 2, f"case '{ids[0]}' is held out by folds 0 and 1"),
    ):
        file.write_text(json.dumps(splits))
        with pytest.raises(DataError, match=message):
            make_experiment(f"data.splits={file}").cross_validation(workplace / "refused")
    assert not (workplace / "refused").exists()


def test_slices_by_a_splits_file_that_leaves_cases_out(workplace, make_experiment, tmp_path):
    ids = read_dataset(workplace / "data").ids
    splits = [
        {"train": list(ids[3:5]), "val": [ids[0], ids[2]]},
        {"train": [ids[0]], "val": [ids[4]]},
        {"train": [ids[2]], "val": []},
    ]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    options = (
        *(f"data.splits={tmp_path / 'splits_final.json'}", "data.folds=2", "patch.size=[16, 16]"),
        *("model.name=unet_2d", "train.steps=1", "predict.keep_largest=[liver]"),
    )
    run = workplace / "slices"
    validation = make_experiment(*options).cross_validation(run)
    assert validation.experiment.data.folds == 3
    (tmp_path / "splits_final.json").unlink()  # the folder has its own
    assert {fold for fold, _ in make_experiment(*options).cross_validation(run)} == {0, 1, 2}
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["subjects"].keys() == {ids[0], ids[2], ids[4]}
    assert [fold["cases"] for fold in summary["folds"]] == [[ids[0], ids[2]], [ids[4]]]
    assert "because the config sets it" in (no_post_processing_reason(RunFolder(run)) or "")
    _, saved, _ = load_model(run)
    assert (saved.members, saved.predict.keep_largest) == (3, ("liver",))
    assert summary["post_processing"] is None


def test_two_processes_share_each_fold_and_one_aggregates(make_experiment, workplace, run_ranks, tmp_path):
    config, run = tmp_path / "toy.yaml", workplace / "together"
    config.write_text(make_experiment("data.folds=2", "train.steps=2", "train.batch_size=1").to_yaml())
    done = run_ranks("-m", "medseg", "train", str(config), "--run", str(run), "--all-folds")
    for text in (
        "fold 0: Trainer(",
        "fold 1: Trainer(",
        "batch 1 x 2",
        "mean ± sd",
        f"model: {run / 'model'}",
    ):
        assert done.stdout.count(text) == (2 if "x 2" in text else 1)
    assert load_model(run)[1].members == 2
    assert len(list((run / "predictions").glob("*.nii.gz"))) == 6

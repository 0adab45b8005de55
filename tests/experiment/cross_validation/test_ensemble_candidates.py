"""Ensembles of every two cross-validations; each case is predicted by the folds that held it out."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_label
from medseg.data.datasets.splits import read_splits
from medseg.errors import ConfigError, ModelError
from medseg.evaluation.label_maps.metrics import compare_label_maps
from medseg.experiment.cross_validation.ensemble_candidates import compare_with_ensembles
from medseg.inference.predictor_ensemble import PredictorEnsemble
from tests.helpers.runs import one_thread

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other(make_experiment, workplace):
    """Another cross-validation of the same cases with different splits."""
    run = workplace / "other"
    with one_thread():
        list(make_experiment("seed=5", "model.channels=[6,8]").cross_validation(run))
    return run


def rows_of(run):
    with (run / "evaluation" / "cases.tsv").open() as file:
        return {
            (row["case"], row["name"]): float(row["dice"]) for row in csv.DictReader(file, delimiter="\t")
        }


def test_an_ensemble_of_runs_averages_the_folds_that_held_out_a_case(whole, other, workplace):
    comparison = compare_with_ensembles([whole, other])
    names = [candidate.run for candidate in comparison.runs]
    assert names == [str(whole), str(other), f"{whole} + {other}"]
    dataset = read_dataset(workplace / "data")
    fold_of = [
        {
            case: fold
            for fold, split in enumerate(read_splits(run / "splits.json"))
            for case in split.validation
        }
        for run in (whole, other)
    ]
    assert fold_of[0] != fold_of[1]
    by_label: dict[str, list[float]] = {}
    for case in dataset.labelled_cases:
        models = [run / f"fold_{folds[case.id]}" for run, folds in zip((whole, other), fold_of, strict=True)]
        found = PredictorEnsemble([medseg.load(model) for model in models])(case)
        for row in compare_label_maps(
            found, read_case_label(case, dataset.labels, found.grid), dataset.labels
        ):
            by_label.setdefault(row.label, []).append(row.dice)
    expected = np.mean([np.nanmean(values) for values in by_label.values()])
    assert comparison.runs[2].mean == pytest.approx(expected)
    assert 0 < expected < 1


def test_a_run_with_its_copy_is_that_run(whole, other, workplace, capsys):
    copy = workplace / "copy"
    shutil.copytree(whole, copy)
    comparison = compare_with_ensembles([whole, copy, other])
    alone, again, _, itself, *mixed = comparison.runs
    assert alone.mean == again.mean == pytest.approx(itself.mean, abs=1e-5)  # tables are rounded
    assert mixed[0].mean == mixed[1].mean
    assert main(["compare", str(whole), str(copy), "--ensembles"]) == 0
    output = capsys.readouterr().out
    assert f"{whole} + {copy}" in output
    assert f"use it: medseg predict {whole / 'model'} IMAGES -o FOLDER\n" in output  # the first of equals
    with pytest.raises(ConfigError, match="twice, expected different runs"):
        compare_with_ensembles([whole, other, whole / ".." / whole.name])


def test_runs_of_other_images_are_refused(whole, other, monkeypatch):
    def refuse(predictors):
        raise ModelError("model 2: channels: found MR, expected CT.")

    monkeypatch.setattr("medseg.experiment.cross_validation.ensemble_candidates.PredictorEnsemble", refuse)
    with pytest.raises(ModelError, match="found MR, expected CT"):
        compare_with_ensembles([whole, other])


def test_a_single_run_cannot_be_compared(whole, capsys):
    assert main(["compare", str(whole), "--ensembles"]) == 1
    assert "compare: found 1 run, expected at least two" in capsys.readouterr().err

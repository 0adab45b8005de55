"""Experiments as values: defaults, checks across sections, and reading written files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import ConfigError, DataError
from medseg.experiment.experiment import Experiment
from medseg.experiment.held_out import held_out_cases
from medseg.experiment.resolve_data import choose_split, find_dataset, labels_of
from medseg.experiment.run_folder import RunFolder


def test_defaults_are_complete_and_stable(tmp_path):
    experiment = Experiment()
    path = tmp_path / "all.yaml"
    path.write_text(experiment.to_yaml())
    assert Experiment.load(path) == experiment
    assert Experiment.load(path).to_yaml() == experiment.to_yaml()


def test_model_options_are_resolved_and_stay_resolved(tmp_path):
    path = tmp_path / "a.yaml"
    experiment = Experiment.parse(
        {"model": {"name": "resunet_2d", "channels": [4, 8]}, "patch": {"size": [8, 8]}}
    )
    path.write_text(experiment.to_yaml())
    again = Experiment.load(path)
    assert again.to_yaml() == experiment.to_yaml()
    one, other = (e.model.build(1, 2) for e in (experiment, again))
    assert [(n, p.shape) for n, p in one.named_parameters()] == [
        (n, p.shape) for n, p in other.named_parameters()
    ]
    assert one.spatial_dims == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"patch": {"size": [8, 8]}},
            "patch.size: found 2 sizes [8, 8], expected 3 because model.name is unet_3d",
        ),
        ({"model": {"name": "unet_2d"}}, "expected 2 because model.name is unet_2d"),
        ({"data": {"folds": 3, "fold": 3}}, "data.fold: found 3, expected 0 to 2"),
        (
            {"data": {"fold": "all"}, "train": {"early_stopping_patience": 3}},
            "train.early_stopping_patience: found 3 with data.fold=all, expected null",
        ),
        (
            {"model": {"name": "unet_2d"}, "patch": {"size": [32, 32]}, "augment": {"mirror_axes": [0, 2]}},
            "augment.mirror_axes: found [0, 2], expected 0 and 1 at most",
        ),
        ({"model": {"name": "unet_33d"}}, "Did you mean 'unet_3d'"),
        ({"model": {"chanels": [4]}}, "Did you mean 'channels'"),
        ({"name": "../escape"}, "name"),
        ({"seed": -1}, "seed"),
        ({"predict": {"overlap": 1.0}}, "predict.overlap"),
        ({"train": {"optimizer": {"lr": float("nan")}}}, "train.optimizer.lr"),
        ({"evaluate": {"tolerance_mm": 0}}, "evaluate.tolerance_mm"),
    ],
)
def test_errors_name_their_field(values, message):
    with pytest.raises(ConfigError) as caught:
        Experiment.parse(values)
    assert message in str(caught.value)


def test_checking_an_experiment_imports_no_torch(tmp_path):
    code = (
        "import sys; from medseg.experiment.experiment import Experiment; Experiment().to_yaml();"
        "print(any(name in sys.modules for name in ('torch', 'monai', 'SimpleITK')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_phantoms_are_generated_next_to_the_run_and_reused(tmp_path):
    experiment = Experiment.parse({"data": {"phantom": {"modality": "mr", "cases": 3, "seed": 4}}})
    dataset = find_dataset(experiment, RunFolder(tmp_path / "run").shared_folder)
    assert dataset.root == tmp_path / "phantom_mr_3_4"
    stamp = dataset.cases[0].images[0].stat().st_mtime_ns
    assert find_dataset(experiment, RunFolder(tmp_path / "another").shared_folder) == dataset
    assert dataset.cases[0].images[0].stat().st_mtime_ns == stamp


@pytest.fixture
def dataset(tmp_path):
    return write_phantoms(tmp_path / "data", cases=4, shape=(8, 8, 8), spacing=(40, 40, 40))


def test_folds_come_from_the_seed_or_from_a_file(tmp_path, dataset):
    base = {"data": {"path": str(dataset.root), "folds": 2}}
    first, second = (
        choose_split(Experiment.parse({"data": {**base["data"], "fold": fold}}), dataset) for fold in (0, 1)
    )
    assert sorted(first.validation + second.validation) == list(dataset.ids)
    file = tmp_path / "splits.json"
    file.write_text(json.dumps([{"train": list(dataset.ids[:3]), "val": [dataset.ids[3]]}]))
    chosen = choose_split(Experiment.parse({"data": {**base["data"], "splits": str(file)}}), dataset)
    assert chosen.validation == (dataset.ids[3],)
    file.write_text(json.dumps(json.loads(file.read_text()) * 3))
    more = Experiment.parse({"data": {**base["data"], "splits": str(file), "fold": 2}})
    assert choose_split(more, dataset) == chosen
    file.write_text(json.dumps(json.loads(file.read_text())[:1]))
    with pytest.raises(ConfigError, match=r"found 1 folds, expected more than data\.fold=1"):
        choose_split(Experiment.parse({"data": {**base["data"], "splits": str(file), "fold": 1}}), dataset)


def test_labels_of_the_experiment_come_first(dataset):
    from dataclasses import replace

    assert labels_of(Experiment(), dataset) == dataset.labels
    own = Experiment.parse({"data": {"labels": {"organ": 3}}})
    assert labels_of(own, dataset).names == ("background", "organ")
    with pytest.raises(DataError, match=r"found no names of labels\. Add labels\.tsv"):
        labels_of(Experiment(), replace(dataset, labels=None))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for reader in (Experiment.from_run, held_out_cases):
        with pytest.raises(ConfigError, match="found no run"):
            reader(RunFolder(tmp_path))

"""From a config with regions, an ignore value and partially annotated cases to a model and its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg
from medseg.config import apply_overrides
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.patches.case_store import StoredCase
from medseg.errors import ConfigError, DataError
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.experiment.experiment import Experiment
from medseg.experiment.held_out import held_out_pairs
from medseg.experiment.run_folder import RunFolder
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.networks import toy_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms with liver (1) and spine (5) only; a slab is ignored, and in the first only the liver is annotated."""
    folder = tmp_path_factory.mktemp("labels")
    dataset = write_phantoms(folder / "data", cases=4, shape=(24, 20, 18), spacing=(13, 14, 14))
    for number, case in enumerate(dataset.cases):
        assert case.label is not None
        label = medseg.read_labels(case.label)
        values = label.data * np.isin(label.data, (1, 5) if number else (1,))
        values[:, :2] = 255
        medseg.write(label.with_data(values.astype(np.uint8)), case.label)
    return folder


def experiment(folder: Path, *overrides: str) -> Experiment:
    values: dict[str, Any] = {
        "name": "toy",
        "data": {
            "path": str(folder / "data"),
            "folds": 2,
            "labels": {"liver": 1, "spine": 5},
            "ignore": 255,
            "partially_annotated": {"phantom_000": ["liver"]},
        },
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1},
        "patch": {"size": [16, 16, 16]},
        "train": {"steps": 2, "report_every": 2, "validate_every": 2, "validation_batches": 1},
    }
    return Experiment.parse(apply_overrides(values, list(overrides)), source="toy")


def test_regions_from_the_config_to_the_model_folder(folder: Path, tmp_path: Path) -> None:
    regions = "data.regions={whole: [1, 5], spine: {values: [5], output_value: 1}}"
    trainer = experiment(folder, regions, "data.fold=1", "train.class_weights={spine: 2}").trainer(
        tmp_path / "run"
    )
    (report,) = list(trainer)
    assert list(report.val_dice) == ["whole", "spine"]
    assert np.isfinite(report.loss)
    labels = Labels.from_tsv(tmp_path / "run" / "model" / "labels.tsv")
    assert [(one.name, one.values, one.output_value) for one in labels.regions] == [
        ("whole", (1, 5), 1),
        ("spine", (5,), 1),
    ]
    assert labels.ignore == 255
    assert trainer.model.num_classes == 2


def test_partially_annotated_cases_are_trained_on_and_evaluated(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = experiment(folder).trainer(run)
    (report,) = list(trainer)
    assert list(report.val_dice) == ["liver", "spine"]
    found = {path.name.rsplit("-", 1)[0]: path for path in (tmp_path / ".prepared").glob("phantom_*")}
    assert set(np.unique(StoredCase("", found["phantom_000"]).label)) == {1, 3, 4}
    assert set(np.unique(StoredCase("", found["phantom_001"]).label)) == {0, 1, 2, 3}
    for case_id in found:
        reference = medseg.read_labels(next((folder / "data").rglob(f"label*/{case_id}.nii.gz")))
        perfect = reference.with_data(reference.data * (reference.data != 255))
        medseg.write(perfect, run / "predictions" / f"{case_id}.nii.gz")
    for fold in (0, 1):
        experiment(folder, f"data.fold={fold}").trainer(tmp_path / f"fold_{fold}")
        (tmp_path / f"fold_{fold}" / "predictions").symlink_to(run / "predictions")
        pairs, labels, _ = held_out_pairs(RunFolder(tmp_path / f"fold_{fold}"))
        for rows in evaluate_cases(pairs, labels):
            names = [row.label for row in rows]
            assert names == (["liver"] if rows[0].case == "phantom_000" else ["liver", "spine"])
            assert all(row.dice == 1 for row in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.partially_annotated={nobody: [liver]}"],
            "data.partially_annotated: no case matches 'nobody'",
        ),
        (["data.partially_annotated={phantom_*: [livre]}"], "labels: unknown label 'livre'"),
        (["data.ignore=5"], "ignore: found 5, expected a value that no label has"),
        (["data.regions={whole: [1, 2]}"], "regions: whole: found the unknown value 2"),
        (["train.loss=tversky"], "train.loss: found tversky with partially annotated cases"),
        (["train.class_weights={spin: 2}"], "train.class_weights: unknown name 'spin'. Did you mean 'spine'"),
        (
            ["train.class_weights={spine: 2}", "train.loss=dice"],
            "train.class_weights: found weights with the loss dice",
        ),
    ],
)
def test_settings_that_cannot_be_trained_are_refused_before_preparation(
    folder: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        experiment(folder, *overrides).trainer(tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / ".prepared").exists()


def test_models_that_compute_their_own_losses_refuse_regions_and_partial_annotation(
    folder: Path, tmp_path: Path
) -> None:
    values = {
        "data": {"path": str(folder / "data"), "folds": 2, "labels": {"liver": 1, "spine": 5}, "ignore": 255},
        "model": {"name": "mask_rcnn_resnet_50_fpn"},
        "patch": {"size": [64, 64]},
    }
    with pytest.raises(
        ConfigError, match="found mask_rcnn_resnet_50_fpn, which computes its own losses, with regions"
    ):
        Experiment.parse(values).trainer(tmp_path / "run")
    assert not (tmp_path / ".prepared").exists()


def test_cases_without_any_foreground_raise_a_clear_error(tmp_path: Path) -> None:
    empty_dataset(tmp_path / "data", 3)
    tried = Experiment.parse(
        {
            "data": {"path": str(tmp_path / "data"), "folds": 3, "labels": {"liver": 1}},
            "patch": {"size": [8, 8, 8]},
            "model": {"name": "unet_3d", "channels": [4, 8]},
        }
    )
    with pytest.raises(DataError, match="found no voxel of a label in any of the 2 training cases"):
        tried.trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def empty_dataset(folder: Path, count: int) -> None:
    rows = ["case\timage_MR\tlabel"]
    for number in range(count):
        grid = Grid.from_spacing((8, 8, 8), (1, 1, 1))
        image = np.random.default_rng(number).normal(size=(1, 8, 8, 8)).astype(np.float32)
        medseg.write(Volume(image, grid), folder / f"{number}.nii.gz")
        medseg.write(
            Volume(np.zeros((1, 8, 8, 8), np.uint8), grid, "label"), folder / f"{number}_label.nii.gz"
        )
        rows.append(f"case_{number}\t{number}.nii.gz\t{number}_label.nii.gz")
    (folder / "cases.tsv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_query_models_train_on_partially_annotated_cases(folder: Path, tmp_path: Path) -> None:
    """From the config to the losses of the model, among them the marginal one that open voxels need."""
    small = toy_options("maskformer_resnet_18")
    values = {
        "data": {
            "path": str(folder / "data"), "folds": 2, "fold": "all", "labels": {"liver": 1, "spine": 5},
            "ignore": 255, "partially_annotated": {"*": ["liver", "spine"], "phantom_000": ["liver"]},
        },
        "model": {"name": "maskformer_resnet_18", **small},
        "patch": {"size": [24, 20]},
        "train": {"steps": 2, "report_every": 1, "validation_batches": 0},
    }  # fmt: skip
    trainer = Experiment.parse(values).trainer(tmp_path / "run")
    reports = list(trainer)
    assert all(np.isfinite(report.loss) for report in reports)
    assert "marginal" in reports[-1].loss_terms
    assert trainer.model.label_sets is not None

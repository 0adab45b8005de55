"""Soft labels from a table with probabilities to patches, training and evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import medseg
from medseg.check.check_paths import check_paths
from medseg.cli.main import main
from medseg.config import apply_overrides
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.datasets.read_case import read_case_label, read_case_probabilities
from medseg.errors import ConfigError, DataError
from medseg.experiment.experiment import Experiment
from medseg.experiment.held_out import held_out_pairs
from medseg.experiment.run_folder import RunFolder
from medseg.labels.label_table import Labels
from tests.helpers.patches import NO_AUGMENTATION
from tests.helpers.runs import single_thread

__all__ = ["single_thread"]

LABELS = Labels.from_names({"liver": 1, "spine": 5})
COLUMNS = "case\timage_CT\tlabel\tlabel_probabilities"


def raters(label: np.ndarray) -> np.ndarray:
    """The share of three raters that chose each label; two of them drew it a voxel off."""
    drawn = [label, np.roll(label, 1, 0), np.roll(label, 1, 1)]
    return np.stack([np.mean([one == value for one in drawn], 0) for value in (1, 5)], -1)


def write_shares(path: Path, like: Path, shares: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(shares.astype(np.float32), nib.load(like).affine), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms, three of them with probabilities only; the first has a label map only."""
    folder = tmp_path_factory.mktemp("soft") / "data"
    dataset = write_phantoms(folder, cases=4, shape=(24, 20, 18), spacing=(13, 14, 14))
    rows = []
    for number, case in enumerate(dataset.cases):
        assert case.label is not None
        label = medseg.read_labels(case.label)
        values = label.data[0] * np.isin(label.data[0], (1, 5))
        medseg.write(label.with_data(values[None].astype(np.uint8)), case.label)
        write_shares(folder / f"{case.id}.nii.gz", case.label, raters(values))
        files = [case.label.relative_to(folder), ""] if number == 0 else ["", f"{case.id}.nii.gz"]
        rows.append("\t".join([case.id, str(case.images[0].relative_to(folder)), *map(str, files)]))
    (folder / "cases.tsv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    (folder / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tliver\n5\tspine\n")
    return folder


def experiment(data: Path, *overrides: str) -> Experiment:
    values: dict[str, Any] = {
        "name": "toy",
        "data": {"path": str(data / "cases.tsv"), "folds": 2, "fold": "all"},
        "preprocess": {"orientation": None, "crop_to_nonzero": False},
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1, "deep_supervision": True},
        "patch": {"size": [16, 16, 16]},
        "train": {"steps": 2, "report_every": 1, "validate_every": 2, "validation_batches": 1},
    }
    return Experiment.parse(apply_overrides(values, list(overrides)), source="toy")


def test_files_with_and_without_the_background_are_read(data: Path, tmp_path: Path) -> None:
    case = read_dataset(data / "cases.tsv").cases[1]
    found = read_case_probabilities(case, LABELS)
    assert found.data.shape == (3, 24, 20, 18)
    assert np.abs(found.data.sum(0) - 1).max() < 1e-6
    expected = nib.load(case.probabilities).get_fdata()
    np.testing.assert_allclose(np.moveaxis(found.data[1:], 0, -1), expected, atol=1e-6)
    path = tmp_path / "complete.nii.gz"
    write_shares(path, case.probabilities, np.moveaxis(found.data, 0, -1))
    again = read_case_probabilities(replace(case, probabilities=path), LABELS)
    np.testing.assert_allclose(again.data, found.data, atol=1e-6)
    classes = read_case_label(case, LABELS)
    assert np.array_equal(classes.data[0], found.data.argmax(0))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            np.zeros((24, 20, 18, 4)),
            "found 4 channels, expected 3 for background, liver, spine, or 2 without background",
        ),
        (np.full((24, 20, 18, 2), 0.7), "found 0.7, 0.7 in the voxel (0, 0, 0) and others in 8,640 voxels"),
        (np.full((24, 20, 18, 3), 0.2), "expected numbers from 0 to 1 with the sum 1"),
        (np.full((24, 20, 18, 2), -0.2), "expected numbers from 0 to 1"),
        (np.zeros((24, 20, 17, 2)), "not on the grid of"),
    ],
)
def test_values_that_are_no_probabilities_are_refused(
    data: Path, tmp_path: Path, shares: np.ndarray, message: str
) -> None:
    case = read_dataset(data / "cases.tsv").cases[1]
    path = tmp_path / "wrong.nii.gz"
    assert case.probabilities is not None
    write_shares(path, case.probabilities, shares)
    with pytest.raises(DataError) as caught:
        read_case_probabilities(replace(case, probabilities=path), LABELS)
    assert message in str(caught.value)


def test_patches_hold_the_shares_at_their_place(data: Path, tmp_path: Path) -> None:
    """Flips, rotations and the crop treat probabilities as they treat the image; label maps become 0 and 1."""
    trainer = experiment(data).trainer(tmp_path / "run")
    patches = trainer.patches.train
    stored = {case.id: case for case in patches.cases}
    assert [case.has_probabilities for case in stored.values()] == [False, True, True, True]
    for case in list(stored.values())[1:]:
        shares = case.probabilities.astype(np.float32)
        background = 1 - shares.sum(0)
        assert np.array_equal(case.label[0], np.concatenate([background[None], shares]).argmax(0))
    seen = set()
    for index in range(40):
        sample = patches[index]
        soft = sample["probabilities"]
        assert soft.shape == (2, 16, 16, 16)
        assert float(soft.min()) >= 0
        assert float(soft.sum(0).max()) <= 1 + 1e-5
        drawn = patches.draw(index)
        inner = (soft > 1e-3) & (soft < 1 - 1e-3)
        seen.add((drawn.box.probabilities is None, bool(inner.any())))
        complete = torch.cat([1 - soft.sum(0, keepdim=True), soft])
        agree = (complete.argmax(0) == sample["label"][0]).float().mean()
        assert agree > 0.9
    assert {(True, False), (False, True)} <= seen


def test_plain_patches_are_the_stored_shares(data: Path, tmp_path: Path) -> None:
    plain = [f"augment.{key}={value:g}" for key, value in NO_AUGMENTATION.items()]
    trainer = experiment(data, "augment.mirror_axes=[]", "patch.size=[24, 20, 18]", *plain).trainer(
        tmp_path / "run"
    )
    patches, compared = trainer.patches.train, 0
    for index in range(12):
        (name,) = patches.case_ids([index])
        case = next(case for case in patches.cases if case.id == name)
        sample = patches[index]
        if case.has_probabilities and torch.equal(sample["image"], torch.from_numpy(np.array(case.image))):
            expected = torch.from_numpy(np.array(case.probabilities, np.float32))
            assert torch.equal(sample["probabilities"], expected)
            compared += 1
    assert compared


def test_resampling_is_linear_and_keeps_the_sum(data: Path, tmp_path: Path) -> None:
    trainer = experiment(data, "preprocess.spacing=[20, 20, 20]").trainer(tmp_path / "run")
    for case in trainer.patches.train.cases:
        if case.has_probabilities:
            shares = case.probabilities.astype(np.float32)
            assert shares.shape[1:] == case.shape == (16, 14, 13)
            assert 0 <= shares.min() <= shares.sum(0).max() <= 1.001
            assert ((shares > 0.05) & (shares < 0.3)).any()  # shares that three raters cannot have


@pytest.mark.slow
def test_training_and_evaluation(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = experiment(data, "data.fold=1").trainer(run)
    reports = list(trainer)
    assert all(np.isfinite(report.loss) for report in reports)
    assert list(reports[-1].val_dice) == ["liver", "spine"]
    assert main(["predict", str(run), "--held-out"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "2 held-out cases of the training data" in (run / "model" / "README.md").read_text()
    (split,) = RunFolder(run).read_splits()
    cases = read_dataset(data / "cases.tsv").subset(split.validation).cases
    pairs, labels, _ = held_out_pairs(RunFolder(run))
    for pair, case in zip(pairs, cases, strict=True):
        _, reference = pair.volumes()
        expected = labels.to_values(read_case_label(case, labels).data)
        assert np.array_equal(reference.data, expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.loss=tversky"],
            "label_probabilities: found cases with label probabilities and train.loss=tversky",
        ),
        (["data.ignore=9"], "and regions, an ignore label or partially annotated cases"),
        (
            ["data.partially_annotated={'*': [liver]}"],
            "and regions, an ignore label or partially annotated cases",
        ),
        (["data.regions={all: [1, 5]}"], "and regions, an ignore label or partially annotated cases"),
    ],
)
def test_what_cannot_learn_from_probabilities_is_refused_before_preparation(
    data: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(data, *overrides).trainer(tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / ".prepared").exists()


def test_check_finds_files_that_are_no_probabilities(data: Path, tmp_path: Path) -> None:
    assert "PROBABILITIES_INVALID" not in {one.code for one in check_paths([data / "cases.tsv"]).findings}
    case = read_dataset(data / "cases.tsv").cases[1]
    assert case.probabilities is not None
    before = case.probabilities.read_bytes()
    write_shares(case.probabilities, case.images[0], np.full((24, 20, 18, 2), 0.7))
    found = [one for one in check_paths([data / "cases.tsv"]).findings if one.code == "PROBABILITIES_INVALID"]
    case.probabilities.write_bytes(before)
    (finding,) = found
    assert finding.file == case.probabilities.name
    assert "found 0.7, 0.7 in the voxel" in finding.found

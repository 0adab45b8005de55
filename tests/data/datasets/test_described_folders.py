"""Folders of images whose masks have other names, and whose channels and labels a table names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.data.datasets.layouts import is_dataset, read_dataset
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.errors import DataError
from medseg.io.files import write
from medseg.planning.explained_experiment import normalization_methods
from medseg.planning.plan_dataset import PlanOptions, plan
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

GRID = Grid.from_spacing((16, 15, 14), (1, 1, 2))


def folders(root: Path, masks: str, *, channels: int = 1, cases: int = 2) -> Path:
    generator = np.random.default_rng(0)
    for number in range(cases):
        image = generator.normal(0, 100, (channels, *GRID.shape)).astype(np.int16)
        for folder in (root / "images", root / masks):
            folder.mkdir(parents=True, exist_ok=True)
        write(Volume(image, GRID), root / "images" / f"case_{number}.nii.gz")
        label = Volume((image[:1] > 50).astype(np.uint8), GRID, "label")
        write(label, root / masks / f"case_{number}.nii.gz")
    return root


@pytest.mark.parametrize("masks", ["labels", "masks", "segmentations"])
def test_masks_are_paired_by_name(tmp_path: Path, masks: str) -> None:
    folders(tmp_path, masks)
    assert is_dataset(tmp_path)
    dataset = read_dataset(tmp_path)
    (tmp_path / "labels.tsv").write_text("value\tname\n1\tlesion\n")
    labels = read_dataset(tmp_path).labels
    assert labels is not None
    for case in dataset.cases:
        assert case.label == tmp_path / masks / f"{case.id}.nii.gz"
        assert np.array_equal(read_case_label(case, labels).data > 0, read_case_image(case).data > 50)


def test_two_folders_of_masks_are_refused(tmp_path: Path) -> None:
    folders(folders(tmp_path, "masks"), "segmentations")
    with pytest.raises(DataError, match="found the folders masks and segmentations, expected one of them"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_a_table_names_the_channels(tmp_path: Path, suffix: str) -> None:
    folders(tmp_path, "labels", channels=2)
    assert read_dataset(tmp_path).channel_names == ("channel_0", "channel_1")
    (tmp_path / f"channels{suffix}").write_text("name\nCT\nPET\n")
    assert read_dataset(tmp_path).channel_names == ("CT", "PET")


def test_a_folder_of_ct_is_normalised_as_ct(tmp_path: Path) -> None:
    folders(tmp_path, "labels")
    (tmp_path / "labels.csv").write_text("value,name\n1,lesion\n")
    options = PlanOptions(device="cuda")
    assert normalization_methods(plan(tmp_path, options).fingerprint) == ["zscore"]
    (tmp_path / "channels.tsv").write_text("name\nCT\n")
    planned = plan(tmp_path, options)
    assert normalization_methods(planned.fingerprint) == ["ct"]
    assert planned.fingerprint.channel_names == ("CT",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nCT\nPET\n", r"channels\.tsv: name: found 2 \(CT, PET\), expected 1, one per channel"),
        ("channel\nCT\n", r"channels\.tsv: found columns channel, expected name"),
        ("name\n", r"name: found 0 \(\), expected 1"),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    folders(tmp_path, "labels")
    (tmp_path / "channels.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_a_table_of_cases_may_be_separated_by_commas(tmp_path: Path) -> None:
    folders(tmp_path, "masks")
    rows = [f"case_{k},images/case_{k}.nii.gz,masks/case_{k}.nii.gz" for k in range(2)]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,label", *rows]))
    (tmp_path / "channels.csv").write_text("name\nCT\n")
    dataset = read_dataset(tmp_path)
    assert dataset.ids == ("case_0", "case_1")
    assert dataset.channel_names == ("CT",)
    assert dataset.cases[1].label == tmp_path / "masks" / "case_1.nii.gz"
    (tmp_path / "cases.tsv").write_text("case\timage\nx\timages/case_0.nii.gz\n")
    with pytest.raises(DataError, match=r"found cases\.tsv and cases\.csv, expected one of them"):
        read_dataset(tmp_path)

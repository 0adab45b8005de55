"""Faults in reading image files that are known and not yet repaired.

Each test states the correct behaviour and is expected to fail. ``strict`` makes a repaired fault visible: remove its mark then and move the test to the
tests of the module.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.layouts import read_dataset
from tests.helpers.marks import known_fault


@known_fault("colour images in nnU-Net's layout are one file with several channel names")
def test_one_colour_file_holds_all_channels_of_an_nnunet_case(tmp_path: Path) -> None:
    write_nnunet(tmp_path, ".png", {"0": "R", "1": "G", "2": "B"})
    Image.fromarray(np.zeros((48, 48, 3), "u1")).save(tmp_path / "imagesTr" / "c_0000.png")
    Image.fromarray(np.zeros((48, 48), "u1")).save(tmp_path / "labelsTr" / "c.png")
    (case,) = read_dataset(tmp_path).cases
    assert medseg.read(case.images[0]).channels == 3


@known_fault("a mistake in dataset.json is reported as a missing DICOM series")
def test_inspect_names_the_line_of_a_mistake_in_dataset_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medseg.cli.main import main

    write_nnunet(tmp_path, ".nii.gz", {"0": "CT"})
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().rstrip("}") + ",}")
    main(["inspect", str(tmp_path)])
    printed = capsys.readouterr()
    assert "dataset.json: " in printed.out + printed.err
    assert "DICOM" not in printed.out + printed.err


@known_fault("names that differ only in letters outside ASCII clash")
def test_names_with_umlauts_are_different_cases(tmp_path: Path) -> None:
    for name in ("Müller", "Möller"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    cases: list[Case] = list(read_images(tmp_path))
    assert len({case.id for case in cases}) == 2


def write_nnunet(root: Path, ending: str, channels: dict[str, str]) -> None:
    """Write the description and the folders of an nnU-Net dataset with one case."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    description = {"channel_names": channels, "labels": {"background": 0, "a": 1}, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps(description | {"file_ending": ending}))

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataWarning
from medseg.io.nifti.nifti_label_names import nifti_label_names

TABLE = """<?xml version="1.0" encoding="UTF-8"?>
<CaretExtension><VolumeInformation Index="0"><LabelTable>
<Label Key="0" Red="0" Green="0" Blue="0" Alpha="0"><![CDATA[background]]></Label>
<Label Key="1" Red="1" Green="0.5" Blue="0" Alpha="1"><![CDATA[spleen]]></Label>
<Label Key="7">left  kidney &amp; fat</Label>
</LabelTable></VolumeInformation></CaretExtension>"""


def saved(path: Path, *contents: str, kind: type = nib.Nifti1Image) -> Path:
    image = kind(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    for content in contents:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("ignore", content.encode()))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.img"])
def test_names_and_colours_are_read(tmp_path: Path, name: str) -> None:
    kind = nib.Nifti1Pair if name.endswith("img") else nib.Nifti1Image
    path = saved(tmp_path / name, "<other/>", TABLE, kind=kind)
    assert nifti_label_names(path) == {
        0: ("background", (0, 0, 0)),
        1: ("spleen", (255, 128, 0)),
        7: ("left kidney & fat", None),
    }


def test_a_file_without_a_table_names_nothing(tmp_path: Path) -> None:
    assert nifti_label_names(saved(tmp_path / "a.nii", "<other/>")) == {}
    assert nifti_label_names(saved(tmp_path / "b.nii.gz")) == {}


@pytest.mark.parametrize(
    "content",
    [
        TABLE[:200],
        TABLE.replace('Key="7"', 'Key="seven"'),
        TABLE.replace('Red="1"', 'Red="much"'),
        '<!DOCTYPE a [<!ENTITY b "bbbb">]>' + TABLE.split("?>")[1],
    ],
)
def test_a_table_that_cannot_be_understood_is_reported_and_ignored(tmp_path: Path, content: str) -> None:
    path = saved(tmp_path / "a.nii", content)
    with pytest.warns(DataWarning, match="header extension with label names"):
        assert nifti_label_names(path) == {}

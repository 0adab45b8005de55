from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import DataWarning
from medseg.io.files import read, write
from medseg.io.nifti.nifti_label_names import nifti_label_names
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

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


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("length", [3, 40000])  # too long an axis for NIfTI-1
def test_written_names_and_colours_come_back(tmp_path: Path, suffix: str, length: int) -> None:
    labels = Labels.from_names({"left kidney & <fat>": 1, "Müller": 4}, {"left kidney & <fat>": (12, 34, 56)})
    labels = labels.with_regions({"both": [1, 4]}, {"both": 4})
    volume = Volume(
        np.ones((1, length, 2, 1), np.uint8), Grid.from_spacing((length, 2, 1), (1, 2, 3)), "label"
    )
    write(volume, tmp_path / f"a{suffix}", names=labels)
    write(volume, tmp_path / f"b{suffix}", names=labels)
    assert nifti_label_names(tmp_path / f"a{suffix}") == {
        0: ("background", (0, 0, 0)),
        1: ("left kidney & <fat>", (12, 34, 56)),
        4: ("both", labels.regions[0].colour),
    }
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    found = read(tmp_path / f"a{suffix}")
    assert np.array_equal(found.data, volume.data)
    assert found.grid == volume.grid
    assert np.array_equal(np.asarray(nib.load(tmp_path / f"a{suffix}").dataobj), volume.data[0])
    if length == 3:  # ITK does not read NIfTI-2
        assert np.array_equal(
            sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / f"a{suffix}")).T, volume.data[0]
        )


def test_a_table_is_read_as_totalsegmentator_reads_it(tmp_path: Path) -> None:
    volume = Volume(np.ones((1, 2, 2, 2), np.uint8), Grid.from_spacing((2, 2, 2)), "label")
    write(volume, tmp_path / "a.nii.gz", names=Labels.from_names({"spleen": 1}))
    (extension,) = nib.load(tmp_path / "a.nii.gz").header.extensions
    table = ElementTree.fromstring(extension.get_content()).find("VolumeInformation/LabelTable")
    assert table is not None
    assert {int(one.attrib["Key"]): one.text for one in table.findall("Label")} == {
        0: "background",
        1: "spleen",
    }

"""Images to predict on: what read_images finds among files, folders and DICOM series."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from medseg.data.datasets.image_inputs import output_stem, read_images
from medseg.errors import DataError
from tests.helpers.file_trees import write_tree
from tests.helpers.paths import SHARED_FOLDER

SHARED = SHARED_FOLDER / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="real data are not beside the checkout")


def ids_of(cases: list[Any]) -> dict[str, list[str]]:
    return {case.id: [path.name for path in case.images] for case in cases}


def test_images_of_one_channel(tmp_path):
    write_tree(tmp_path, "b.nii.gz", "a_0001.nrrd", "._b.nii.gz", "notes.txt", "pair.hdr", "pair.img")
    assert ids_of(read_images(tmp_path)) == {
        "a_0001": ["a_0001.nrrd"],
        "b": ["b.nii.gz"],
        "pair": ["pair.hdr"],
    }
    assert ids_of(read_images(tmp_path / "b.nii.gz")) == {"b": ["b.nii.gz"]}


def test_nnunet_style_names_of_one_channel_lose_their_number(tmp_path):
    write_tree(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz")
    assert list(ids_of(read_images(tmp_path))) == ["a", "b"]


def test_images_of_several_channels(tmp_path):
    write_tree(tmp_path, *[f"{i}_000{c}.nii.gz" for i in "ab" for c in (1, 0)], "all.nii.gz")
    assert ids_of(read_images(tmp_path, channels=2)) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "all": ["all.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }
    files = [tmp_path / "a_0001.nii.gz", tmp_path / "a_0000.nii.gz"]
    assert list(ids_of(read_images(files, channels=2))) == ["a"]
    with pytest.raises(DataError, match=r"2 files are missing.*\n.*a_0002.*\n.*b_0002"):
        read_images(tmp_path, channels=3)


def test_more_channels_than_expected_raise(tmp_path):
    write_tree(tmp_path, *[f"a_000{c}.nii.gz" for c in range(3)])
    with pytest.raises(DataError, match=r"case a: found a_0002\.nii\.gz, expected a_0000\.nii\.gz to"):
        read_images(tmp_path, channels=2)


def test_unusual_names_become_ids(tmp_path):
    write_tree(tmp_path, "CT of (1).nii.gz", "-x.nii")
    assert list(ids_of(read_images(tmp_path))) == ["CT of (1)", "x"]


def test_same_name_in_two_folders(tmp_path):
    write_tree(tmp_path, "x/a.nii", "y/a.nii")
    with pytest.raises(DataError, match="found two cases 'a'"):
        read_images([tmp_path / "x", tmp_path / "y"])


def test_dicom_folders(tmp_path):
    write_tree(tmp_path, "one/I10", "one/I20", "two/1.dcm", ".cache/x")
    assert ids_of(read_images(tmp_path / "one")) == {"one": ["one"]}
    assert ids_of(read_images(tmp_path)) == {"one": ["one"], "two": ["two"]}


def test_no_images(tmp_path):
    with pytest.raises(DataError, match="found no image"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        read_images(tmp_path / "absent.nii")


# Real data ------------------------------------------------------------------------------------------------


@real
def test_real_dicom_series_are_found():
    assert len(read_images(SHARED / "dicom")) == 4


def test_numbered_channels_for_a_model_of_one_channel_are_refused(tmp_path: Path) -> None:
    for case, channel in itertools.product(("a", "b"), range(2)):
        (tmp_path / f"{case}_{channel:04d}.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"found several channels per case .* expected 1"):
        read_images(tmp_path)
    assert [case.id for case in read_images(sorted(tmp_path.glob("*_0000.nii.gz")))] == ["a", "b"]


@pytest.mark.parametrize(
    "names", [("Müller", "Möller"), ("患者甲", "病人乙"), ("a b", "a_b"), ("a(1)", "a(2)")]
)
def test_names_in_any_script_are_different_cases_and_stay_as_they_are(tmp_path, names):
    write_tree(tmp_path, *(f"{name}.nii.gz" for name in names))
    cases = read_images(tmp_path)
    assert sorted(ids_of(cases)) == sorted(names)
    assert sorted(output_stem(case) for case in cases) == sorted(names)


def test_channels_are_recognised_whatever_the_name(tmp_path):
    for channel in ("0000", "0001"):
        (tmp_path / f"new\nline_{channel}.nii").write_bytes(b"")
    (case,) = read_images(tmp_path, channels=2)
    assert [path.name for path in case.images] == ["new\nline_0000.nii", "new\nline_0001.nii"]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Case, ReadingOptions, require_each_channel, with_absent_channels
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_image
from medseg.errors import DataError
from medseg.volumes.voxel_hash import voxel_hash
from tests.helpers.absent_channels import images_of, write_dataset

ZEROS = ReadingOptions(absent_channels="zeros")


def test_files_that_are_missing_are_refused_unless_zeros_are_wanted(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {1: 0, 2: 1}, cases=3)
    for reading in (None, ReadingOptions()):
        with pytest.raises(DataError, match=r"2 files are missing:\n.*case1_0000.nii.gz") as refused:
            read_dataset(folder, reading=reading)
        assert "case2_0001.nii.gz" in str(refused.value)
    dataset = read_dataset(folder, reading=ZEROS)
    assert [case.absent for case in dataset.cases] == [(), (0,), (1,)]
    assert [path.name for path in dataset.case("case1").images] == ["case1_0001.nii.gz"]


def test_an_absent_channel_is_zeros_in_its_place(tmp_path: Path) -> None:
    cases = read_dataset(write_dataset(tmp_path, {0: 0, 1: 1}, cases=2), reading=ZEROS).cases
    ct, t1, _ = images_of(0)
    first = read_case_image(cases[0])
    assert (first.channels, first.absent, first.grid.matches(ct.grid)) == (2, (0,), True)
    assert not first.data[0].any()
    np.testing.assert_array_equal(first.data[1], t1.data[0])
    second = read_case_image(cases[1])
    assert second.absent == (1,)
    assert second.data[0].any()
    assert not second.data[1].any()


def test_volumes_keep_what_is_absent_and_label_maps_do_not(tmp_path: Path) -> None:
    image = read_case_image(read_dataset(write_dataset(tmp_path, {0: 0}, cases=1), reading=ZEROS).cases[0])
    for changed in (
        image.reoriented("LPS"),
        image.cropped((1, 1, 1), (5, 5, 5)),
        image.padded((1, 1, 1), (0, 0, 0)),
        image.resampled(spacing=2),
        image.with_data(image.data.copy()),
    ):
        assert changed.absent == (0,)
    assert image.with_data(np.zeros((1, *image.grid.shape), np.uint8), "label").absent == ()


def test_a_channel_of_zeros_is_another_image_than_an_absent_one(tmp_path: Path) -> None:
    image = read_case_image(read_dataset(write_dataset(tmp_path, {0: 0}, cases=1), reading=ZEROS).cases[0])
    assert voxel_hash(image) != voxel_hash(medseg.Volume(image.data, image.grid))


def test_a_broken_link_and_a_case_without_any_file_are_missing_files(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {}, cases=3)
    (folder / "imagesTr" / "case0_0001.nii.gz").unlink()
    (folder / "imagesTr" / "case0_0001.nii.gz").symlink_to("nowhere.nii.gz")
    for index in range(2):
        (folder / "imagesTr" / f"case1_000{index}.nii.gz").unlink()
    with pytest.raises(DataError, match="3 files are missing"):
        read_dataset(folder, reading=ZEROS)


def test_cases_with_one_file_for_all_channels_lack_none(tmp_path: Path) -> None:
    case = Case("a", (tmp_path / "a.nii.gz",))
    assert with_absent_channels([case], 2) == (case,)


def test_empty_cells_of_a_table_are_absent_channels(tmp_path: Path) -> None:
    write_dataset(tmp_path, {1: 1}, cases=2)
    table = tmp_path / "cases.tsv"
    table.write_text(
        "case\timage_CT\timage_T1\tlabel\n"
        "a\timagesTr/case0_0000.nii.gz\timagesTr/case0_0001.nii.gz\tlabelsTr/case0.nii.gz\n"
        "b\timagesTr/case1_0000.nii.gz\tn/a\tlabelsTr/case1.nii.gz\n"
    )
    with pytest.raises(DataError, match="image_T1: found an empty cell"):
        read_dataset(table)
    assert [case.absent for case in read_dataset(table, reading=ZEROS).cases] == [(), (1,)]


@pytest.mark.parametrize("row", ["c\t\t\t", "\timagesTr/case0_0000.nii.gz\t\t"])
def test_rows_without_any_image_or_without_a_name_are_refused(tmp_path: Path, row: str) -> None:
    write_dataset(tmp_path, {}, cases=1)
    (tmp_path / "cases.tsv").write_text(f"case\timage_CT\timage_T1\tlabel\n{row}\n")
    with pytest.raises(DataError, match="found an empty cell"):
        read_dataset(tmp_path / "cases.tsv", reading=ZEROS)


def test_a_file_that_a_table_lists_has_to_exist(tmp_path: Path) -> None:
    write_dataset(tmp_path, {0: 1}, cases=1)
    (tmp_path / "cases.tsv").write_text(
        "case\timage_CT\timage_T1\na\timagesTr/case0_0000.nii.gz\timagesTr/case0_0001.nii.gz\n"
    )
    with pytest.raises(DataError, match="1 file is missing"):
        read_dataset(tmp_path / "cases.tsv", reading=ZEROS)


def test_images_to_predict_may_lack_channels(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {0: 0, 1: 1}, cases=3) / "imagesTr"
    assert [case.absent for case in read_images(folder, 2, ZEROS)] == [(0,), (1,), ()]
    with pytest.raises(DataError, match="2 files are missing"):
        read_images(folder, 2)


def test_several_channels_in_a_file_and_absent_ones_contradict_each_other(tmp_path: Path) -> None:
    ct, _, _ = images_of(0)
    medseg.write(ct.with_data(np.concatenate([ct.data, ct.data])), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="channels: found 2, expected 1, because case a lacks"):
        read_case_image(Case("a", (tmp_path / "a.nii.gz",), absent=(1,)))


def test_a_channel_without_any_file_is_refused() -> None:
    cases = [Case(name, (Path("a.nii"),), absent=(1,)) for name in "ab"]
    require_each_channel([*cases, Case("c", (Path("a.nii"), Path("b.nii")))], ("CT", "T1"), "data")
    with pytest.raises(DataError, match="data: channel T1: found a file in none of 2 training cases"):
        require_each_channel(cases, ("CT", "T1"), "data")

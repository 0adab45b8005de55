"""Cases: ids, files, and reading all channels and the label map onto one grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.data.datasets.cases import Case, Dataset, require_files
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.errors import DataError
from medseg.io.files import write
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.paths import SHARED_FOLDER

SHARED = SHARED_FOLDER / "data"
LABELS = Labels.from_names({"background": 0, "liver": 3, "spleen": 7})
GRID = Grid((4, 5, 6), np.array([[0.9, 0.1, 0, -20], [-0.1, 1.1, 0, 5], [0, 0, 2.5, 30], [0, 0, 0, 1]]))


def image(seed: int = 0, dtype: type = np.float32) -> Volume:
    values = np.random.default_rng(seed).integers(0, 1000, (1, *GRID.shape))
    return Volume(values.astype(dtype), GRID)


def label() -> Volume:
    values = np.random.default_rng(3).choice([0, 3, 7], (1, *GRID.shape))
    return Volume(values.astype(np.uint8), GRID, "label")


def shifted(volume: Volume, mm: float) -> Volume:
    affine = volume.grid.affine.copy()
    affine[0, 3] += mm
    return Volume(volume.data, Grid(volume.grid.shape, affine), volume.kind)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".hidden",
        "-rf",
        " a",
        "a ",
        "a.",
        "../up",
        "a/b",
        "a:b",
        'a"b',
        "a*",
        "x" * 129,
        "患" * 67,
        "new\nline",
        "\x1b[31m",
        "a\u202eb",
        "\udcff",
    ],
)
def test_ids_that_could_not_be_file_names_are_refused(name):
    with pytest.raises(DataError, match="expected one that is a file name"):
        Case(name, (Path("a.nii"),))


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "s0001",
        "sub-01_ses-2",
        "A.b-c_9",
        "x" * 128,
        "_",
        "a b",
        "Müller",
        "患者甲",
        "Ελένη",
        "مر\u200cیم",
        "CT of (1)",
        "a+b@c",
    ],
)
def test_ids_and_default_subject(name):
    assert Case(name, (Path("a.nii"),)).subject == name


def test_a_case_needs_an_image():
    with pytest.raises(DataError, match="found no image"):
        Case("a", ())


def test_dataset_is_sorted_and_finds_cases():
    cases = [Case(name, (Path(f"{name}.nii"),)) for name in ("b", "c", "a")]
    dataset = Dataset("toy", Path("root"), tuple(cases), ("CT",))
    assert dataset.ids == ("a", "b", "c")
    assert dataset.case("b") is cases[0]
    assert dataset.subset(["c", "a", "c"]).ids == ("a", "c")
    assert dataset.labelled_cases == ()


def test_unknown_case_names_the_nearest():
    dataset = Dataset("toy", Path("root"), (Case("patient_12", (Path("a.nii"),)),), ("CT",))
    with pytest.raises(DataError, match="Did you mean 'patient_12'"):
        dataset.subset(["patient12"])


def test_duplicate_ids_raise_with_both_files():
    cases = (Case("a", (Path("one/a.nii"),)), Case("a", (Path("two/a.nii"),)))
    with pytest.raises(DataError, match=r"one.a\.nii and two.a\.nii"):
        Dataset("toy", Path("root"), cases, ("CT",))


def test_all_missing_files_are_listed_at_once(tmp_path):
    (tmp_path / "here.nii").touch()
    cases = [
        Case("a", (tmp_path / "here.nii", tmp_path / "gone_1.nii")),
        Case("b", (tmp_path / "here.nii",), tmp_path / "gone_2.nii"),
    ]
    with pytest.raises(DataError) as caught:
        require_files(cases, "toy")
    assert "2 files are missing" in str(caught.value)
    assert "gone_1.nii (case a)" in str(caught.value)
    assert "gone_2.nii (case b)" in str(caught.value)
    assert "here.nii" not in str(caught.value)


def test_channels_are_stacked_in_order_and_reoriented_to_the_first(tmp_path):
    first, second = image(1), image(2)
    write(first, tmp_path / "a_0000.nii.gz")
    write(second.reoriented("SPL"), tmp_path / "a_0001.nii.gz")
    case = Case("a", (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"))
    result = read_case_image(case, channels=2)
    np.testing.assert_array_equal(result.data, np.concatenate([first.data, second.data]))
    assert result.grid.matches(GRID)
    assert result.header  # the first file's geometry can be written back


def test_integer_and_float_channels_do_not_become_double(tmp_path):
    write(image(1, np.int32), tmp_path / "a.nii")
    write(image(2, np.float32), tmp_path / "b.nii")
    result = read_case_image(Case("a", (tmp_path / "a.nii", tmp_path / "b.nii")))
    assert result.data.dtype == np.float32
    np.testing.assert_array_equal(result.data[0], image(1).data[0])


def test_one_file_may_hold_all_channels(tmp_path):
    write(Volume(np.concatenate([image(1).data, image(2).data]), GRID), tmp_path / "a.nii.gz")
    case = Case("a", (tmp_path / "a.nii.gz",))
    assert read_case_image(case, channels=2).channels == 2
    with pytest.raises(DataError, match=r"case a \(a\.nii\.gz\).*found 2, expected 4"):
        read_case_image(case, channels=4)


def test_channel_on_another_grid_names_both_files_and_shapes(tmp_path):
    write(image(), tmp_path / "a.nii")
    write(image().cropped((0, 0, 0), (4, 5, 5)), tmp_path / "b.nii")
    with pytest.raises(DataError) as caught:
        read_case_image(Case("a", (tmp_path / "a.nii", tmp_path / "b.nii")))
    for part in ("a.nii", "b.nii", "found 4x5x5 voxels", "expected 4x5x6 voxels"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("mm", "fits"), [(0.004, True), (2.0, False)])
def test_channel_moved_by_some_mm(tmp_path, mm, fits):
    write(image(), tmp_path / "a.nii")
    write(shifted(image(), mm), tmp_path / "b.nii")
    case = Case("a", (tmp_path / "a.nii", tmp_path / "b.nii"))
    if fits:
        assert read_case_image(case).channels == 2
    else:
        with pytest.raises(DataError, match="up to 2 mm apart"):
            read_case_image(case)


@pytest.mark.parametrize("stored_as", ["RAS", "LPI", "SAR"])
def test_label_values_become_classes_on_the_image_grid(tmp_path, stored_as):
    write(image(), tmp_path / "a.nii.gz")
    write(label().reoriented(stored_as), tmp_path / "l.nii.gz")
    result = read_case_label(Case("a", (tmp_path / "a.nii.gz",), tmp_path / "l.nii.gz"), LABELS)
    np.testing.assert_array_equal(np.array(LABELS.values)[result.data], label().data)
    assert result.is_label
    assert result.data.dtype == np.uint8
    assert result.grid.matches(GRID)


def test_label_is_checked_against_a_given_grid_without_reading_the_image(tmp_path):
    write(label(), tmp_path / "l.nii.gz")
    case = Case("a", (tmp_path / "absent.nii.gz",), tmp_path / "l.nii.gz")
    assert read_case_label(case, LABELS, GRID).grid == GRID


def test_label_on_another_grid_is_refused(tmp_path):
    write(image(), tmp_path / "a.nii.gz")
    write(shifted(label(), 246), tmp_path / "l.nii.gz")
    with pytest.raises(DataError, match=r"label map: not on the grid of .*a\.nii\.gz.*up to 246 mm apart"):
        read_case_label(Case("a", (tmp_path / "a.nii.gz",), tmp_path / "l.nii.gz"), LABELS)


def test_unknown_label_value_names_the_file(tmp_path):
    write(image(), tmp_path / "a.nii.gz")
    write(label(), tmp_path / "l.nii.gz")
    case = Case("a", (tmp_path / "a.nii.gz",), tmp_path / "l.nii.gz")
    with pytest.raises(DataError, match=r"l\.nii\.gz.*unknown label value: found 7"):
        read_case_label(case, Labels.from_names({"liver": 3}))


def test_a_case_without_label_cannot_give_one():
    with pytest.raises(DataError, match="case a: found no label map"):
        read_case_label(Case("a", (Path("a.nii"),)), LABELS)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data are not beside the checkout")
def test_real_label_of_another_scan_is_refused():
    folder = SHARED / "broken_dataset"
    case = Case(
        "mixed",
        (folder / "imagesTr" / "hippocampus_118.nii.gz",),
        folder / "labelsTr" / "hippocampus_281.nii.gz",
    )
    with pytest.raises(DataError, match=r"found 512x512x94 voxels of .*, expected 37x52x33 voxels"):
        read_case_label(case, LABELS)


def test_a_label_map_at_45_degrees_lies_on_its_image_whatever_its_axis_codes(tmp_path):
    """Which of two axes is the first is a matter of rounding there, also when both are turned to RAS later."""
    grids = []
    for name, angle, kind in (("image", np.pi / 4 - 1e-9, "image"), ("label", np.pi / 4 + 1e-9, "label")):
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        values = np.arange(5 * 5 * 3).reshape(1, 5, 5, 3) % 2 * 3
        grids.append(Grid((5, 5, 3), affine))
        write(Volume(values.astype(np.uint8), grids[-1], kind), tmp_path / f"{name}.nrrd")
    assert grids[0].axcodes != grids[1].axcodes
    case = Case("a", (tmp_path / "image.nrrd",), tmp_path / "label.nrrd")
    seen = read_case_image(case, 1)
    classes = read_case_label(case, LABELS, seen.grid)
    assert classes.grid.axcodes == seen.grid.axcodes
    assert np.array_equal(classes.reoriented("RAS").data * 3, seen.reoriented("RAS").data)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.io.files import IMAGE_SUFFIXES, WRITABLE, read, read_grid, read_labels, stem_of, suffix_of, write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def numbers(values: Any, dtype: Any = np.float32) -> Volume:
    data = np.asarray(values, dtype=dtype).reshape(1, -1, 1, 1)
    return Volume(data, Grid.from_spacing(data.shape[1:]))


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("ct_01.nii.gz", ".nii.gz", "ct_01"),
        ("CT.NII.GZ", ".nii.gz", "CT"),
        ("a.b.nii", ".nii", "a.b"),
        ("scan.nrrd", ".nrrd", "scan"),
        ("scan.tiff", ".tiff", "scan"),
        ("a b.ü.mha", ".mha", "a b.ü"),
        ("folder.nii/notes.txt", "", "notes.txt"),
        ("archive.gz", "", "archive.gz"),
        ("nii", "", "nii"),
        ("", "", ""),
    ],
)
def test_suffix_and_stem_of_file_names(name: str, suffix: str, stem: str) -> None:
    assert suffix_of(name) == suffix
    assert suffix_of(Path("/x") / name) == suffix
    assert stem_of(name) == stem


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_every_writable_format_round_trips(make_volume: Any, tmp_path: Path, suffix: str, kind: Any) -> None:
    volume = make_volume(kind=kind, dtype="u2", axcodes="LPI")
    path = tmp_path / "new folder" / f"a{suffix}"
    write(volume, path)
    again = read_labels(path) if kind == "label" else read(path)
    assert again.kind == kind
    assert np.array_equal(again.data, volume.data)
    assert again.grid.matches(volume.grid)
    assert read_grid(path).matches(volume.grid)
    write(again, str(path))
    assert [file.name for file in path.parent.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "a", "a.hdr", "a.dcm"])
def test_unsupported_formats_are_not_written(make_volume: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: cannot write this file format: expected \.nii, \.nii\.gz"):
        write(make_volume(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", WRITABLE)
def test_impossible_folder_raises(make_volume: Any, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=rf"a{suffix}: cannot be written .*[Cc]hoose another folder"):
        write(make_volume(), tmp_path / "file" / f"a{suffix}")


def test_unknown_and_missing_files_raise(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        DataError, match=rf"notes\.txt: unknown file format: expected one of {IMAGE_SUFFIXES[0]}"
    ):
        read(tmp_path / "notes.txt")
    for name in ("absent", "absent.txt", "absent.nii", "absent.nii.gz", "absent.mha", "absent.png"):
        for reader in (read, read_labels, read_grid):
            with pytest.raises(DataError, match=rf"{name}: no such file.*Check the path"):
                reader(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 1, 2], np.uint8, "uint8"),
        ([-1, 1, 300], np.int16, "int16"),
        ([0, 1, 70000], np.int32, "int32"),
        ([0, 1, 2], np.float32, "int32"),
        ([0, 0.9998, 2.0004], np.float32, "int32"),
        ([0, 2**24 - 1], np.float32, "int32"),
        ([0, 1], bool, "uint8"),
    ],
)
def test_label_values_must_be_whole_numbers(
    tmp_path: Path, values: Any, dtype: Any, expected: str, suffix: str
) -> None:
    write(numbers(values, dtype), tmp_path / f"l{suffix}")
    labels = read_labels(tmp_path / f"l{suffix}")
    assert labels.is_label
    assert labels.data.dtype == np.dtype(expected)
    assert labels.data.ravel().tolist() == np.round(np.array(values, dtype=np.float64)).tolist()


@pytest.mark.parametrize(
    ("values", "shown", "more"),
    [
        ([0, 0.5, 1, 0.5], "0.5 (2 voxels)", ""),
        ([0, np.nan], "nan (1 voxel)", ""),
        ([0, np.inf, -np.inf], "-inf (1 voxel), inf (1 voxel)", ""),
        ([0, 3e9], "3e+09 (1 voxel)", ""),
        (
            [0.9, 1.1, 2.1, 3.1, 4.1, 4.1, 5.1],
            "0.9 (1 voxel), 1.1 (1 voxel), 2.1 (1 voxel), 3.1 (1 voxel), 4.1 (2 voxels)",
            " and others",
        ),
    ],
)
def test_invalid_label_values_are_shown_and_counted(
    tmp_path: Path, values: Any, shown: str, more: str
) -> None:
    write(numbers(values), tmp_path / "l.nii.gz")
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "l.nii.gz")
    assert f"l.nii.gz: label values: found {shown}{more}, the first at (" in str(caught.value)
    assert "), expected whole numbers. Give" in str(caught.value)


def test_label_map_with_several_channels_raises(make_volume: Any, tmp_path: Path) -> None:
    write(make_volume(channels=3, dtype="u1"), tmp_path / "l.nii")
    with pytest.raises(
        DataError, match=r"l\.nii: found 3 channels, expected a label map with one\. Split it"
    ):
        read_labels(tmp_path / "l.nii")


def test_colour_label_map_raises(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.eye(3, dtype=np.uint8)[None]).save(tmp_path / "l.png")
    with pytest.raises(
        DataError, match=r"l\.png: found 3 channels.*Convert its colours to one whole number per label"
    ):
        read_labels(tmp_path / "l.png")


def test_blank_file_with_many_channels_raises(tmp_path: Path) -> None:
    blank = Volume(np.zeros((5, 4, 3, 2), np.float32), Grid.from_spacing((4, 3, 2)))
    for suffix in WRITABLE:
        write(blank, tmp_path / f"b{suffix}")
        again = read(tmp_path / f"b{suffix}")
        assert again.data.shape == (5, 4, 3, 2)
        assert not again.data.any()


def test_scaled_mask_keeps_its_values(tmp_path: Path) -> None:
    """A mask of int32 extremes with a tiny slope reads as 0 and 0.99999998; truncating it would empty it."""
    import nibabel as nib

    stored = np.where(np.arange(8) % 2, 2**31 - 1, -(2**31)).astype(np.int32).reshape(2, 2, 2)
    path = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image(stored, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([2.3283064e-10, 0.5], "<f4").tobytes()
    path.write_bytes(bytes(content))
    assert read_labels(path).data[0].tolist() == (stored > 0).astype(int).tolist()


def test_import_does_not_load_simpleitk_or_torch() -> None:
    code = "import sys, medseg.io; print([m for m in ('SimpleITK', 'torch', 'monai') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
